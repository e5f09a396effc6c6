"""The rules of combinators: the pieces of a concatenation, and a pass that ends where nothing more learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn import backprop
from tests.backprop.agree import TOLERANCES, assert_agree, draw_layer


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
