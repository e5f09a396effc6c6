"""A loss that is not finite stops training, and the error says where it came from and keeps what was sound."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcnn as fnn
from funcnn.train.nonfinite import last_sound
from tests.train.problems import KEY, NET, OBJECTIVE, ROUNDING, assert_close, assert_same, examples, fit


@dataclasses.dataclass(frozen=True)
class Root(fnn.Layer):
    """y = sqrt(max(x, 0)): finite forward, but its slope at 0 is not. Without a rule: autodiff stands in."""

    def init(self, key: Any, in_shape: Any) -> Any:
        return ()

    def apply(self, params: Any, x: jax.Array, *, key: Any = None, train: bool = False) -> jax.Array:
        return jnp.sqrt(jnp.maximum(x, 0.0))


@dataclasses.dataclass(frozen=True)
class Spike(fnn.Layer):
    """y = x, but infinite for an input above 8: one example of `spiked`."""

    def init(self, key: Any, in_shape: Any) -> Any:
        return ()

    def apply(self, params: Any, x: jax.Array, *, key: Any = None, train: bool = False) -> jax.Array:
        return jnp.where(x > 8, jnp.inf, x)


def spiked() -> Any:
    x, y = examples()
    x[13, 2] = 9.0
    return x, y


def step_of_the_spike(epoch: int) -> int:
    """Which step of an epoch meets the example with the spike."""
    from funcnn.train.shuffle import permutation
    from funcnn.train.steps import order_key

    return int(np.flatnonzero(np.asarray(permutation(order_key(KEY, epoch), 22)) == 13)[0]) // 8


@pytest.mark.parametrize("stream", [False, True])
def test_the_first_layer_step_and_epoch_are_named(stream: bool):
    net = fnn.Serial(fnn.Serial(fnn.Reshape((5,)), Spike()), fnn.Dense(3))
    objective = fnn.Objective(net, fnn.losses.softmax_cross_entropy)
    params = net.init(jax.random.key(1), (5,))
    i = step_of_the_spike(0)
    assert i > 0, "there is a sound step before"
    with pytest.raises(fnn.train.NonFiniteError) as caught:
        fit(spiked(), objective=objective, params=params, stream=stream)
    error = caught.value
    assert f"in epoch 1, step {i + 1} of it (step {i + 1} of the run)" in str(error)
    assert "the output of layer '0/1', Spike(): 1 of 40 numbers, the first inf at" in str(error)
    assert (error.epoch, error.step, error.path) == (1, i, "0/1")
    assert error.state.step == i and len(error.history.step_loss) == i
    sound, _ = fit(examples_before(i), objective=objective, params=params, shuffle=False, epochs=1, valid=None)
    assert_close(error.state.params, sound.params, ROUNDING["float32"])
    assert error.batch[0].shape == (8, 5) and (np.asarray(error.batch[0]) > 8).any()


def examples_before(steps: int) -> Any:
    """What the steps before were trained on, in their order."""
    from funcnn.train.shuffle import permutation
    from funcnn.train.steps import order_key

    x, y = spiked()
    rows = np.asarray(permutation(order_key(KEY, 0), len(x)))[: 8 * steps]
    return x[rows], y[rows]


@pytest.mark.parametrize("first", [0, 5])
def test_the_last_sound_step_is_found_wherever_it_is(first: int):
    """Parameters that are a number: infinite after the step `lost`, which no loss tells until step `failed`."""

    @dataclasses.dataclass
    class Run:
        state: Any

    for failed in range(first, first + 9):
        for lost in [*range(first, failed), failed + 1]:  # lost in a step before, or not at all

            def replay(step: int, lost: int = lost) -> Any:
                params = {"w": jnp.where(step > lost, jnp.inf, step)}
                return Run(fnn.train.State(params, (), jnp.asarray(step), KEY))

            step, run = last_sound(replay, first, failed)
            assert step == run.state.step == min(lost, failed)


@pytest.mark.parametrize("stream", [False, True])
def test_a_gradient_that_was_not_finite_some_steps_before_the_loss(stream: bool):
    """The loss of the step is finite; its gradient is not, so that the parameters after it are lost."""
    net = fnn.Serial(fnn.Dense(4), Root(), fnn.Dense(3))
    objective = fnn.Objective(net, fnn.losses.softmax_cross_entropy)
    params = jax.tree.map(jnp.zeros_like, net.init(jax.random.key(1), (5,)))
    params[2]["w"] = params[2]["w"] + 1.0
    x, y = examples()
    x = np.abs(x) + 0.1  # with the bias at 1 the root's input is positive, but for an example of zeros with b = 0
    with pytest.raises(fnn.train.NonFiniteError) as caught:
        fit((x, y), objective=objective, params=params, stream=stream)
    error = caught.value
    assert "1 step after what went wrong in epoch 1, step 1 of it (step 1 of the run)" in str(error)
    assert "not finite: the gradient for the input of layer '1', Root()" in str(error)
    assert error.path in ("0", "1") and error.step == 0 and error.state.step == 0
    assert_same(error.state.params, params)


# Of nine steps the last, after which no loss tells; and the last of a piece: in memory each step is one, since each is
# saved; of the stream's chunks one has the steps 3 and 4.
@pytest.mark.parametrize("step", [8, 4])
@pytest.mark.parametrize("stream", [False, True])
def test_parameters_that_are_lost_are_not_kept(stream: bool, step: int, tmp_path: pathlib.Path):
    def last(updates: Any, state: Any, params: Any = None) -> Any:
        bad = jax.tree.map(lambda u: jnp.where(state == step, jnp.nan, u), updates)
        return bad, state + 1

    pytest.importorskip("orbax.checkpoint")
    breaking = optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), last)
    optimizer, chunk_steps = optax.chain(optax.sgd(0.1), breaking), 2 if stream else None
    with pytest.raises(fnn.train.NonFiniteError, match="the parameters are no longer finite after") as caught:
        fit(
            optimizer=optimizer, stream=stream, chunk_steps=chunk_steps,
            checkpoints=fnn.train.Checkpoints(tmp_path, every_steps=1, every_epochs=None, keep=100),
        )  # fmt: skip
    error = caught.value
    assert error.step == step and error.state.step == step and error.epoch == step // 3 + 1
    assert error.history["epoch"].tolist() == list(range(1, step // 3 + 1))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(error.state.params))
    assert max(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()) == step, "nothing later was saved"


def test_what_comes_after_an_early_stop_is_not_looked_at():
    def after(updates: Any, state: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda u: jnp.where(state == 12, jnp.nan, u), updates), state + 1

    breaking = optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), after)
    stopping = fnn.train.EarlyStopping(1, "loss", min_delta=100.0)  # after the second epoch, of 3 steps each
    state, history = fit(optimizer=optax.chain(optax.sgd(0.1), breaking), early_stopping=stopping, epochs=30)
    assert state.step == 3 and history["epoch"].tolist() == [1, 2] and len(history.step_loss) == 6


def test_an_update_that_is_not_finite_is_the_optimizers():
    with pytest.raises(fnn.train.NonFiniteError, match="not finite: the optimizer's update, or the penalty's gradient"):
        fit(optimizer=optax.sgd(float("nan")))


def test_a_batch_without_weight_is_named():
    x, y = examples()
    weight = np.ones(len(x), np.float32)
    weight[8:16] = 0
    with pytest.raises(fnn.train.NonFiniteError, match=r"step 2 .*the weights of all examples in the batch are 0"):
        fit((x, y, weight), shuffle=False)
    _, history = fit((x, y, weight), epochs=1, batch_size=22, valid=(x, y, weight), valid_batch_size=8)
    whole, kept = fnn.train.evaluate, weight > 0
    state, _ = fit((x, y, weight), epochs=1, batch_size=22)
    assert whole(OBJECTIVE, state.params, (x, y, weight), batch_size=8) == pytest.approx(
        whole(OBJECTIVE, state.params, (x[kept], y[kept]), batch_size=3), rel=1e-6
    ), "in validation such a batch counts nothing"
    assert np.isfinite(history["valid loss"]).all()


def test_labels_that_are_no_class_are_named():
    x, y = examples()
    y[20] = 7
    with pytest.raises(
        fnn.train.NonFiniteError, match=r"the loss: softmax_cross_entropy takes labels in 0..2.*got 7 at index 4"
    ) as caught:
        fit((x, y), shuffle=False)
    assert caught.value.step == 2 and caught.value.path is None


def test_the_state_before_is_saved_where_checkpoints_are_on(tmp_path: pathlib.Path):
    pytest.importorskip("orbax.checkpoint")
    x, y = examples()
    y[20] = 7
    checkpoints = fnn.train.Checkpoints(tmp_path, every_epochs=None, every_steps=1000)
    with pytest.raises(fnn.train.NonFiniteError) as caught:
        fit((x, y), shuffle=False, checkpoints=checkpoints)
    y[20] = 1
    state, history = fit((x, y), shuffle=False, checkpoints=checkpoints)
    assert_same(state, fit((x, y), shuffle=False)[0])
    assert len(history.step_loss) == 9 and caught.value.state.step == 2


def test_a_diverging_run_stops():
    net = fnn.Serial(fnn.Dense(8), fnn.Relu(), fnn.Dense(1))
    x, y = examples()
    objective = fnn.Objective(net, fnn.losses.squared_error)
    with pytest.raises(fnn.train.NonFiniteError, match=r"the loss is (inf|nan) in epoch \d+, step \d"):
        fit(
            (x, y[:, None].astype(np.float32)),
            objective=objective,
            params=net.init(KEY, (5,)),
            optimizer=optax.sgd(1e3),
            metrics=None,
            valid=None,
            epochs=50,
        )
    assert NET is OBJECTIVE.net
