"""The rules of `layers/shape.py`."""

from typing import Any

import jax

from funcnn.backprop.rule import Context, Rule, Static
from funcnn.backprop.rules.noise import linear
from funcnn.layer import Layer, Params
from funcnn.layers.shape import Flatten, Reshape


def reshape_fwd(layer: Layer, params: Params, x: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
    """y (N, *shape). Residual: x's shape, no array."""
    return layer.apply(params, x), Static(x.shape)


def reshape_bwd(layer: Layer, params: Params, shape: Static, dy: jax.Array, ctx: Context) -> tuple[Params, Any]:
    """dx is dy in x's shape: the same numbers, elsewhere."""
    return (), dy.reshape(shape.value)


def reshape_tangent(layer: Layer, params: Params, shape: Static, v: Params, vx: jax.Array, ctx: Context) -> jax.Array:
    """vy is vx in y's shape."""
    return layer.apply(params, vx)


RULE = Rule(reshape_fwd, reshape_bwd, tangent=reshape_tangent, second=linear, elementwise=True)
RULES = {Flatten: RULE, Reshape: RULE}
