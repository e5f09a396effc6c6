"""The rules of activations: what they choose at their kinks, and that they hold far out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn import backprop
from tests.backprop.agree import assert_agree, layer_gradients
from tests.problems import ELEMENTWISE

# layer, where its kinks are, and the derivative chosen there.
KINKS = {
    "relu": (fnn.Relu(), {0.0: 0.0}),
    "absolute": (fnn.Absolute(), {0.0: 0.0}),
    "leaky_relu": (fnn.LeakyRelu(), {0.0: 1.0}),
    "leaky_relu-negative": (fnn.LeakyRelu(-0.5), {0.0: 1.0}),
    "prelu": (fnn.Prelu(), {0.0: 1.0}),
    "prelu-shared": (fnn.Prelu(shared=True), {0.0: 1.0}),
    "hard_swish": (fnn.HardSwish(), {-3.0: 0.0, 3.0: 1.0}),
    "elu": (fnn.Elu(), {0.0: 1.0}),
    "elu-alpha": (fnn.Elu(alpha=2.5), {0.0: 2.5}),
    "step": (fnn.Step(), {0.0: 0.0}),
}


@pytest.mark.parametrize(("layer", "kinks"), KINKS.values(), ids=KINKS.keys())
def test_at_a_kink_the_derivative_is_the_one_chosen_and_autodiffs(
    layer: fnn.Layer, kinks: dict[float, float], rng: np.random.Generator, dtype: str
):
    x = jnp.asarray([list(kinks), [-0.0 if a == 0 else a for a in kinks]], dtype)
    dy = jnp.asarray(rng.normal(size=x.shape), dtype)
    params = layer.init(jax.random.key(0), x.shape[1:])
    by_hand, by_autodiff = jax.jit(layer_gradients(layer, None, False))(params, x, dy)
    assert_agree(by_hand, by_autodiff, 0.0)
    _, (_, dx) = by_hand
    np.testing.assert_array_equal(dx, np.asarray(dy) * np.asarray(list(kinks.values()), dtype))


@pytest.mark.parametrize("layer", ELEMENTWISE.values(), ids=ELEMENTWISE.keys())
def test_far_out_the_derivative_is_finite_and_autodiffs(layer: fnn.Layer, dtype: str):
    largest = float(jnp.finfo(dtype).max)
    sizes = [1e-30, 1e-3, 1.0, 5.0, 9.0, 14.0, 20.0, 100.0, 1e4, 1e10, 1e20, 1e37, largest]
    x = jnp.asarray([*sizes, *(-a for a in sizes)], dtype)
    (_, (_, dx)), (_, (_, autodiff)) = jax.jit(layer_gradients(layer, None, False))((), x, jnp.ones_like(x))
    known = np.isfinite(autodiff)
    assert np.isfinite(dx).all()
    assert known.sum() >= x.size - 8  # where autodiff overflows on the way, the rule need not
    # The derivatives are of order 1, or tiny: some roundings of 1 then, for 1 - y has no more digits.
    np.testing.assert_allclose(dx[known], autodiff[known], rtol=0, atol=16 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("layer", [fnn.Softmax(), fnn.LogSoftmax()])
def test_a_masked_class_passes_nothing_between_the_others(layer: fnn.Layer, rng: np.random.Generator, dtype: str):
    x = jnp.asarray([[0.5, -jnp.inf, 1.5, -2.0], [1e30, -jnp.inf, -1e30, 0.0]], dtype)
    dy = jnp.asarray(rng.normal(size=x.shape), dtype)
    (_, (_, dx)), (_, (_, autodiff)) = jax.jit(layer_gradients(layer, None, False))((), x, dy)
    assert np.isfinite(dx).all()
    np.testing.assert_allclose(dx, autodiff, rtol=0, atol=16 * float(jnp.finfo(dtype).eps))


def test_a_saturated_tanh_keeps_its_digits():
    """1 - y^2 rounds y^2 first, which here, where the rounding is largest, would cost four of seven digits."""
    y = jnp.float32(1 - 2896 * 2**-24)
    dx = backprop.RULES[fnn.Tanh].bwd(fnn.Tanh(), (), y, jnp.float32(1), None)[1]
    exact = 1 - np.float64(y) ** 2
    assert abs(float(dx) - exact) <= 1.5e-7 * exact  # two roundings
