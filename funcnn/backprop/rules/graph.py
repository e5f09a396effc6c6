"""The rule of `graph.py`: where a value is used several times, the gradients of its uses are added."""

from typing import Any

import jax

from funcnn.backprop.rule import Context, Rule, Static, has_params
from funcnn.backprop.rules.compose import join_tangents, split, total
from funcnn.graph import INPUT, Graph
from funcnn.layer import Params


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


def graph_tangent(net: Graph, params: Params, residuals: Any, v: Params, vx: Any, ctx: Context) -> Any:
    """vz_j = (dz_j/dparams_j) v_j + (dz_j/dx_j) times the join of the tangents of its inputs, in forward order."""
    tangents = {INPUT: vx}
    entries = zip(net.parts(params), net.parts(v), net.nodes, residuals, strict=True)
    for part, direction, (name, node), (kept, widths) in entries:
        shape, dtype = kept[1].value[0]  # of what was joined
        likes = [((*shape[:-1], width) if node.join == "concat" else shape, dtype) for width in widths.value]
        joined = join_tangents(node.join, [tangents[source] for source in node.inputs], likes, node)
        tangents[name] = ctx.tangent(part, kept, direction.params, joined)
    return tangents[net.output]


RULES = {Graph: Rule(graph_fwd, graph_bwd, tangent=graph_tangent)}
