"""Layers that move numbers without changing them. Axis 0 is the batch."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from funcnn.layer import Key, Layer, LayerError, Params, Shape, check_in_shape, check_no_params


@dataclasses.dataclass(frozen=True)
class Reshape(Layer):
    """Gives each example another shape: x (N, ...) -> y (N, *shape).

    Args:
        shape: the new shape of one example; one entry may be -1, which stands for what is left.

    Raises:
        LayerError: `shape` is no shape; the numbers of one example do not fill it.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.Reshape((2, -1)).apply((), jnp.zeros((5, 6))).shape
        (5, 2, 3)
    """

    shape: Shape

    def __post_init__(self) -> None:
        good = isinstance(self.shape, tuple | list) and all(
            isinstance(d, int | np.integer) and not isinstance(d, bool) and (d > 0 or d == -1) for d in self.shape
        )
        if not good or sum(d == -1 for d in self.shape) > 1:
            raise LayerError(
                f"Reshape's shape is a tuple of positive integers, of which one may be -1, got {self.shape!r}"
            )
        object.__setattr__(self, "shape", tuple(int(d) for d in self.shape))

    def init(self, key: Key, in_shape: Shape) -> Params:
        self.out_shape(in_shape)
        return ()

    def apply(self, params: Params, x: jax.Array, *, key: Key | None = None, train: bool = False) -> jax.Array:
        check_no_params(self, params)
        check_batch_axis(self, x)
        return x.reshape(x.shape[0], *self.out_shape(x.shape[1:]))

    def out_shape(self, in_shape: Shape) -> Shape:
        size = math.prod(check_in_shape(in_shape))
        free = size // math.prod(d for d in self.shape if d != -1)
        shape = tuple(free if d == -1 else d for d in self.shape)
        if math.prod(shape) != size:
            raise LayerError(f"{self!r} cannot take examples of shape {tuple(in_shape)}: they have {size} numbers")
        return shape


@dataclasses.dataclass(frozen=True)
class Flatten(Layer):
    """Makes each example a row: x (N, ...) -> y (N, D), D the product of the other axes.

    Raises:
        LayerError: x has no batch axis.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.Flatten().apply((), jnp.zeros((5, 8, 8))).shape
        (5, 64)
    """

    def init(self, key: Key, in_shape: Shape) -> Params:
        check_in_shape(in_shape)
        return ()

    def apply(self, params: Params, x: jax.Array, *, key: Key | None = None, train: bool = False) -> jax.Array:
        check_no_params(self, params)
        check_batch_axis(self, x)
        return x.reshape(x.shape[0], math.prod(x.shape[1:]))

    def out_shape(self, in_shape: Shape) -> Shape:
        return (math.prod(check_in_shape(in_shape)),)


def check_batch_axis(layer: Layer, x: jax.Array) -> None:
    """Raises unless `x` has an axis 0."""
    if not jnp.ndim(x):
        raise LayerError(f"{layer!r} takes x of shape (N, ...), got a number; give one example as x[None]")
