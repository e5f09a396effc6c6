"""The dense layer: an affine map."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from funcnn.initializers import Initializer, draw
from funcnn.layer import (
    Key,
    Layer,
    LayerError,
    Params,
    Shape,
    against,
    check_count,
    check_last_axis,
    check_params,
    last_axis,
)


@dataclasses.dataclass(frozen=True)
class Dense(Layer):
    """Fully connected layer.

    z = x w + b, with x (..., D), w (D, K), b (K,), z (..., K).

    Args:
        features: K, the number of outputs.
        bias: whether there is a b.
        w_init: initialiser of w: a name of `jax.nn.initializers`, a number, an `Init`, or a function.
        b_init: initialiser of b, likewise; 0.1 keeps relu units alive at the start.

    Raises:
        LayerError: `features` is not positive; `x` has another last axis than w; `params` are another layer's.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> layer = fnn.Dense(3, b_init=0.1)
        >>> params = layer.init(jax.random.key(0), (2,))
        >>> layer.apply(params, jnp.zeros((1, 2)))
        Array([[0.1, 0.1, 0.1]], dtype=float32)

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), section 6.1.
    """

    features: int
    bias: bool = True
    w_init: Initializer = "he_normal"
    b_init: Initializer = "zeros"

    def __post_init__(self) -> None:
        check_count(self, "features", self.features)
        if not isinstance(self.bias, bool):
            raise LayerError(
                f"Dense's bias is True or False, got {self.bias!r}; the number of inputs is found by init, so that "
                "Dense(features) is all"
            )

    def init(self, key: Key, in_shape: Shape) -> Params:
        key_w, key_b = jax.random.split(key)
        w = draw(self.w_init, key_w, (last_axis(self, in_shape), self.features))
        return {"w": w, "b": draw(self.b_init, key_b, (self.features,))} if self.bias else {"w": w}

    def apply(self, params: Params, x: jax.Array, *, key: Key | None = None, train: bool = False) -> jax.Array:
        self.check(params, x)
        z = product(x, params["w"])
        return z + against(params["b"], z) if self.bias else z

    def check(self, params: Params, x: jax.Array) -> None:
        """Raises LayerError unless parameters and input fit."""
        shapes = {"w": (-1, self.features), "b": (self.features,)} if self.bias else {"w": (-1, self.features)}
        check_params(self, params, shapes)
        check_last_axis(self, x, params["w"].shape[0])

    def out_shape(self, in_shape: Shape) -> Shape:
        last_axis(self, in_shape)
        return (*in_shape[:-1], self.features)


def product(x: jax.Array, w: jax.Array, dtype: Any = None) -> jax.Array:
    """x w, of this dtype (None: theirs).

    Where x's last axis is split over a mesh with explicit axes, it has to be said where the result lives.
    """
    spec = jax.typeof(x).sharding.spec
    where = jax.P(*spec[:-1], *jax.typeof(w).sharding.spec[1:]) if spec and spec[-1] is not None else None
    return jnp.matmul(x, w, preferred_element_type=dtype, out_sharding=where)
