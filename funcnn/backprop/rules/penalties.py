"""The rules of `penalties.py`. In the place of (layer, params, x) stand (penalty, (), params); dv is a scalar."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcnn import penalties
from funcnn.backprop.rule import AUTODIFF_PENALTY, Context, Rule
from funcnn.layer import Params
from funcnn.wrappers import select_leaves


def on_leaves(slope: Callable[[Any, jax.Array], jax.Array]) -> Rule:
    """The rule of a penalty that is a sum over chosen leaves: slope(penalty, w) = dv/dw, of w's shape."""

    def fwd(penalty: Any, nothing: tuple[()], params: Params, ctx: Context) -> tuple[jax.Array, Any]:
        return penalty(params), params

    def bwd(penalty: Any, nothing: tuple[()], params: Params, dv: jax.Array, ctx: Context) -> tuple[tuple[()], Params]:
        leaves, treedef = jax.tree.flatten(params)
        chosen = select_leaves(params, penalty.leaves, penalty)
        grads = [
            (dv * slope(penalty, w)).astype(w.dtype) if pick else jnp.zeros_like(w)
            for w, pick in zip(leaves, chosen, strict=True)
        ]
        return (), jax.tree.unflatten(treedef, grads)

    return Rule(fwd, bwd)


def l2(penalty: penalties.L2, w: jax.Array) -> jax.Array:
    """scale w."""
    return penalty.scale * w


def l1(penalty: penalties.L1, w: jax.Array) -> jax.Array:
    """scale sign(w), 0 at 0."""
    return penalty.scale * jnp.sign(w)


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
    return (), jax.tree.map(lambda *terms: sum(terms[1:], start=terms[0]), *grads)


def _rule(term: penalties.Penalty, ctx: Context) -> Rule:
    return ctx.rules.find(term) or AUTODIFF_PENALTY


RULES = {
    penalties.L1: on_leaves(l1),
    penalties.L2: on_leaves(l2),
    penalties.Sum: Rule(sum_fwd, sum_bwd),
}
