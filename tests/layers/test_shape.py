"""Flatten and Reshape: the same numbers in the same order, and errors."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn.layer import LayerError


@pytest.mark.parametrize("dtype_name", ["float32", "uint8", "bfloat16"])
def test_the_numbers_stay_in_their_order_and_dtype(dtype_name: str):
    x = jnp.arange(2 * 3 * 4).astype(dtype_name).reshape(2, 3, 4)
    flat, shaped = fnn.Flatten().apply((), x), fnn.Reshape((2, -1, 3)).apply((), x)
    assert flat.dtype == shaped.dtype == x.dtype
    np.testing.assert_array_equal(flat, np.arange(24).reshape(2, 12))
    np.testing.assert_array_equal(shaped, np.arange(24).reshape(2, 2, 2, 3))


@pytest.mark.parametrize(
    ("layer", "in_shape", "out_shape"),
    [
        (fnn.Flatten(), (3, 4), (12,)),
        (fnn.Flatten(), (), (1,)),
        (fnn.Reshape((12,)), (3, 4), (12,)),
        (fnn.Reshape((-1,)), (), (1,)),
        (fnn.Reshape(()), (1, 1), ()),
        (fnn.Reshape((2, -1, 2)), (3, 4), (2, 3, 2)),
        (fnn.Reshape([4, np.int64(3)]), (12,), (4, 3)),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_shapes(layer: fnn.Layer, in_shape: tuple[int, ...], out_shape: tuple[int, ...]):
    assert layer.out_shape(in_shape) == out_shape
    assert layer.apply((), jnp.zeros((5, *in_shape))).shape == (5, *out_shape)
    assert layer.multiply_adds(in_shape) == 0
    assert fnn.from_json(fnn.to_json(layer)) == layer


@pytest.mark.parametrize("shape", [(5,), (5, -1), (13,), (3, 3)], ids=str)
def test_numbers_that_do_not_fill_the_shape(shape: tuple[int, ...]):
    layer = fnn.Reshape(shape)
    for call in (lambda: layer.out_shape((3, 4)), lambda: layer.apply((), jnp.zeros((2, 3, 4)))):
        with pytest.raises(LayerError) as caught:
            call()
        assert f"Reshape({shape}) cannot take examples of shape (3, 4): they have 12 numbers" in str(caught.value)


@pytest.mark.parametrize("shape", [(-1, -1), (-2, -6), (3, 0), 3, None, "ab", (2.0, 6), (True, 12)], ids=repr)
def test_wrong_shapes(shape: Any):
    with pytest.raises(
        LayerError, match="Reshape's shape is a tuple of positive integers, of which one may be -1, got"
    ):
        fnn.Reshape(shape)


@pytest.mark.parametrize("layer", [fnn.Flatten(), fnn.Reshape((2, 2))], ids=repr)
def test_a_number_has_no_batch_axis(layer: fnn.Layer):
    with pytest.raises(
        LayerError, match=r"takes x of shape \(N, \.\.\.\), got a number; give one example as x\[None\]"
    ):
        layer.apply((), jnp.zeros(()))
