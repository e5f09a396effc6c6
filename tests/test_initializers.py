"""Initialisers: named ones are those of `jax.nn.initializers`, numbers are constants, functions run as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn.initializers import _MAKERS, _PLAIN, Initializer, draw

OPTIONS = {
    "constant": {"value": 2.5},
    "variance_scaling": {"scale": 2.0, "mode": "fan_in", "distribution": "truncated_normal"},
}


@pytest.mark.parametrize("name", [*_PLAIN, *_MAKERS])
def test_a_name_is_that_of_jax(name: str, key: jax.Array):
    shape = (3, 4, 4) if name == "delta_orthogonal" else (4, 3)
    options = OPTIONS.get(name, {})
    reference = getattr(jax.nn.initializers, name)
    reference = reference if name in _PLAIN else reference(**options)
    got, expected = jax.jit(lambda k: (draw(fnn.Init(name, **options), k, shape), reference(k, shape, jnp.float32)))(
        key
    )
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, expected)
    assert np.isfinite(got).all()


def test_every_initialiser_of_jax_has_its_name():
    public = {name for name in dir(jax.nn.initializers) if not name.startswith("_")}
    assert set(_PLAIN) | set(_MAKERS) == public - {"Initializer"}


@pytest.mark.parametrize("init", [0.1, 1, "zeros", fnn.Init("constant", value=0.3), fnn.Init("ones")])
def test_float64_where_jax_has_it_and_never_weakly_typed(init: Initializer, dtype: str, key: jax.Array):
    w = draw(init, key, (2, 3))
    assert (w.shape, w.dtype, w.weak_type) == ((2, 3), dtype, False)
    assert w[0, 0] == {0.1: np.dtype(dtype).type(0.1), 1: 1, "zeros": 0}.get(init, w[0, 0])


def test_a_function_is_called_with_key_shape_and_dtype(key: jax.Array):
    calls = []

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        calls.append((key, shape, dtype))
        return jnp.ones(shape, dtype)

    np.testing.assert_array_equal(draw(init, key, (2, 3)), 1)
    assert calls == [(key, (2, 3), jnp.float32)]


def test_the_spread_is_that_of_the_equation(key: jax.Array):
    """He: std = sqrt(2 / D); in 100,000 draws the standard deviation is within 1 %."""
    layer = fnn.Dense(250)
    params = jax.jit(lambda k: layer.init(k, (400,)))(key)
    assert abs(np.std(params["w"]) / np.sqrt(2 / 400) - 1) < 0.01
    np.testing.assert_array_equal(params["b"], 0)


def test_wrong_initialisers(key: jax.Array):
    with pytest.raises(ValueError, match=r"no initialiser is named 'he_normall'; the names are zeros, ones, constant"):
        fnn.Init("he_normall")
    with pytest.raises(ValueError, match="no initialiser is named 'xavier'"):
        fnn.Dense(3, w_init="xavier").init(key, (2,))
    for wrong in (None, True, [1.0], b"zeros"):
        with pytest.raises(TypeError, match=r"an initialiser is a name, a number, an Init or a function, got"):
            draw(wrong, key, (2,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="stdev"):
        draw(fnn.Init("normal", stdev=1.0), key, (2,))


def test_options_are_a_value():
    one = fnn.Init("variance_scaling", scale=1.0, mode="fan_in", distribution="uniform")
    other = fnn.Init("variance_scaling", distribution="uniform", mode="fan_in", scale=1.0)
    assert one == other
    assert hash(one) == hash(other)
    assert repr(one) == "Init('variance_scaling', distribution='uniform', mode='fan_in', scale=1.0)"
