"""The rule of `repeat.py`: one loop forward, one loop backward, and between them what the blocks keep."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from funcnn.backprop.outer import is_outer
from funcnn.backprop.passes import Along, factors_of_layers
from funcnn.backprop.rule import Context, Rule, Static
from funcnn.layer import Params, fold
from funcnn.repeat import Repeat

INPUT, OUTPUT, OTHER = "input", "output", "other"  # what a residual of the block is: its input, its output, or neither


def _inside(ctx: Context, number: Any, leaf: Any = None, observe: Any = None) -> Context:
    """What block number k is told: it has the place of all of them, and a key of its own."""
    return dataclasses.replace(ctx, key=fold(ctx.key, number), need_dx=True, observe=observe, leaf=leaf)


def repeat_fwd(net: Repeat, params: Params, x: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
    """z^{k+1} = block(params_k, z^k). Residuals: those of the blocks, stacked.

    A block's output is the next one's input: where both are residuals they are kept once.
    """
    net.check(params)
    return _forward(net, net.numbers(), params, x, ctx)


def repeat_bwd(net: Repeat, params: Params, residuals: Any, dy: jax.Array, ctx: Context) -> tuple[Params, Any]:
    """delta^k = (dz^{k+1}/dz^k)^T delta^{k+1}, for k = n - 1, ..., 0.

    Source: Goodfellow, Bengio and Courville (2016), algorithm 6.4.
    """
    dparams, dx = _backward(net, net.numbers(), params, residuals, dy, ctx)
    return dparams, dx if ctx.need_dx else None


def _forward(net: Repeat, numbers: jax.Array, params: Params, x: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
    """Those of the blocks whose numbers and parameters these are, and their residuals."""
    kinds: list[Any] = []

    def one(z: jax.Array, numbered: Any) -> tuple[jax.Array, Any]:
        k, own = numbered
        y, residuals = _inside(ctx, k).fwd(net.part(own), z)
        leaves, treedef = jax.tree.flatten(residuals)
        roles = tuple(INPUT if leaf is z else OUTPUT if leaf is y else OTHER for leaf in leaves)
        kinds[:] = [roles, treedef]
        inputs = z if set(roles) & {INPUT, OUTPUT} else None
        return net.like_input(y, z), (inputs, [leaf for leaf, role in zip(leaves, roles, strict=True) if role == OTHER])

    y, (inputs, others) = lax.scan(one, x, (numbers, params))
    return y, (inputs, others, y if OUTPUT in kinds[0] else None, Static(tuple(kinds)))


def _backward(
    net: Repeat, numbers: jax.Array, params: Params, residuals: Any, dy: jax.Array, ctx: Context, leaf: Any = None
) -> tuple[Params, Any]:
    inputs, others, last, kinds = residuals

    def one(carry: Any, numbered: Any) -> tuple[Any, Params]:
        delta, output = carry
        k, own, z, rest = numbered
        dparams, delta = _inside(ctx, k, leaf).bwd(net.part(own), _joined(kinds.value, z, output, rest), delta, True)
        return (delta, None if output is None else z), dparams

    (dx, _), dparams = lax.scan(one, (dy, last), (numbers, params, inputs, others), reverse=True)
    return dparams, dx


def _joined(kinds: Any, z: Any, output: Any, rest: list[Any]) -> Any:
    """A block's residuals, of its input, its output and what else was kept."""
    roles, treedef = kinds
    left = iter(rest)
    return treedef.unflatten([z if role == INPUT else output if role == OUTPUT else next(left) for role in roles])


def repeat_rows(net: Repeat, params: Params, residuals: Any, dy: jax.Array, ctx: Context) -> Params:
    """Those of the blocks, stacked."""
    factors, _ = _backward(net, net.numbers(), params, residuals, dy, ctx, factors_of_layers)
    return jax.tree.map(lambda outer: outer.stacked(net.n), factors, is_leaf=is_outer)


def repeat_tangent(net: Repeat, params: Params, residuals: Any, v: Params, vx: Any, ctx: Context) -> Any:
    """vz^{k+1} = (dz^{k+1}/dz^k) vz^k + (dz^{k+1}/dparams_k) v_k."""
    return _tangents(net, params, residuals, v, vx, ctx)[0]


def _tangents(net: Repeat, params: Params, residuals: Any, v: Params, vx: Any, ctx: Context) -> Any:
    """Of the output, and of each block's input, stacked."""
    inputs, outputs, others, kinds = _by_block(residuals)
    v = jax.tree.map(jnp.zeros_like, params) if v is None else v

    def one(vz: jax.Array, numbered: Any) -> tuple[jax.Array, jax.Array]:
        k, own, direction, z, output, rest = numbered
        moved = _inside(ctx, k).tangent(net.part(own), _joined(kinds.value, z, output, rest), direction, vz)
        return jnp.zeros_like(vz) if moved is None else moved, vz

    ((shape, dtype), _) = _likes(kinds)
    start = jnp.zeros(shape, dtype) if vx is None else vx
    return lax.scan(one, start, (net.numbers(), params, v, inputs, outputs, others))


def repeat_second(
    net: Repeat, params: Params, residuals: Any, dy: jax.Array, v: Params, vx: Any, ctx: Context
) -> tuple[Params, Any]:
    """How delta^k and dparams_k change along (v, vx): back once for the deltas, forth for what moves, back for both.

    R{delta^k} = (dz^{k+1}/dz^k)^T R{delta^{k+1}} + R{dz^{k+1}/dz^k}^T delta^{k+1},  R{delta^n} = 0
    """
    inputs, outputs, others, kinds = _by_block(residuals)
    v = jax.tree.map(jnp.zeros_like, params) if v is None else v
    _, moved = _tangents(net, params, residuals, v, vx, ctx)

    def one(carry: Any, numbered: Any) -> tuple[Any, Params]:
        delta, change = carry
        k, own, z, output, rest, direction, vz = numbered
        along, kept = Along(), _joined(kinds.value, z, output, rest)
        seen = _inside(ctx, k, observe=along.observe)
        _, before = seen.bwd(net.part(own), kept, delta, True)
        seen.tangent(net.part(own), kept, direction, vz)
        dparams, change = _inside(ctx, k, along.leaf).bwd(net.part(own), kept, change, True)
        return (before, change), dparams

    blocks = net.numbers(), params, inputs, outputs, others, v, moved
    (_, change), dparams = lax.scan(one, (dy, jnp.zeros_like(dy)), blocks, reverse=True)
    return dparams, change


def _by_block(residuals: Any) -> Any:
    """Inputs and outputs of the blocks, and their other residuals: the output of a block is the input of the next."""
    inputs, others, last, kinds = residuals
    return inputs, None if last is None else jnp.concatenate([inputs[1:], last[None]]), others, kinds


def _likes(kinds: Static) -> Any:
    """Shape and dtype of a block's input and output, which `Context.fwd` keeps beside its residuals."""
    _, treedef = kinds.value
    return treedef.unflatten([None] * treedef.num_leaves)[1].value


def in_segments(length: int | None = None) -> Rule:
    """The rule that keeps the input of each `length`-th block, and runs those between once more on the way back."""

    def split(net: Repeat, tree: Any) -> tuple[Any, Any]:
        """Arrays of n blocks as (segments, length, ...), and those that are left over (fewer than length, ...)."""
        size = min(length or math.isqrt(net.n - 1) + 1, net.n)
        whole = net.n - net.n % size
        segments = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, size, *leaf.shape[1:]), tree)
        return segments, jax.tree.map(lambda leaf: leaf[whole:], tree)

    def fwd(net: Repeat, params: Params, x: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
        net.check(params)
        segments, rest = split(net, (net.numbers(), params))

        def one(z: jax.Array, segment: Any) -> tuple[jax.Array, jax.Array]:
            return _forward(net, segment[0], segment[1], z, ctx)[0], z

        z, inputs = lax.scan(one, x, segments)
        return _forward(net, rest[0], rest[1], z, ctx)[0], (inputs, z)

    def bwd(net: Repeat, params: Params, inputs: Any, dy: jax.Array, ctx: Context) -> tuple[Params, Any]:
        segments, rest = split(net, (net.numbers(), params))

        def back(delta: jax.Array, segment: Any) -> tuple[jax.Array, Params]:
            (numbers, own), z = segment
            _, residuals = _forward(net, numbers, own, z, ctx)
            dparams, delta = _backward(net, numbers, own, residuals, delta, ctx)
            return delta, dparams

        delta, last = back(dy, (rest, inputs[1]))
        dx, first = lax.scan(back, delta, (segments, inputs[0]), reverse=True)

        def joined(a: jax.Array, b: jax.Array) -> jax.Array:
            a = a.reshape(-1, *a.shape[2:])
            return jnp.concatenate([a, b]) if len(b) else a

        return jax.tree.map(joined, first, last), dx if ctx.need_dx else None

    # The others keep all blocks' residuals, for the time that they take.
    def rows(net: Repeat, params: Params, inputs: Any, dy: jax.Array, ctx: Context) -> Params:
        return repeat_rows(net, params, repeat_fwd(net, params, inputs[0][0], ctx)[1], dy, ctx)

    def tangent(net: Repeat, params: Params, inputs: Any, v: Params, vx: Any, ctx: Context) -> Any:
        return repeat_tangent(net, params, repeat_fwd(net, params, inputs[0][0], ctx)[1], v, vx, ctx)

    def second(net: Repeat, params: Params, inputs: Any, dy: jax.Array, v: Params, vx: Any, ctx: Context) -> Any:
        return repeat_second(net, params, repeat_fwd(net, params, inputs[0][0], ctx)[1], dy, v, vx, ctx)

    return Rule(fwd, bwd, rows, tangent, second)


RULES = {Repeat: Rule(repeat_fwd, repeat_bwd, repeat_rows, repeat_tangent, repeat_second)}
