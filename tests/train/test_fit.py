"""`fit` takes the steps of `train.step`, each example once an epoch, however the run is cut into pieces."""

import csv
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcnn as fnn
from funcnn.train import feed, loop
from funcnn.train.shuffle import permutation
from funcnn.train.steps import order_key
from tests.train.problems import (
    KEY,
    METRICS,
    NET,
    OBJECTIVE,
    OPTIMIZER,
    ROUNDING,
    N,
    assert_close,
    assert_same,
    assert_same_history,
    examples,
    fit,
    start,
)


def without_dropout() -> tuple[fnn.Objective, Any]:
    plain = OBJECTIVE.replace(net=NET.replace(layers=tuple(v for v in NET.layers if not isinstance(v, fnn.Dropout))))
    return plain, plain.net.init(jax.random.key(1), (5,))


@pytest.mark.parametrize("gradient", ["autodiff", "backprop"])
def test_the_steps_are_those_of_step(gradient: str):
    """Written out with Python loops: the order of the examples, the short last batch, the means of an epoch."""
    (x, y), (x_valid, y_valid) = examples(), examples(10, seed=1)
    state, history = fit(gradient=gradient)
    step = fnn.train.step(OBJECTIVE, OPTIMIZER, gradient, metrics=METRICS)
    reference = fnn.train.start(OPTIMIZER, start(), KEY)
    losses = []
    for epoch in range(3):
        order = np.asarray(permutation(order_key(KEY, epoch), N))
        assert sorted(order) == list(range(N))
        sums = np.zeros(2)
        for rows in np.split(order, [8, 16]):
            reference, metrics = step(reference, (x[rows], y[rows]))
            losses.append(metrics["loss"])
            sums += np.array([metrics["loss"], metrics["accuracy"]]) * len(rows)
        np.testing.assert_allclose([history["loss"][epoch], history["accuracy"][epoch]], sums / N, rtol=1e-6)
        outputs = NET.apply(reference.params, jnp.asarray(x_valid))
        np.testing.assert_allclose(
            history["valid loss"][epoch], OBJECTIVE(reference.params, (x_valid, y_valid)), rtol=1e-6
        )
        np.testing.assert_allclose(history["valid accuracy"][epoch], jnp.mean(outputs.argmax(1) == y_valid), rtol=1e-6)
    assert_close(state, reference, ROUNDING["float32"])
    np.testing.assert_allclose(history.step_loss, losses, rtol=1e-6)
    assert history["step"].tolist() == [3, 6, 9] and history["epoch"].tolist() == [1, 2, 3]
    assert (np.diff(history["seconds"]) >= 0).all() and history.compile_seconds > 0


def test_pieces_of_any_length_take_the_same_steps(monkeypatch: pytest.MonkeyPatch):
    whole, history = fit(epochs=4)
    for sizes in ([1] * 12, [2, 9, 1], [5, 5, 5]):
        left = iter(sizes[1:])
        monkeypatch.setattr(feed, "LEAST_STEPS", sizes[0])
        monkeypatch.setattr(feed, "next_size", lambda steps, seconds, left=left: next(left, 1))
        again, same = fit(epochs=4)
        assert_same(again, whole)
        assert_same_history(same, history)


def test_a_dispatch_has_many_steps_and_does_not_last_long():
    assert feed.next_size(16, 16 * 10e-6) == 256, "grows"
    assert feed.next_size(4096, 4096 * 100e-6) == 5000, "half a second"
    assert feed.next_size(16, 16 * 0.13) == 16, "at least so many"
    assert feed.next_size(16, 16 * 2.0) == 2, "but not for longer than a few seconds"
    assert feed.next_size(1, 60.0) == 1


def test_one_trace_for_all_runs_of_one_kind():
    traces = []

    def loss(outputs: jax.Array, targets: jax.Array) -> jax.Array:
        traces.append(1)
        return fnn.losses.softmax_cross_entropy(outputs, targets)

    objective = OBJECTIVE.replace(loss=loss)
    results = [fit(objective=objective, optimizer=optax.adam, hyper={"learning_rate": 1e-2}, epochs=5)[0]]
    count = len(traces)
    for rate in (1e-2, 1e-3, 0.5):
        results.append(fit(objective=objective, optimizer=optax.adam, hyper={"learning_rate": rate}, epochs=3)[0])
    # Each call checks its first batch, without compiling: two evaluations. None traces the program again.
    assert len(traces) - count <= 3 * 2
    schedule = optax.adam(optax.exponential_decay(0.1, 2, 0.5))
    fit(objective=objective, optimizer=schedule, epochs=3)
    count = len(traces)
    fit(objective=objective, optimizer=schedule, epochs=6)
    assert len(traces) - count <= 2
    assert not np.allclose(results[2].params[0]["w"], results[3].params[0]["w"])


def test_hyper_parameters_of_objective_optimizer_and_parameters():
    def objective(l2: Any) -> fnn.Objective:
        return OBJECTIVE.replace(penalty=fnn.penalties.l2(l2))

    def init(key: jax.Array, scale: Any) -> Any:
        return jax.tree.map(lambda p: p * scale, NET.init(key, (5,)))

    hyper = {"l2": 1e-3, "scale": 2.0, "learning_rate": 1e-2}
    for gradient in ("autodiff", "backprop"):
        state, _ = fit(objective=objective, optimizer=optax.adam, params=init, hyper=hyper, gradient=gradient)
        init_key, key = jax.random.split(KEY)
        plain, _ = fit(params=init(init_key, 2.0), key=key, gradient=gradient)
        assert_close(state.params, plain.params, ROUNDING["float32"])
    with pytest.raises(TypeError, match="no function takes the hyper-parameter 'rate'"):
        fit(optimizer=optax.adam, hyper={"rate": 1.0})


def test_weights_count_in_training_and_validation():
    x, y = examples()
    weight = np.ones(N, np.float32)
    weight[3] = 2.0
    _, one = fit((x, y, weight), valid=(x, y, weight), shuffle=False, batch_size=N, epochs=1, optimizer=optax.sgd(0.0))
    rows = [*range(N), 3]
    _, two = fit(
        (x[rows], y[rows]),
        valid=(x[rows], y[rows]),
        shuffle=False,
        batch_size=N + 1,
        epochs=1,
        optimizer=optax.sgd(0.0),
    )
    for name in ("valid loss", "valid accuracy"):  # without noise
        np.testing.assert_allclose(one[name], two[name], rtol=1e-6)
    plain, params = without_dropout()
    a, one = fit((x, y, weight), objective=plain, params=params, shuffle=False, batch_size=N, epochs=2)
    b, two = fit((x[rows], y[rows]), objective=plain, params=params, shuffle=False, batch_size=N + 1, epochs=2)
    np.testing.assert_allclose(one["accuracy"], two["accuracy"], rtol=1e-6)
    assert_close(a.params, b.params, ROUNDING["float32"])


@pytest.mark.parametrize("stream", [False, True])
def test_validation_every_k_epochs_and_after_the_last(stream: bool):
    _, history = fit(epochs=5, valid_every=2, stream=stream)
    assert np.isnan(history["valid loss"]).tolist() == [True, False, True, False, False]
    _, without = fit(epochs=2, valid=None, stream=stream)
    assert list(without) == ["epoch", "step", "seconds", "loss", "accuracy"]


def test_validation_does_not_depend_on_its_batch_size():
    histories = [fit(valid_batch_size=size, epochs=2)[1] for size in (None, 3, 10, 64)]
    for history in histories[1:]:
        np.testing.assert_allclose(history["valid loss"], histories[0]["valid loss"], rtol=1e-5)
        np.testing.assert_allclose(history["valid accuracy"], histories[0]["valid accuracy"], rtol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 4, 10, 16])
def test_evaluate_counts_each_example_once(size: int):
    data, params = examples(10), start()
    got = fnn.train.evaluate(OBJECTIVE, params, data, batch_size=size, metrics=METRICS)
    np.testing.assert_allclose(got["loss"], OBJECTIVE(params, data), rtol=1e-6)
    np.testing.assert_allclose(
        got["accuracy"], np.mean(NET.apply(params, jnp.asarray(data[0])).argmax(1) == data[1]), rtol=1e-6
    )
    streamed = fnn.train.evaluate(
        OBJECTIVE, params, [(data[0][:7], data[1][:7]), (data[0][7:], data[1][7:])], batch_size=7, metrics=METRICS
    )
    for name in got:
        np.testing.assert_allclose(streamed[name], got[name], rtol=1e-6)


@pytest.mark.parametrize("stream", [False, True])
def test_early_stopping_keeps_the_best_state(stream: bool):
    stopping = fnn.train.EarlyStopping(3, "valid accuracy", maximize=True)
    options: dict[str, Any] = {"optimizer": optax.sgd(0.5), "stream": stream}
    state, history = fit(epochs=60, early_stopping=stopping, **options)
    values = history["valid accuracy"]
    best = int(values.argmax())
    assert history.best_epoch == best + 1
    assert len(values) == best + 1 + 3 < 60, "three more validations, none better"
    assert len(history.step_loss) == history["step"][-1]
    again, shorter = fit(epochs=best + 1, **options)
    assert_same(state, again)
    np.testing.assert_array_equal(shorter["loss"], history["loss"][: best + 1])
    with pytest.raises(ValueError, match="monitors one of"):
        fit(early_stopping=fnn.train.EarlyStopping(1, "valid acc"))


def test_early_stopping_needs_min_delta():
    _, history = fit(epochs=40, early_stopping=fnn.train.EarlyStopping(2, "loss", min_delta=100.0), valid=None)
    assert len(history["loss"]) == 3 and history.best_epoch == 1


def test_bytes_on_the_device_are_scaled_in_the_step(rng: np.random.Generator):
    x = rng.integers(0, 256, (N, 5), np.uint8)
    y = examples()[1]
    seen = []

    def scaled(batch: Any) -> Any:
        seen.append(batch[0].dtype)
        return (batch[0].astype(jnp.float32) / 255, *batch[1:])

    a, one = fit((x, y), prepare=scaled, valid=(x, y))
    b, two = fit((x.astype(np.float32) / 255, y), valid=(x.astype(np.float32) / 255, y))
    assert_close(a.params, b.params, ROUNDING["float32"])
    np.testing.assert_allclose(one["valid loss"], two["valid loss"], rtol=1e-6)
    assert set(seen) == {jnp.dtype("uint8")}


def test_mixed_precision_keeps_parameters_gradients_and_loss_in_float32():
    seen: dict[str, Any] = {}

    def watched(name: str) -> optax.GradientTransformation:
        def update(updates: Any, state: Any, params: Any = None) -> Any:
            seen[name] = {leaf.dtype for leaf in jax.tree.leaves((updates, params))}
            return updates, state

        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

    objective, params = without_dropout()
    for gradient in ("autodiff", "backprop"):
        options: dict[str, Any] = {"objective": objective, "params": params, "gradient": gradient}
        optimizer = optax.chain(watched(gradient), OPTIMIZER)
        state, history = fit(optimizer=optimizer, compute_dtype="bfloat16", **options)
        assert seen[gradient] == {jnp.dtype("float32")}
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
        full = fit(**options)[1]
        assert not np.array_equal(history["loss"], full["loss"]), "the network did run in bfloat16"
        np.testing.assert_allclose(history["loss"], full["loss"], rtol=0.05)  # bfloat16 has 8 bits


def test_history_to_csv_table_and_plot(tmp_path: pathlib.Path):
    _, history = fit(epochs=5, valid_every=2)
    history.to_csv(tmp_path / "history.csv")
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert list(rows[0]) == list(history)
    for name in history:
        np.testing.assert_array_equal([float(row[name]) for row in rows], history[name].astype(float))
    assert [axes.get_ylabel() for axes in history.plot().axes] == ["loss", "accuracy"]
    assert len(history.plot(["loss"]).axes) == 1
    assert "valid accuracy" in str(history) and repr(history).startswith("<History of 5 epochs: epoch, step")
    with pytest.raises(KeyError, match="'acc'; the history has 'epoch'"):
        history["acc"]


def test_json_lines_come_with_the_epochs(tmp_path: pathlib.Path):
    _, history = fit(epochs=4, valid_every=3, log=tmp_path / "new" / "log.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "new" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert lines[0]["valid loss"] is None and lines[2]["valid loss"] == history["valid loss"][2]


X, Y = np.ones((3, 5), np.float32), np.zeros(3, np.int32)
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "epochs": ({"epochs": 0}, ValueError, "epochs is a positive integer, got 0"),
    "batch size": ({"batch_size": 2.5}, ValueError, "batch_size is a positive integer"),
    "key": ({"key": 7}, TypeError, r"jax.random.key\(0\), got 7"),
    "data": ({"data": 3}, TypeError, "an iterable of batches"),
    "rows": ({"data": (np.ones((3, 5)), np.ones(4))}, ValueError, r"one row per example.*\(3, 5\), \(4,\)"),
    "none": ({"data": (np.ones((0, 5)), np.ones(0))}, ValueError, "at least one"),
    "width": ({"data": (np.ones((3, 6), np.float32), Y)}, ValueError, r"\['w'\] has shape \(5, 8\), where \(6, 8\)"),
    "labels": ({"data": (X, Y + 9)}, ValueError, "labels in 0..2.*got 9"),
    "not finite": ({"data": (X * np.nan, Y)}, ValueError, "x is not finite"),
    "parameters": ({"params": ()}, ValueError, "missing"),
    "valid": ({"valid": [examples()]}, TypeError, "valid is"),
    "progress": ({"progress": "loud"}, TypeError, '"bar", "lines"'),
    "a Dataset": ({"data": fnn.data.load_digits()}, TypeError, r"data.arrays\(\)"),
    "lists": ({"data": [[0.0] * 9, [1] * 9]}, TypeError, r"got list of \(list of \(float, float, float, ...\), list"),
    "one array": ({"data": X}, TypeError, r"got one array float32\[3, 5\]"),
    "objects": ({"data": (np.full((3, 5), "a"), Y)}, TypeError, "x holds numbers, got an array of dtype <U1"),
    "negative weight": ({"data": (X, Y, np.array([1, 1, -1.0]))}, ValueError, "data: weights .* got -1.0 at index 2"),
    "no weight": ({"data": (X, Y, np.zeros(3))}, ValueError, "data: the weight is zero for every example"),
    "valid labels": ({"valid": (X, Y + 9)}, ValueError, r"valid: softmax_cross_entropy takes labels in 0..2"),
    "valid shape": ({"valid": (X[:, :4], Y)}, ValueError, r"valid: "),
    "valid batch": ({"valid_batch_size": 0}, ValueError, "valid_batch_size is a positive integer, got 0"),
    "best": ({"checkpoints": fnn.train.Checkpoints("x", best="val_loss")}, ValueError, "got best='val_loss'"),
    "hyper": ({"hyper": [1e-2]}, TypeError, "hyper is a mapping"),
    "hyper text": ({"hyper": {"a": "0.1"}}, TypeError, "hyper has numbers by name.*got 'a': '0.1'"),
    "metric name": ({"metrics": {1: fnn.train.accuracy}}, TypeError, "got 1: "),
    "a class": ({"augment": fnn.data.augment.Shift}, TypeError, "augment is a function"),
    "float64": ({"compute_dtype": "float64"}, ValueError, "under jax.enable_x64"),
    "metrics": ({"metrics": fnn.train.accuracy}, TypeError, "metrics is a mapping"),
    "gradient": ({"gradient": lambda objective: None}, TypeError, "has_aux is no argument"),
    "dtype": ({"compute_dtype": "int8"}, ValueError, "compute_dtype is a floating dtype, .* got 'int8'"),
    "mesh": ({"batch_axis": "data"}, TypeError, "pass mesh="),
    "stopping": ({"early_stopping": 5}, TypeError, r"EarlyStopping\(patience=5\), got 5"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_before_training(name: str):
    changes, error, message = BAD[name]
    with pytest.raises(error, match=message):
        fit(**changes)


def test_a_directory_is_where_checkpoints_go(tmp_path: pathlib.Path):
    pytest.importorskip("orbax.checkpoint")
    state, _ = fit(epochs=2, checkpoints=tmp_path)
    assert_same(fit(epochs=2, checkpoints=str(tmp_path))[0], state)


def test_a_printed_history_is_short():
    _, history = fit(epochs=40, valid=None)
    lines = str(history).splitlines()
    assert len(lines) == 3 + 10 + 1 + 10 and lines[13].split()[0] == "..."


def test_multi_steps_may_be_given_as_it_is():
    state, _ = fit(optimizer=optax.MultiSteps(optax.sgd(0.1), 2))
    assert_same(state.params, fit(optimizer=optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation())[0].params)


def test_most_steps_is_more_than_a_piece(monkeypatch: pytest.MonkeyPatch):
    """Where the buffer of losses is short, pieces are, and an epoch takes several."""
    whole, history = fit(epochs=2, batch_size=2)
    monkeypatch.setattr(loop, "MOST_STEPS", 4)
    jax.clear_caches()  # the buffer's length is in the compiled program
    again, same = fit(epochs=2, batch_size=2)
    jax.clear_caches()
    assert_same(again, whole)
    assert_same_history(same, history)
