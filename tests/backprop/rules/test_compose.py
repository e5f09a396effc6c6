"""The rules of combinators: written-out chain rules on small numbers, fan-out, sharing, dtypes inside a cast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn import backprop
from funcnn.backprop import RULES, Rule
from tests.backprop.agree import TOLERANCES, assert_agree, draw_layer, layer_gradients


def test_fan_out_sums_the_gradients_of_every_path(rng: np.random.Generator):
    """y = 2 h + h + 3 x + x with h = 5 x, so that dx = (5 (2 + 1) + 3 + 1) dy."""

    def scale(by):
        return fnn.lift(lambda key, in_shape: (), lambda params, x: by * x)

    times = {by: scale(by) for by in (2.0, 3.0, 5.0)}
    rules = RULES | {
        layer: Rule(lambda layer, p, x, ctx, by=by: (by * x, ()), lambda layer, p, r, dy, ctx, by=by: ((), by * dy))
        for by, layer in times.items()
    }
    net = fnn.Graph(
        {
            "h": fnn.Node(times[5.0], "input"),
            "two": fnn.Node(times[2.0], "h"),
            "three": fnn.Node(times[3.0], "input"),
            "y": fnn.Node(fnn.Identity(), ("two", "h", "three", "input")),
        },
        output="y",
    )
    x, dy = (jnp.asarray(rng.normal(size=(4, 3)), "float32") for _ in range(2))
    y, pullback = backprop.vjp(net, net.init(jax.random.key(0), (3,)), x, rules=rules)
    np.testing.assert_allclose(y, 19 * x, rtol=1e-6)
    np.testing.assert_allclose(pullback(dy)[1], 19 * dy, rtol=1e-6)


def test_shared_parameters_get_the_sum_of_their_uses(rng: np.random.Generator):
    """y = (x w) w for numbers: dw = 2 x w dy."""
    layer = fnn.Dense(1, bias=False)
    net = fnn.Graph({"a": fnn.Node(layer, "input"), "y": fnn.Node(layer, "a", params_of="a")}, output="y")
    x, w, dy = (jnp.asarray(rng.normal(size=(1, 1)), "float32") for _ in range(3))
    _, pullback = backprop.vjp(net, {"a": {"w": w}, "y": ()}, x)
    assert_agree(pullback(dy), ({"a": {"w": 2 * x * w * dy}, "y": ()}, w * w * dy), TOLERANCES["float32"])


def test_a_concatenation_gives_each_branch_its_own_columns(rng: np.random.Generator):
    net = fnn.Parallel(fnn.Identity(), fnn.Dense(1, bias=False), fnn.Absolute())
    x, w, dy = (jnp.asarray(rng.normal(size=s), "float32") for s in ((4, 2), (2, 1), (4, 5)))
    _, pullback = backprop.vjp(net, ((), {"w": w}, ()), x)
    dx = dy[:, :2] + dy[:, 2:3] @ w.T + dy[:, 3:] * np.sign(x)
    assert_agree(pullback(dy), (((), {"w": x.T @ dy[:, 2:3]}, ()), dx), TOLERANCES["float32"])


NOTHING_TO_LEARN = {
    "serial": fnn.Serial(fnn.Tanh(), fnn.Softplus()),
    "residual": fnn.Residual(fnn.Tanh()),
    "parallel": fnn.Parallel(fnn.Tanh(), fnn.Sigmoid()),
    "graph": fnn.Graph({"a": fnn.Node(fnn.Tanh(), "input"), "y": fnn.Node(fnn.Silu(), ("a", "input"))}, output="y"),
    "cast": fnn.Cast(fnn.Tanh(), "float32"),
    "noise": fnn.WeightNoise(fnn.Serial(fnn.Tanh(), fnn.Dense(2)), 0.1),
}


@pytest.mark.parametrize("before", NOTHING_TO_LEARN.values(), ids=NOTHING_TO_LEARN.keys())
def test_what_does_not_learn_may_stand_first(before: fnn.Layer, rng: np.random.Generator, key: jax.Array):
    """Then the backward pass ends early, and the gradients behind it are those of autodiff."""
    net = fnn.Serial(before, fnn.Dense(2), fnn.Residual(fnn.Serial(fnn.Tanh(), fnn.Dense(2))))
    objective = fnn.Objective(net, fnn.losses.squared_error)
    params, x, y = draw_layer(rng, net, (3,), 5)
    args = params, (x, y)
    by_hand = jax.jit(lambda *a: backprop.value_and_grad(objective)(*a, key=key, train=True))(*args)
    assert_agree(by_hand, jax.value_and_grad(objective)(*args, key=key, train=True), TOLERANCES["float32"])


CASTS = {
    "bfloat16": fnn.Cast(fnn.Serial(fnn.Dense(4), fnn.Tanh(), fnn.Dense(2)), "bfloat16"),
    "float16": fnn.Cast(fnn.Serial(fnn.Dense(4), fnn.Tanh(), fnn.Dense(2)), "float16"),
    "float32": fnn.Cast(fnn.Serial(fnn.Dense(4), fnn.Tanh(), fnn.Dense(2)), "float32"),
    "nested": fnn.Serial(fnn.Dense(4), fnn.Cast(fnn.Serial(fnn.Dense(3), fnn.Cast(fnn.Silu(), "float32")), "bfloat16")),
}


@pytest.mark.parametrize("net", CASTS.values(), ids=CASTS.keys())
def test_a_cast_computes_in_its_dtype_and_gives_gradients_in_the_parameters(
    net: fnn.Layer, rng: np.random.Generator, dtype: str
):
    by_hand, by_autodiff = jax.jit(layer_gradients(net, None, False))(*draw_layer(rng, net, (3,), 5))
    # Rounded to bfloat16's 8 bits (float16's 11) in each of some ten operations, at other places than autodiff's.
    assert_agree(by_hand, by_autodiff, TOLERANCES["float32"] if net == CASTS["float32"] else 0.05)


def test_a_cast_takes_the_bytes_of_an_image(rng: np.random.Generator):
    net = fnn.Cast(fnn.Serial(fnn.Flatten(), fnn.Dense(2)), "float32")
    params, _, dy = draw_layer(rng, net, (2, 3), 5)
    x = jnp.asarray(rng.integers(0, 256, (5, 2, 3)), "uint8")
    by_hand, by_autodiff = layer_gradients(net, None, False)(params, x, dy)
    assert_agree(by_hand, by_autodiff, TOLERANCES["float32"])


@pytest.mark.usefixtures("x64")
def test_weight_noise_is_the_same_backward_as_forward(key: jax.Array, rng: np.random.Generator):
    """dx = dy (w + n)^T with the very noise of the forward pass; the gradient of w itself does not see it."""
    net = fnn.WeightNoise(fnn.Dense(2, bias=False), 0.5)
    params, _, dy = draw_layer(rng, net, (3,), 5)
    x = jnp.asarray(np.vstack([np.eye(3), np.zeros((2, 3))]))
    y, pullback = backprop.vjp(net, params, x, key=key, train=True)
    grads, dx = pullback(dy)
    noisy = y[:3]  # the rows of w + n
    assert np.abs(noisy - params["w"]).max() > 0.05
    assert_agree((grads, dx), ({"w": x.T @ dy}, dy @ noisy.T), TOLERANCES["float64"])
