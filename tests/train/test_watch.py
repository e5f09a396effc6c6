"""What a watch sees inside the compiled steps is what its function gives outside, at its steps and no others."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn.backprop import diagnosis
from funcnn.train import feed
from funcnn.train.shuffle import permutation
from funcnn.train.steps import order_key
from tests.train.problems import BATCH, KEY, METRICS, OBJECTIVE, OPTIMIZER, N, assert_same_history, examples, fit, start

EVERY = 2
WATCH = fnn.train.Watch(every=EVERY)


def look(objective: Any, params: Any, batch: Any, *, key: Any, train: bool) -> Any:
    """Small and exact: which parameters, examples and key it was given."""
    return {"w": params[0]["w"][0], "batch": [batch[1], batch[2]], "key": jax.random.key_data(key), "train": train}


def test_a_look_is_at_the_step_that_follows():
    """The steps of three epochs one by one; the last of an epoch has 6 examples, and two that only fill it up."""
    x, y = examples()
    _, history = fit(watch=WATCH, gradient="backprop")
    step = fnn.train.step(OBJECTIVE, OPTIMIZER, "backprop", metrics=METRICS)
    state = fnn.train.start(OPTIMIZER, start(), KEY)
    looks = []
    for epoch in range(3):
        order = np.pad(np.asarray(permutation(order_key(KEY, epoch), N)), (0, -N % BATCH)).reshape(-1, BATCH)
        for i, rows in enumerate(order):
            batch = x[rows], y[rows], (i * BATCH + np.arange(BATCH) < N).astype(np.float32)
            params, key = jax.tree.map(jnp.copy, state.params), jax.random.fold_in(KEY, state.step)
            state, _ = step(state, batch)
            updates = jax.tree.map(jnp.subtract, state.params, params)
            if (3 * epoch + i) % EVERY == 0:
                found = fnn.backprop.diagnose(OBJECTIVE, params, batch, key=key, train=True, updates=updates)
                looks.append(found.to_dict())
    assert history.watched["step"].tolist() == [0, 2, 4, 6, 8] and set(history.watched) == {"step", *looks[0]}
    for name in looks[0]:
        # Differences that were small beside their numbers come back in the noise scale, of sums in another order.
        np.testing.assert_allclose(history.watched[name], [seen[name] for seen in looks], rtol=1e-3, err_msg=name)


def test_every_step_and_the_run_are_the_same_however_it_is_cut(monkeypatch: pytest.MonkeyPatch):
    _, plain_history = fit(epochs=4)
    for every in (1, 5):
        watch = fnn.train.Watch(look, every=every)
        _, whole = fit(epochs=4, watch=watch)
        assert_same_history(whole, plain_history)
        assert whole.watched["step"].tolist() == list(range(0, 12, every))
        assert list(whole.watched) == ["step", "batch/0", "batch/1", "key", "train", "w"]
        for step, key in zip(whole.watched["step"], whole.watched["key"], strict=True):
            assert (key == jax.random.key_data(jax.random.fold_in(KEY, step))).all()
        np.testing.assert_array_equal(whole.watched["w"][0], start()[0]["w"][0])
        assert len(np.unique(whole.watched["w"][:, 0])) == len(whole.watched["w"]) and whole.watched["train"].all()
        assert whole.watched["batch/1"][:, :6].all()
        for sizes in ([1] * 12, [2, 9, 1], [5, 5, 5]):
            left = iter(sizes[1:])
            monkeypatch.setattr(feed, "LEAST_STEPS", sizes[0])
            monkeypatch.setattr(feed, "next_size", lambda steps, seconds, left=left: next(left, 1))
            _, again = fit(epochs=4, watch=watch)
            for name, values in whole.watched.items():
                np.testing.assert_array_equal(again.watched[name], values, err_msg=name)


def test_more_looks_than_one_dispatch_has_room_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feed.loop, "MOST_WATCHED", 3)
    _, history = fit(epochs=4, watch=fnn.train.Watch(look, every=1), metrics=None)
    assert history.watched["step"].tolist() == list(range(12))
    assert len(np.unique(history.watched["key"], axis=0)) == 12


@pytest.mark.parametrize("chunk_steps", [1, 2, 3])
def test_a_stream_sees_the_same(chunk_steps: int):
    watch = fnn.train.Watch(look, every=2)
    _, memory = fit(watch=watch)
    _, stream = fit(watch=watch, stream=True, chunk_steps=chunk_steps)
    for name, values in memory.watched.items():
        np.testing.assert_array_equal(stream.watched[name], values, err_msg=name)


def test_a_resumed_run_has_seen_everything(tmp_path: pathlib.Path):
    pytest.importorskip("orbax.checkpoint")
    whole = fit(epochs=4, watch=WATCH)[1].watched
    fit(epochs=2, watch=WATCH, checkpoints=tmp_path)
    with pytest.raises(fnn.train.CheckpointError, match=r"watch is every 2 steps, .*diagnose.* there and None here"):
        fit(epochs=4, checkpoints=tmp_path)
    for _ in range(2):  # the second time there is nothing to do
        _, again = fit(epochs=4, watch=WATCH, checkpoints=tmp_path)
        assert set(again.watched) == set(whole)
        for name, values in whole.items():
            np.testing.assert_array_equal(again.watched[name], values, err_msg=name)
    _, _, seen = fnn.train.load_checkpoint(tmp_path)
    np.testing.assert_array_equal(seen.watched["layers/3/noise_scale"], whole["layers/3/noise_scale"])


def test_what_is_seen_after_a_stop_or_a_failure_is_not_kept():
    stopping = fnn.train.EarlyStopping(patience=1, monitor="valid loss", min_delta=1e3)
    watch = fnn.train.Watch(look, every=1)
    _, history = fit(epochs=30, watch=watch, early_stopping=stopping)
    assert len(history["epoch"]) == 2 and history.watched["step"].tolist() == list(range(6))
    x, y = examples()
    bad = np.asarray(permutation(order_key(KEY, 0), N))[BATCH]  # in the second batch
    x[bad] = np.nan
    with pytest.raises(fnn.train.NonFiniteError) as caught:
        fit((x, y), watch=watch)
    assert caught.value.history.watched["step"].tolist() == [0]


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"watch is a train\.Watch, such as Watch"):
        fit(watch=fnn.backprop.diagnose)
    with pytest.raises(TypeError, match="function is one of"):
        fnn.train.Watch(50)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="Watch's every is a positive integer, got 0"):
        fnn.train.Watch(every=0)

    with pytest.raises(TypeError, match="has no argument 'key'"):
        fnn.train.Watch(lambda objective, params, batch: {})

    def broken(objective: Any, params: Any, batch: Any, *, key: Any, train: bool) -> Any:
        return params["nothing"]

    with pytest.raises(TypeError) as caught:
        fit(watch=fnn.train.Watch(broken))
    assert "in the watch's function" in str(caught.value.__notes__)


@pytest.mark.parametrize(
    ("returned", "error", "says"),
    [
        (None, ValueError, "has a name for each array.* got None"),
        (jnp.ones(3), ValueError, "has a name for each array"),
        ({"step": 1.0}, ValueError, "none of them is 'step'"),
        ({"word": "high"}, TypeError, "returns arrays, and its 'word' is 'high'"),
    ],
    ids=["none", "array", "step", "text"],
)
def test_what_a_watch_returns_has_names(returned: Any, error: Any, says: str):
    with pytest.raises(error, match=says):
        fit(watch=fnn.train.Watch(lambda objective, params, batch, *, key, train: returned))


def test_names_are_paths():
    tree = {"a": [jnp.ones(()), None], "b/c": 2.0}
    assert list(diagnosis.by_name(tree)) == ["a/0", "b/c"]
