"""The rules of noise draw again, from the same key, what the forward pass drew."""

import jax
import jax.numpy as jnp
import numpy as np

import funcnn as fnn
from funcnn import backprop


def test_dropout_drops_the_same_numbers_backward(key: jax.Array, rng: np.random.Generator):
    x, dy = (jnp.asarray(rng.normal(size=(20, 6)), "float32") for _ in range(2))
    y, pullback = backprop.vjp(fnn.Dropout(0.4), (), x, key=key, train=True)
    _, dx = pullback(dy)
    np.testing.assert_array_equal(dx == 0, y == 0)
    assert 0.2 < np.mean(dx == 0) < 0.6
    np.testing.assert_allclose(dx[y != 0], dy[y != 0] / 0.6, rtol=1e-6)


def test_each_layer_of_a_network_draws_by_its_own_key(key: jax.Array):
    """Two dropouts in a row: a mask drawn twice from one key would keep 1 - rate, not its square."""
    x = jnp.ones((100, 50))
    _, pullback = backprop.vjp(fnn.Serial(fnn.Dropout(0.5), fnn.Dropout(0.5)), ((), ()), x, key=key, train=True)
    _, dx = pullback(x)
    assert abs(np.mean(dx != 0) - 0.25) < 0.03  # 5 standard deviations of 0.0061


def test_without_train_noise_is_not_there(key: jax.Array, rng: np.random.Generator):
    dy = jnp.asarray(rng.normal(size=(4, 3)), "float32")
    for layer in (fnn.Dropout(0.5), fnn.GaussianNoise(1.0)):
        _, pullback = backprop.vjp(layer, (), jnp.ones((4, 3)), key=key)
        np.testing.assert_array_equal(pullback(dy)[1], dy)
