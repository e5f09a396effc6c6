"""The rules of wrappers: dtypes inside a cast, and the noise of the forward pass drawn again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn import backprop
from tests.backprop.agree import TOLERANCES, assert_agree, draw_layer, layer_gradients

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
