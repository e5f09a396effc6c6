"""Radial basis functions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnn.initializers import Init, Initializer, draw
from funcnn.layer import (
    Key,
    Layer,
    LayerError,
    Params,
    Shape,
    check_count,
    check_in_shape,
    check_last_axis,
    check_no_params,
    check_params,
    float_dtype,
    last_axis,
)


@dataclasses.dataclass(frozen=True)
class Rbf(Layer):
    """Gaussian radial basis functions around centres.

    y_k = exp(-(epsilon |x - c_k|)^2), with x (..., D), c (K, D), y (..., K).

    Args:
        features: K, the number of centres.
        epsilon: the inverse width, in units of 1 / distance.
        centres: None, and c is learned, `{"c": (K, D)}`; or K rows of D numbers, and c is held fixed: the description
            keeps it and there are no parameters.
        c_init: initialiser of learned centres.

    Raises:
        LayerError: `features` or `epsilon` is not positive; `centres` are not (features, D); `x` or `params` do not
            fit.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.Rbf(2, epsilon=1.0, centres=[[0.0], [1.0]]).apply((), jnp.array([[0.0]]))
        Array([[1.        , 0.36787945]], dtype=float32)

    Source: Broomhead and Lowe, Multivariable Functional Interpolation and Adaptive Networks (1988).
    """

    features: int
    epsilon: float
    centres: Any = None
    c_init: Initializer = Init("normal", stddev=1.0)

    def __post_init__(self) -> None:
        check_count(self, "features", self.features)
        if not self.epsilon > 0:
            raise LayerError(f"Rbf's epsilon is positive, got {self.epsilon!r}")
        if self.centres is not None:
            centres = np.asarray(self.centres, float)
            if centres.ndim != 2 or len(centres) != self.features:
                raise LayerError(f"Rbf's centres have shape ({self.features}, D), got {centres.shape}")
            # As nested tuples the description still hashes, compares, prints and has a JSON form.
            object.__setattr__(self, "centres", tuple(map(tuple, centres.tolist())))

    def init(self, key: Key, in_shape: Shape) -> Params:
        d = last_axis(self, in_shape)
        if self.centres is None:
            return {"c": draw(self.c_init, key, (self.features, d))}
        self._check_fixed(d)
        return ()

    def centre_array(self, params: Params, x: jax.Array) -> jax.Array:
        """c (K, D), learned or fixed."""
        if self.centres is not None:
            check_no_params(self, params)
            self._check_fixed(jnp.shape(x)[-1] if jnp.ndim(x) else 0)
            return jnp.asarray(self.centres, float_dtype(x))
        check_params(self, params, {"c": (self.features, -1)})
        check_last_axis(self, x, params["c"].shape[-1])
        return params["c"]

    def apply(self, params: Params, x: jax.Array, *, key: Key | None = None, train: bool = False) -> jax.Array:
        # The difference itself, not |x|^2 - 2 x c + |c|^2: that form loses all digits when x is near c and far from 0.
        c = self.centre_array(params, x)
        difference = x[..., None, :] - c.reshape((1,) * (x.ndim - 1) + c.shape)
        return jnp.exp(-jnp.sum(jnp.square(self.epsilon * difference), axis=-1))

    def out_shape(self, in_shape: Shape) -> Shape:
        last_axis(self, in_shape)
        return (*in_shape[:-1], self.features)

    def multiply_adds(self, in_shape: Shape) -> int:
        in_shape = check_in_shape(in_shape)
        return int(np.prod(in_shape)) * self.features

    def _check_fixed(self, width: int) -> None:
        if len(self.centres[0]) != width:
            raise LayerError(f"Rbf's centres have {len(self.centres[0])} coordinates and x has a last axis of {width}")
