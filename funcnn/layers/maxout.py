"""Maxout: a learned convex activation."""

import dataclasses

import jax
import jax.numpy as jnp

from funcnn.initializers import Initializer, draw
from funcnn.layer import Key, Layer, Params, Shape, against, check_count, check_last_axis, check_params, last_axis


@dataclasses.dataclass(frozen=True)
class Maxout(Layer):
    """Each unit is the largest of P affine pieces.

    y_k = max_p z_pk, z = x w + b, with x (..., D), w (D, P, K), b (P, K), z (..., P, K), y (..., K). A tie shares its
    gradient evenly among the pieces that tie, as `jnp.max` does.

    Args:
        features: K, the number of units.
        pieces: P, the number of affine pieces of each unit.
        w_init: initialiser of w, seen as (D, P K).
        b_init: initialiser of b.

    Raises:
        LayerError: `features` or `pieces` is not positive; `x` or `params` do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> layer = fnn.Maxout(1, pieces=2)
        >>> relu = {"w": jnp.array([[[0.0], [1.0]]]), "b": jnp.zeros((2, 1))}  # w1 = b1 = 0: relu is a special case
        >>> layer.apply(relu, jnp.array([[-3.0], [2.0]]))
        Array([[0.],
               [2.]], dtype=float32)

    Source: Goodfellow et al., Maxout Networks (2013).
    """

    features: int
    pieces: int
    w_init: Initializer = "he_normal"
    b_init: Initializer = "zeros"

    def __post_init__(self) -> None:
        check_count(self, "features", self.features)
        check_count(self, "pieces", self.pieces)

    def init(self, key: Key, in_shape: Shape) -> Params:
        key_w, key_b = jax.random.split(key)
        d, p, k = last_axis(self, in_shape), self.pieces, self.features
        # Drawn as a (D, P K) matrix: in three axes the initialisers would count the pieces into the fan-in.
        w = draw(self.w_init, key_w, (d, p * k)).reshape(d, p, k)
        return {"w": w, "b": draw(self.b_init, key_b, (p, k))}

    def pre_activation(self, params: Params, x: jax.Array) -> jax.Array:
        """z (..., P, K), the affine pieces."""
        check_params(self, params, {"w": (-1, self.pieces, self.features), "b": (self.pieces, self.features)})
        check_last_axis(self, x, params["w"].shape[0])
        z = jnp.tensordot(x, params["w"], 1)
        return z + against(params["b"], z)

    def apply(self, params: Params, x: jax.Array, *, key: Key | None = None, train: bool = False) -> jax.Array:
        return jnp.max(self.pre_activation(params, x), axis=-2)

    def out_shape(self, in_shape: Shape) -> Shape:
        last_axis(self, in_shape)
        return (*in_shape[:-1], self.features)
