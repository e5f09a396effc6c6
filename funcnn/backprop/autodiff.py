"""Marked: autodiff is used here. The stand-in for a layer, loss or penalty without a rule, where `Rules` allow it.

The residual is what `jax.vjp` keeps; it has no names and may hold the weights.
"""

from typing import Any

import jax

from funcnn.layer import Layer, Params


def layer_fwd(layer: Layer, params: Params, x: jax.Array, ctx: Any) -> tuple[jax.Array, Any]:
    """y of a layer, and its pullback."""
    return jax.vjp(lambda p, a: layer.apply(p, a, key=ctx.key, train=ctx.train), params, x)


def loss_fwd(loss: Any, targets: jax.Array, outputs: jax.Array, ctx: Any) -> tuple[jax.Array, Any]:
    """The losses (N,), and their pullback."""
    return jax.vjp(lambda _, f: loss(f, targets), (), outputs)


def penalty_fwd(penalty: Any, nothing: tuple[()], params: Params, ctx: Any) -> tuple[jax.Array, Any]:
    """The penalty, and its pullback."""
    return jax.vjp(lambda _, p: penalty(p), nothing, params)


def bwd(what: Any, params: Params, pullback: Any, dy: jax.Array, ctx: Any) -> tuple[Params, Any]:
    """The pullback of whatever it was."""
    return pullback(dy)
