"""The rules of `compose.py`: each goes through the parts of its combinator, `ctx.fwd` forward and `ctx.bwd` backward.

The chain rule of a graph: where a value is used several times, the gradients of its uses are added.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from funcnn.backprop.rule import Context, Rule, Static, has_params
from funcnn.compose import INPUT, Branches, Cast, Graph, Parallel, Residual, Serial, WeightNoise, join
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


def graph_fwd(net: Graph, params: Params, x: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
    """Each node's value from those before it. Residuals: those of the nodes, and the widths of what they join."""
    values = {INPUT: x}
    residuals = []
    for part, (name, node) in zip(net.parts(params), net.nodes, strict=True):
        widths = tuple(values[source].shape[-1] if values[source].ndim else 0 for source in node.inputs)
        values[name], kept = ctx.fwd(part, net.gather(name, node, values))
        residuals.append((kept, Static(widths)))
    return values[net.output], tuple(residuals)


def graph_bwd(net: Graph, params: Params, residuals: Any, dy: jax.Array, ctx: Context) -> tuple[Params, Any]:
    """delta_i = sum over the nodes j that use i of (dz_j/dz_i)^T delta_j: from the output node back to the input.

    The parameters of a node that others share get the sum of what each use gives.
    """
    parts = net.parts(params)
    # A value's gradient is wanted where something before it learns, or where the input's is wanted.
    wanted = {INPUT: ctx.need_dx}
    for part, (name, node) in zip(parts, net.nodes, strict=True):
        wanted[name] = has_params(part) or any(wanted[source] for source in node.inputs)

    deltas: dict[str, list[jax.Array]] = {name: [] for name in wanted}
    deltas[net.output].append(dy)
    grads: dict[str, list[Params]] = {name: [] for name, _ in net.nodes}
    for part, (name, node), (kept, widths) in reversed(list(zip(parts, net.nodes, residuals, strict=True))):
        if not wanted[name]:
            continue
        need_dx = any(wanted[source] for source in node.inputs)
        dparams, dx = ctx.bwd(part, kept, total(deltas[name]), need_dx)
        grads[node.params_of or name].append(dparams)
        if dx is not None:
            for source, piece in zip(node.inputs, split(node.join, dx, widths.value), strict=True):
                if wanted[source]:
                    deltas[source].append(piece)
    dparams = {name: total(uses) if uses else params[name] for name, uses in grads.items()}
    return dparams, total(deltas[INPUT]) if ctx.need_dx else None


def cast_fwd(net: Cast, params: Params, x: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
    """y = layer(x), computed in another dtype. Residuals: the layer's, and the dtypes of y inside and of x."""
    (part,) = net.parts(params)
    y, kept = ctx.fwd(part, x.astype(net.dtype))
    return net.cast_back(y, x), (kept, Static((y.dtype, x.dtype)))


def cast_bwd(net: Cast, params: Params, residuals: Any, dy: jax.Array, ctx: Context) -> tuple[Params, Any]:
    """The gradients of the layer in its dtype, cast back to those of params and x."""
    kept, dtypes = residuals
    inside, outside = dtypes.value
    (part,) = net.parts(params)
    dparams, dx = ctx.bwd(part, kept, dy.astype(inside), ctx.need_dx)
    dparams = jax.tree.map(lambda g, p: g.astype(p.dtype), dparams, params)
    return dparams, dx.astype(outside) if ctx.need_dx else None


def weight_noise_fwd(net: WeightNoise, params: Params, x: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
    """y = layer(w + n, x). Residuals: the layer's."""
    (part,) = net.parts(net.perturb(params, ctx.key, ctx.train))
    return ctx.fwd(part, x)


def weight_noise_bwd(net: WeightNoise, params: Params, kept: Any, dy: jax.Array, ctx: Context) -> tuple[Params, Any]:
    """dw is the layer's own at w + n, for d(w + n)/dw = 1; the noise is drawn again from its key."""
    (part,) = net.parts(net.perturb(params, ctx.key, ctx.train))
    return ctx.bwd(part, kept, dy, ctx.need_dx)


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
    Graph: Rule(graph_fwd, graph_bwd),
    Cast: Rule(cast_fwd, cast_bwd),
    WeightNoise: Rule(weight_noise_fwd, weight_noise_bwd),
}
