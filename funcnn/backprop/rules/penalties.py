"""The rules of `penalties.py`. In the place of (layer, params, x) stand (penalty, (), params); dv is a scalar."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcnn import penalties
from funcnn.backprop.rule import AUTODIFF_PENALTY, Context, Rule, need_second
from funcnn.layer import Params
from funcnn.wrappers import select_leaves


def on_leaves(
    slope: Callable[[Any, jax.Array], jax.Array], curve: Callable[[Any, jax.Array, jax.Array], jax.Array]
) -> Rule:
    """The rule of a penalty that is a sum over chosen leaves: slope(penalty, w) = dv/dw, of w's shape.

    curve(penalty, w, u) = (d^2 v/dw^2) u, likewise.
    """

    def fwd(penalty: Any, nothing: tuple[()], params: Params, ctx: Context) -> tuple[jax.Array, Any]:
        return penalty(params), params

    def on_chosen(penalty: Any, function: Callable[..., jax.Array], params: Params, *trees: Params) -> Params:
        leaves, treedef = jax.tree.flatten(params)
        chosen = select_leaves(params, penalty.leaves, penalty)
        values = [
            function(*arrays).astype(arrays[0].dtype) if pick else jnp.zeros_like(arrays[0])
            for pick, *arrays in zip(chosen, leaves, *map(jax.tree.leaves, trees), strict=True)
        ]
        return jax.tree.unflatten(treedef, values)

    def bwd(penalty: Any, nothing: tuple[()], params: Params, dv: jax.Array, ctx: Context) -> tuple[tuple[()], Params]:
        return (), on_chosen(penalty, lambda w: dv * slope(penalty, w), params)

    def second(
        penalty: Any, nothing: tuple[()], params: Params, dv: jax.Array, none: tuple[()], v: Params, ctx: Context
    ) -> tuple[tuple[()], Params]:
        return (), on_chosen(penalty, lambda w, u: dv * curve(penalty, w, u), params, v)

    return Rule(fwd, bwd, second=second, elementwise=True)


def l2(penalty: penalties.L2, w: jax.Array) -> jax.Array:
    """scale w."""
    return penalty.scale * w


def l1(penalty: penalties.L1, w: jax.Array) -> jax.Array:
    """scale sign(w), 0 at 0."""
    return penalty.scale * jnp.sign(w)


def l2_curve(penalty: penalties.L2, w: jax.Array, u: jax.Array) -> jax.Array:
    """scale u."""
    return penalty.scale * u


def l1_curve(penalty: penalties.L1, w: jax.Array, u: jax.Array) -> jax.Array:
    """0, but at the kink."""
    return jnp.zeros_like(u)


def sum_fwd(penalty: penalties.Sum, nothing: tuple[()], params: Params, ctx: Context) -> tuple[jax.Array, Any]:
    """v = sum_i v_i. Residuals: those of the terms."""
    values, residuals = zip(*(_rule(term, ctx).fwd(term, (), params, ctx) for term in penalty.terms), strict=True)
    return jnp.sum(jnp.stack(values)), residuals


def sum_bwd(
    penalty: penalties.Sum, nothing: tuple[()], residuals: Any, dv: jax.Array, ctx: Context
) -> tuple[tuple[()], Params]:
    """dv/dw = sum_i dv_i/dw."""
    grads = [
        _rule(term, ctx).bwd(term, (), kept, dv, ctx)[1] for term, kept in zip(penalty.terms, residuals, strict=True)
    ]
    return (), _sum(grads)


def sum_second(
    penalty: penalties.Sum, nothing: tuple[()], residuals: Any, dv: jax.Array, none: tuple[()], v: Params, ctx: Context
) -> tuple[tuple[()], Params]:
    """(d^2 v/dw^2) u = sum_i (d^2 v_i/dw^2) u."""
    return (), _sum(
        [
            need_second(_rule(term, ctx), term)(term, (), kept, dv, (), v, ctx)[1]
            for term, kept in zip(penalty.terms, residuals, strict=True)
        ]
    )


def _sum(trees: list[Params]) -> Params:
    return jax.tree.map(lambda *terms: sum(terms[1:], start=terms[0]), *trees)


def _rule(term: penalties.Penalty, ctx: Context) -> Rule:
    return ctx.rules.find(term) or AUTODIFF_PENALTY


RULES = {
    penalties.L1: on_leaves(l1, l1_curve),
    penalties.L2: on_leaves(l2, l2_curve),
    penalties.Sum: Rule(sum_fwd, sum_bwd, second=sum_second),
}
