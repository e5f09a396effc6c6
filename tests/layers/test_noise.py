"""Noise: its statistics, what the key and `train` decide, and errors."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn.layer import LayerError

N = 100_000  # draws; a mean of them is within 5 standard deviations / sqrt(N) but for 1 key in a million
FAR = 5 / math.sqrt(N)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(rate: float, key: jax.Array):
    y = np.asarray(fnn.Dropout(rate).apply((), jnp.full(N, 3.0), key=key, train=True))
    dropped = y == 0
    assert abs(dropped.mean() - rate) < FAR * math.sqrt(rate * (1 - rate))
    np.testing.assert_allclose(y[~dropped], 3 / (1 - rate), rtol=1e-6)  # float32
    assert abs(y.mean() - 3) < FAR * 3 * math.sqrt(rate / (1 - rate))


def test_dropout_is_independent_for_each_number_and_its_gradient_has_the_same_mask(key: jax.Array):
    layer, x = fnn.Dropout(0.5), jnp.ones((300, 300))

    @jax.jit
    def run(x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.value_and_grad(lambda x: jnp.sum(layer.apply((), x, key=key, train=True)))(x)[1], layer.mask(key, x)

    slope, mask = run(x, key)
    np.testing.assert_array_equal(slope, np.where(mask, 2, 0))
    kept = np.asarray(mask).astype(float) - 0.5
    for neighbour in (np.roll(kept, 1, 0), np.roll(kept, 1, 1)):
        assert abs((kept * neighbour).mean()) < 5 / 300 / 4  # 90,000 products of +-1/4


def test_gaussian_noise_has_its_mean_and_spread(key: jax.Array):
    n = np.asarray(fnn.GaussianNoise(0.5).apply((), jnp.full(N, 2.0), key=key, train=True)) - 2
    assert abs(n.mean()) < FAR * 0.5
    assert abs(n.std() / 0.5 - 1) < FAR
    assert abs((n > 0.5).mean() - 0.158655) < FAR  # the tail beyond one standard deviation: it is normal


NOISES = {"dropout": fnn.Dropout(0.5), "gaussian_noise": fnn.GaussianNoise(0.3)}
each_noise = pytest.mark.parametrize("layer", NOISES.values(), ids=NOISES.keys())


@each_noise
def test_the_key_decides_and_train_switches(layer: fnn.Layer, key: jax.Array):
    x = jnp.linspace(1, 2, 64).reshape(8, 8)
    one, again, other = (layer.apply((), x, key=k, train=True) for k in (key, key, jax.random.fold_in(key, 1)))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, x)
    jitted = jax.jit(lambda k: layer.apply((), x, key=k, train=True))(key)
    np.testing.assert_allclose(jitted, one, rtol=1e-6)  # float32: x + std n may be one operation there
    assert layer.apply((), x, key=key) is x
    assert layer.apply((), x) is x


@each_noise
def test_a_missing_key_names_the_way(layer: fnn.Layer):
    with pytest.raises(LayerError) as caught:
        layer.apply((), jnp.ones(3), train=True)
    message = str(caught.value)
    assert message.startswith(f"{layer!r} draws random numbers under train=True and got no key")
    assert "net.apply(params, x, key=jax.random.key(0), train=True)" in message


@pytest.mark.parametrize("layer", [fnn.Dropout(0.0), fnn.GaussianNoise(0.0)], ids=repr)
def test_no_noise_needs_no_key(layer: fnn.Layer):
    x = jnp.ones(3)
    assert layer.apply((), x, train=True) is x


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fnn.Dropout(1.0), ["probability to drop", "[0, 1)", "1.0"]),
        (lambda: fnn.Dropout(-0.1), ["[0, 1)", "-0.1"]),
        (lambda: fnn.Dropout(math.nan), ["[0, 1)", "nan"]),
        (lambda: fnn.GaussianNoise(-1.0), ["std is not negative", "-1.0"]),
        (lambda: fnn.GaussianNoise(math.nan), ["std is not negative", "nan"]),
    ],
)
def test_wrong_options(make: Callable[[], Any], words: list[str]):
    with pytest.raises(LayerError) as caught:
        make()
    assert all(word in str(caught.value) for word in words), str(caught.value)
