"""The rules of `layers/shape.py`."""

from typing import Any

import jax

from funcnn.backprop.rule import Context, Rule, Static
from funcnn.layer import Layer, Params
from funcnn.layers.shape import Flatten, Reshape


def reshape_fwd(layer: Layer, params: Params, x: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
    """y (N, *shape). Residual: x's shape, no array."""
    return layer.apply(params, x), Static(x.shape)


def reshape_bwd(layer: Layer, params: Params, shape: Static, dy: jax.Array, ctx: Context) -> tuple[Params, Any]:
    """dx is dy in x's shape: the same numbers, elsewhere."""
    return (), dy.reshape(shape.value)


RULES = {Flatten: Rule(reshape_fwd, reshape_bwd), Reshape: Rule(reshape_fwd, reshape_bwd)}
