"""The dense layer: values by hand, initial values, and the errors of what does not fit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn.layer import LayerError

EXACT = 1e-12  # float64, sums of a few numbers of order 1


@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 3, 4)], ids=str)
def test_values_by_hand(shape: tuple[int, ...], x64: None, rng: np.random.Generator):
    x, w, b = rng.normal(size=shape), rng.normal(size=(4, 3)), rng.normal(size=3)
    expected = np.zeros((*shape[:-1], 3))
    for index in np.ndindex(*shape[:-1]):
        for k in range(3):
            expected[(*index, k)] = sum(x[(*index, d)] * w[d, k] for d in range(4))

    @jax.jit
    def run(x: jax.Array, w: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        plain = fnn.Dense(3, bias=False).apply({"w": w}, x)
        return fnn.Dense(3).apply({"w": w, "b": b}, x), plain

    full, plain = run(x, w, b)
    np.testing.assert_allclose(full, expected + b, rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(plain, expected, rtol=EXACT, atol=EXACT)


def test_gradients_by_hand(x64: None, rng: np.random.Generator):
    x, w, dz = rng.normal(size=(5, 4)), rng.normal(size=(4, 3)), rng.normal(size=(5, 3))

    @jax.jit
    def gradients(x: jax.Array, w: jax.Array) -> Any:
        def summed(params: Any, x: jax.Array) -> jax.Array:
            return jnp.sum(fnn.Dense(3).apply(params, x) * dz)

        return jax.grad(summed, argnums=(0, 1))({"w": w, "b": jnp.zeros(3)}, x)

    dparams, dx = gradients(x, w)
    np.testing.assert_allclose(dparams["w"], x.T @ dz, rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(dparams["b"], dz.sum(0), rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(dx, dz @ w.T, rtol=EXACT, atol=EXACT)


def test_initial_parameters(dtype: str, key: jax.Array):
    params = fnn.Dense(3, b_init=0.1).init(key, (2, 4))
    assert {name: (leaf.shape, leaf.dtype.name) for name, leaf in params.items()} == {
        "w": ((4, 3), dtype),
        "b": ((3,), dtype),
    }
    np.testing.assert_array_equal(params["b"], np.full(3, 0.1, dtype))
    assert len(np.unique(params["w"])) == 12
    assert fnn.Dense(3, bias=False).init(key, (4,)).keys() == {"w"}
    np.testing.assert_array_equal(fnn.Dense(3).init(key, (4,))["w"], params["w"])  # the same key, the same weights
    # Where both are random, weight and bias come from different keys.
    both = fnn.Dense(3, w_init="normal", b_init="normal").init(key, (1,))
    assert not np.allclose(both["w"][0], both["b"])


def test_shapes_and_cost():
    assert fnn.Dense(3).out_shape((2, 4)) == (2, 3)
    assert fnn.Dense(3).multiply_adds((2, 4)) == 2 * 4 * 3


@pytest.mark.parametrize("features", [0, -1, 2.0, "3", True, None], ids=repr)
def test_features_are_a_positive_integer(features: Any):
    with pytest.raises(LayerError, match=f"Dense's features is a positive integer, got {features!r}"):
        fnn.Dense(features)


def test_x_of_another_width(key: jax.Array):
    layer = fnn.Dense(3)
    params = layer.init(key, (4,))
    for x in (jnp.zeros((2, 5)), jnp.zeros(())):
        with pytest.raises(LayerError) as caught:
            layer.apply(params, x)
        assert f"Dense(3) has parameters for inputs of shape (..., 4) and got x of shape {x.shape}" in str(caught.value)
        assert "give x a last axis of 4" in str(caught.value)
    with pytest.raises(LayerError, match=r"maps an example's last axis, and an example of shape \(\) has none"):
        layer.init(key, ())


def test_parameters_that_do_not_fit(key: jax.Array):
    params = fnn.Dense(3).init(key, (4,))
    x = jnp.zeros((1, 4))
    wrong = {
        "no bias": ({"w": params["w"]}, "{'w': float32[4, 3]}"),
        "features": (fnn.Dense(2).init(key, (4,)), "{'b': float32[2], 'w': float32[4, 2]}"),
        "swapped": ({"w": params["b"], "b": params["w"]}, "{'w': float32[3], 'b': float32[4, 3]}"),
    }
    for given, text in wrong.values():
        with pytest.raises(LayerError) as caught:
            fnn.Dense(3).apply(dict(sorted(given.items())) if text.startswith("{'b") else given, x)
        assert "Dense(3) needs parameters {'w': (any, 3), 'b': (3,)}" in str(caught.value)
        assert f"got {text}" in str(caught.value)
    with pytest.raises(LayerError, match=r"needs parameters \{'w': \(any, 3\)\}, got"):
        fnn.Dense(3, bias=False).apply(params, x)
