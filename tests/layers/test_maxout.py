"""Maxout: values by hand, ties, its special cases, and errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn.layer import LayerError

EXACT = 1e-12  # float64, sums of a few numbers of order 1


def test_values_by_hand(x64: None, rng: np.random.Generator):
    x, w, b = rng.normal(size=(6, 5)), rng.normal(size=(5, 3, 4)), rng.normal(size=(3, 4))
    pieces = np.stack([x @ w[:, p] + b[p] for p in range(3)])
    dy = rng.normal(size=(6, 4))

    @jax.jit
    def run(x: jax.Array, w: jax.Array, b: jax.Array) -> Any:
        y, pull = jax.vjp(lambda p, x: fnn.Maxout(4, pieces=3).apply(p, x), {"w": w, "b": b}, x)
        return y, pull(jnp.asarray(dy))

    y, (dparams, dx) = run(x, w, b)
    np.testing.assert_allclose(y, pieces.max(0), rtol=EXACT, atol=EXACT)
    dz = np.where(pieces == pieces.max(0), dy, 0)  # (P, N, K); nothing ties
    np.testing.assert_allclose(dparams["w"], np.einsum("nd,pnk->dpk", x, dz), rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(dparams["b"], dz.sum(1), rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(dx, np.einsum("pnk,dpk->nd", dz, w), rtol=EXACT, atol=EXACT)


def test_a_tie_shares_its_gradient_evenly():
    """Of three pieces two tie, or all three: a half each, or a third."""
    layer, params = fnn.Maxout(1, pieces=3), {"w": jnp.ones((1, 3, 1)), "b": jnp.array([[0.0], [0.0], [-1.0]])}
    grad = jax.jit(jax.grad(lambda p: jnp.sum(layer.apply(p, jnp.array([[2.0]])))))
    np.testing.assert_array_equal(grad(params)["b"][:, 0], [0.5, 0.5, 0])
    thirds = grad(params | {"b": jnp.zeros((3, 1))})
    np.testing.assert_allclose(thirds["b"][:, 0], np.full(3, 1 / 3), rtol=1e-6)  # float32
    np.testing.assert_allclose(thirds["w"][0, :, 0], np.full(3, 2 / 3), rtol=1e-6)


def test_relu_and_absolute_are_special_cases(rng: np.random.Generator):
    x = jnp.asarray(rng.normal(size=(7, 1)), jnp.float32)
    layer = fnn.Maxout(1, pieces=2)
    for first, activation in ((0.0, fnn.Relu()), (-1.0, fnn.Absolute()), (0.2, fnn.LeakyRelu(0.2))):
        params = {"w": jnp.array([[[first], [1.0]]]), "b": jnp.zeros((2, 1))}
        np.testing.assert_array_equal(layer.apply(params, x), activation.apply((), x))


def test_initial_parameters(key: jax.Array):
    params = jax.jit(lambda k: fnn.Maxout(40, pieces=5).init(k, (500,)))(key)
    assert (params["w"].shape, params["b"].shape) == ((500, 5, 40), (5, 40))
    # He for the D inputs of each piece, the pieces not counted in: 100,000 draws, 1 %.
    assert abs(np.std(params["w"]) / np.sqrt(2 / 500) - 1) < 0.01
    assert fnn.Maxout(4, pieces=3).out_shape((2, 5)) == (2, 4)


@pytest.mark.parametrize(("features", "pieces", "name"), [(0, 2, "features"), (2, 0, "pieces"), (2, 1.5, "pieces")])
def test_wrong_counts(features: Any, pieces: Any, name: str):
    with pytest.raises(LayerError, match=f"Maxout's {name} is a positive integer"):
        fnn.Maxout(features, pieces)


def test_what_does_not_fit(key: jax.Array):
    layer = fnn.Maxout(4, pieces=3)
    params = layer.init(key, (5,))
    with pytest.raises(LayerError, match=r"parameters for inputs of shape \(\.\.\., 5\) and got x of shape \(2, 6\)"):
        layer.apply(params, jnp.zeros((2, 6)))
    with pytest.raises(LayerError, match=r"needs parameters \{'w': \(any, 3, 4\), 'b': \(3, 4\)\}, got"):
        layer.apply(fnn.Maxout(3, pieces=4).init(key, (5,)), jnp.zeros((2, 5)))
    with pytest.raises(LayerError, match="an example of shape"):
        layer.init(key, ())
