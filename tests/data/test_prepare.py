"""Pixels scaled on the device: to the bit what `Dataset.arrays` gives, and everything else as it was."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn.data import Dataset, load_digits
from funcnn.data.prepare import Pixels


def all_levels(x_max: int) -> Dataset:
    """Images (2, levels, 2) in which each gray level occurs."""
    x = np.tile(np.arange(x_max + 1, dtype=np.uint8 if x_max < 256 else np.uint16)[:, None], (2, 1, 2))
    return Dataset("levels", x, np.zeros(2, np.int32), x[:1], np.zeros(1, np.int32), x_max, 2)


DATASETS = {"digits": load_digits, "255": lambda: all_levels(255), "65535": lambda: all_levels(65535)}


@pytest.mark.parametrize("name", DATASETS)
def test_it_scales_to_the_bit_as_arrays_does(name: str, dtype: str):
    dataset = DATASETS[name]()
    (want, _), _ = dataset.arrays(dtype)
    pixels = Pixels(dataset.x_max)
    x, _ = jax.jit(pixels)((dataset.x_train, 0))
    assert (x.dtype, x.shape) == (want.dtype, want.shape)
    np.testing.assert_array_equal(x, want)  # a product with 1 / 255 misses 126 of the 256 levels
    np.testing.assert_array_equal(pixels((dataset.x_train[:1], 0))[0], want[:1])  # eager


def test_images_keep_their_shape_where_asked():
    x = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    images, _ = Pixels(flatten=False)((x, 0))
    flat, _ = Pixels()((x, 0))
    assert (images.shape, flat.shape) == ((2, 3, 4), (2, 12))
    np.testing.assert_array_equal(images.reshape(2, 12), flat)
    np.testing.assert_array_equal(images, (x / 255).astype(np.float32))


def test_targets_and_weights_pass():
    x, y, weight = jnp.zeros((2, 3, 3), jnp.uint8), jnp.array([3, 4]), jnp.array([1.0, 0.5])
    assert Pixels()((x, y))[1:] == (y,)
    out = Pixels()((x, y, weight))
    assert len(out) == 3
    assert out[1] is y
    assert out[2] is weight


def test_a_pixel_above_the_largest_is_seen():
    x, _ = Pixels(16)((jnp.array([[0, 16, 17, 255]], jnp.uint8), 0))
    np.testing.assert_array_equal(x, np.array([[0, 1, np.nan, np.nan]], np.float32))


def test_vmap_and_a_split_batch():
    x = np.arange(96, dtype=np.uint8).reshape(2, 8, 2, 3)
    want = (x.reshape(2, 8, 6) / 255).astype(np.float32)
    np.testing.assert_array_equal(jax.vmap(Pixels())((x, x))[0], want)
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))):
        split, _ = jax.jit(Pixels())((jax.device_put(x[0], jax.P("data")), 0))
        assert jax.typeof(split).sharding.spec == jax.P("data", None)
        np.testing.assert_array_equal(split, want[0])


def test_it_is_a_value():
    assert Pixels() == Pixels(255, flatten=True)
    of_numpy: Any = np.int64(16)
    assert repr(Pixels(of_numpy, flatten=False)) == "Pixels(x_max=16, flatten=False)"
    assert fnn.from_json(fnn.to_json(Pixels(16))) == Pixels(16)
    assert len({Pixels(), Pixels(255), Pixels(16)}) == 2


@pytest.mark.parametrize("x_max", [0, -1, 65536, 1.5, True, None])
def test_a_wrong_largest_pixel(x_max: Any):
    with pytest.raises(ValueError, match=f"x_max is the largest value of a pixel, an integer 1 to 65535, got {x_max}"):
        Pixels(x_max)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((2, 4), np.float32), ["Pixels() scales unsigned integers", "x float32[2, 4]", "leave Pixels out"]),
        (jnp.zeros((2, 4), jnp.bfloat16), ["x bfloat16[2, 4]", "leave Pixels out"]),
        (np.zeros((2, 4), np.int32), ["x int32[2, 4]", "np.uint8"]),
        (np.zeros((2, 4), bool), ["x bool[2, 4]", "np.uint8"]),
    ],
)
def test_pixels_that_are_no_unsigned_integers(x: Any, words: list[str]):
    with pytest.raises(TypeError) as caught:
        jax.jit(Pixels())((x, 0))
    assert all(word in str(caught.value) for word in words), str(caught.value)
