"""The rules of `compose.py`: each goes through the parts of its combinator, `ctx.fwd` forward and `ctx.bwd` backward.

The chain rule of a graph: where a value is used several times, the gradients of its uses are added.
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from funcnn.backprop.outer import Addend
from funcnn.backprop.rule import Context, Rule, Static, has_params
from funcnn.compose import Branches, Parallel, Residual, Serial, join
from funcnn.layer import Params


def serial_fwd(net: Serial, params: Params, x: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
    """z^{l+1} = f^l(z^l). Residuals: those of the layers."""
    residuals = []
    for part in net.parts(params):
        x, kept = ctx.fwd(part, x)
        residuals.append(kept)
    return x, tuple(residuals)


def serial_bwd(net: Serial, params: Params, residuals: Any, delta: jax.Array, ctx: Context) -> tuple[Params, Any]:
    """delta^l = (dz^{l+1}/dz^l)^T delta^{l+1}, from the last layer to the first that learns.

    Source: Goodfellow, Bengio and Courville (2016), algorithm 6.4.
    """
    parts = net.parts(params)
    grads: list[Params] = [part.params for part in parts]
    first = next((i for i, part in enumerate(parts) if has_params(part)), len(parts))
    for i in reversed(range(0 if ctx.need_dx else first, len(parts))):
        grads[i], delta = ctx.bwd(parts[i], residuals[i], delta, need_dx=ctx.need_dx or i > first)
    return tuple(grads), delta


def branches_fwd(net: Branches, params: Params, x: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
    """y = the sum, or the concatenation, of f_i(x). Residuals: those of the branches, and their widths."""
    ys, residuals = zip(*(ctx.fwd(part, x) for part in net.parts(params)), strict=True)
    return join(net.join, list(ys), net), (residuals, Static(tuple(y.shape[-1] if y.ndim else 0 for y in ys)))


def branches_bwd(net: Branches, params: Params, residuals: Any, dy: jax.Array, ctx: Context) -> tuple[Params, Any]:
    """dx = sum_i (df_i/dx)^T dy_i, with dy_i = dy for a sum, or the i-th piece of dy for a concatenation."""
    kept, widths = residuals
    dys = split(net.join, dy, widths.value)
    pairs = [ctx.bwd(part, r, dy_i, ctx.need_dx) for part, r, dy_i in zip(net.parts(params), kept, dys, strict=True)]
    return net.assemble([dparams for dparams, _ in pairs]), total([dx for _, dx in pairs]) if ctx.need_dx else None


def split(how: str, dy: jax.Array, widths: tuple[int, ...]) -> list[jax.Array]:
    """The gradients for what was joined: undoes `compose.join`."""
    if how == "add":
        return [dy] * len(widths)
    ends = [sum(widths[: i + 1]) for i in range(len(widths))]
    return [piece(dy, end - width, end) for width, end in zip(widths, ends, strict=True)]


def piece(dy: Any, begin: int, end: int) -> Any:
    """dy[..., begin:end]."""
    return dy.piece(begin, end) if isinstance(dy, Addend) else lax.slice_in_dim(dy, begin, end, axis=-1)


def total(gradients: list[Any]) -> Any:
    """The sum of gradients of one structure."""
    first, *rest = gradients
    for gradient in rest:
        first = jax.tree.map(operator.add, first, gradient, is_leaf=lambda node: isinstance(node, Addend))
    return first


def serial_tangent(net: Serial, params: Params, residuals: Any, v: Params, vx: Any, ctx: Context) -> Any:
    """vz^{l+1} = (dz^{l+1}/dz^l) vz^l + (dz^{l+1}/dparams^l) v^l, from the first layer to the last."""
    for part, direction, kept in zip(net.parts(params), net.parts(v), residuals, strict=True):
        vx = ctx.tangent(part, kept, direction.params, vx)
    return vx


def branches_tangent(net: Branches, params: Params, residuals: Any, v: Params, vx: Any, ctx: Context) -> Any:
    """vy = the sum, or the concatenation, of those of the branches."""
    kept, _ = residuals
    parts = zip(net.parts(params), net.parts(v), kept, strict=True)
    vys = [ctx.tangent(part, r, direction.params, vx) for part, direction, r in parts]
    return join_tangents(net.join, vys, [r[1].value[1] for r in kept], net)


def join_tangents(how: str, tangents: list[Any], likes: list[tuple[tuple[int, ...], Any]], owner: Any) -> Any:
    """`compose.join` of tangents, None where one is zero, of values of these shapes and dtypes; None where all are."""
    if all(vy is None for vy in tangents):
        return None
    return join(how, [jnp.zeros(*like) if v is None else v for v, like in zip(tangents, likes, strict=True)], owner)


RULES = {
    Serial: Rule(serial_fwd, serial_bwd, tangent=serial_tangent),
    Residual: Rule(branches_fwd, branches_bwd, tangent=branches_tangent),
    Parallel: Rule(branches_fwd, branches_bwd, tangent=branches_tangent),
}
