"""The dense rule, by hand on numbers that one can follow, and its dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn import backprop
from funcnn.backprop import Context
from funcnn.backprop.rules.dense import input_gradient, sum_over_batch, weight_gradient
from tests.backprop.agree import TOLERANCES, assert_agree


def test_the_equations_in_numpy(rng: np.random.Generator):
    x, w, b, dz = (rng.normal(size=shape).astype("float32") for shape in ((5, 3), (3, 2), (2,), (5, 2)))
    _, pullback = backprop.vjp(fnn.Dense(2), {"w": jnp.asarray(w), "b": jnp.asarray(b)}, jnp.asarray(x))
    (got, dx) = pullback(jnp.asarray(dz))
    assert_agree((got, dx), ({"w": x.T @ dz, "b": dz.sum(0)}, dz @ w.T), TOLERANCES["float32"])


def test_products_take_several_axes_of_outputs(rng: np.random.Generator):
    """As maxout needs them: x (2, 3, D), w (D, P, K), dz (2, 3, P, K)."""
    x, w, dz = (jnp.asarray(rng.normal(size=s), "float32") for s in ((2, 3, 5), (5, 4, 2), (2, 3, 4, 2)))
    dw = np.einsum("abd,abpk->dpk", x, dz)
    dx = np.einsum("abpk,dpk->abd", dz, w)
    got = weight_gradient(x, dz, w), input_gradient(dz, w, x), sum_over_batch(dz, w[0])
    assert_agree(got, (dw, dx, np.einsum("abpk->pk", dz)), TOLERANCES["float32"])


@pytest.mark.parametrize("mixed", [("bfloat16", "float32"), ("float32", "bfloat16"), ("uint8", "float32")])
def test_each_gradient_is_of_its_own_dtype(mixed: tuple[str, str], rng: np.random.Generator):
    """An input of another dtype than the weights', where the caller's promotion allows it."""
    x, w = (jnp.asarray(5 * rng.uniform(size=s)).astype(d) for s, d in zip(((4, 3), (3, 2)), mixed, strict=True))
    layer = fnn.Dense(2, bias=False)
    with jax.numpy_dtype_promotion("standard"):
        z, kept = backprop.RULES[fnn.Dense].fwd(layer, {"w": w}, x, Context(backprop.RULES))
        need_dx = bool(jnp.issubdtype(x.dtype, jnp.floating))
        dz = jnp.asarray(rng.normal(size=z.shape), z.dtype)
        ctx = Context(backprop.RULES, need_dx=need_dx)
        grads, dx = backprop.RULES[fnn.Dense].bwd(layer, {"w": w}, kept, dz, ctx)
        autodiff, dx_auto = jax.vjp(layer.apply, {"w": w}, x)[1](dz)
    tolerance = TOLERANCES["float32"] if "uint8" in mixed else 0.01  # two roundings of bfloat16's 2^-8
    assert_agree(grads, autodiff, tolerance)
    if need_dx:
        assert_agree(dx, dx_auto, tolerance)
