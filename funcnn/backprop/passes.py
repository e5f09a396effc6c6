"""What goes back through layers in the place of their gradients: factors by example, slopes, second derivatives."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from funcnn.backprop.outer import Outer
from funcnn.backprop.rule import Context, Rule, is_leaf, need_second
from funcnn.compose import Part
from funcnn.layer import Params


def factors_of_layers(ctx: Context, part: Part, rule: Rule, residuals: Any, dy: jax.Array) -> tuple[Params, Any]:
    """`Context.leaf`: the gradient of a layer's parameters for each example, in the place of their sum."""
    _, dx = rule.bwd(part.layer, part.params, residuals, dy, ctx)
    return layer_rows(ctx, part, rule, residuals, dy), dx


def layer_rows(ctx: Context, part: Part, rule: Rule, residuals: Any, dy: jax.Array) -> Params:
    """By the layer's rule; or by its `bwd` of each example's delta with zeros for the others, N times as much work.

    Of the residuals nothing is known then, such as which of their axes is that of the examples.
    """
    if not jax.tree.leaves(part.params):
        return part.params
    if rule.rows is not None:
        return rule.rows(part.layer, part.params, residuals, dy, ctx)

    def one(alone: jax.Array) -> Params:
        delta = jnp.where(alone.reshape(-1, *(1,) * (dy.ndim - 1)), dy, 0)
        return rule.bwd(part.layer, part.params, residuals, delta, ctx)[0]

    each = jax.vmap(one)(jnp.eye(len(dy), dtype=bool))
    return jax.tree.map(lambda parameter, g: Outer.of(parameter, None, g), part.params, each)


def slope_of(rule: Rule, part: Part, a: jax.Array, ctx: Context) -> jax.Array:
    """f'(a) of an elementwise layer, for each number (N, ...)."""
    _, residuals = rule.fwd(part.layer, part.params, a, ctx)
    return rule.bwd(part.layer, part.params, residuals, jnp.ones_like(a), ctx)[1]


@dataclasses.dataclass(frozen=True)
class Along:
    """How a backward pass changes along a direction: R{(dparams, dx)} = bwd(R{dy}) + second(dy, R{params}, R{x}).

    It first sees each layer's delta and what moves in it, as `Context.observe`, and is then the pass's `Context.leaf`.

    Attributes:
        deltas: dy of each layer, by path.
        moved: R{params} and R{x} of each layer where something moves, by path.
    """

    deltas: dict[tuple[str, ...], jax.Array] = dataclasses.field(default_factory=dict)
    moved: dict[tuple[str, ...], tuple[Params, Any]] = dataclasses.field(default_factory=dict)

    def observe(self, ctx: Context, part: Part, rule: Rule, **values: Any) -> None:
        """`Context.observe`."""
        if is_leaf(part, rule):
            if "dy" in values:
                self.deltas[ctx.path] = values["dy"]
            elif "vx" in values:
                self.moved[ctx.path] = values["vparams"], values["vx"]

    def leaf(self, ctx: Context, part: Part, rule: Rule, residuals: Any, dy: jax.Array) -> tuple[Params, Any]:
        """`Context.leaf`, where dy is the change of the layer's delta."""
        dparams, dx = rule.bwd(part.layer, part.params, residuals, dy, ctx)
        if ctx.path not in self.moved:
            return dparams, dx
        second = need_second(rule, part.layer, "/".join(ctx.path))
        more, more_dx = second(part.layer, part.params, residuals, self.deltas[ctx.path], *self.moved[ctx.path], ctx)
        dparams = dparams if more is None else jax.tree.map(jnp.add, dparams, more)
        return dparams, dx if more_dx is None or dx is None else dx + more_dx
