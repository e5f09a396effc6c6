"""The rules of `compose.py`: each goes through the parts of its combinator, `ctx.fwd` forward and `ctx.bwd` backward.

The chain rule of a graph: where a value is used several times, the gradients of its uses are added.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

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
    return [lax.slice_in_dim(dy, end - width, end, axis=-1) for width, end in zip(widths, ends, strict=True)]


def total(gradients: list[Any]) -> Any:
    """The sum of gradients of one structure."""
    first, *rest = gradients
    for gradient in rest:
        first = jax.tree.map(jnp.add, first, gradient)
    return first


RULES = {
    Serial: Rule(serial_fwd, serial_bwd),
    Residual: Rule(branches_fwd, branches_bwd),
    Parallel: Rule(branches_fwd, branches_bwd),
}
