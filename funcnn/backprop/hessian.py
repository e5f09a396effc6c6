"""The diagonal of the Hessian: its square root goes backward through the network, and grows where layers bend."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from funcnn import penalties
from funcnn.backprop.engine import Run, check_objective, run
from funcnn.backprop.outer import Addend, at_least_float32, basis, is_outer, sum_of_columns, sum_of_squares_of
from funcnn.backprop.passes import layer_rows
from funcnn.backprop.products import hessian_product, loss_hessian, need_rule
from funcnn.backprop.rule import Context, LossRule, Rule, RuleError, Rules, as_rules, is_leaf, need_second
from funcnn.backprop.rules import RULES
from funcnn.compose import Part
from funcnn.layer import Key, Params
from funcnn.objective import Batch, Objective, unpack

LOSS = ("loss",)  # the origin of the loss's own columns: no path of a layer, since it is one tuple longer


@dataclasses.dataclass(frozen=True)
class Columns:
    """sum_c sign_c s_c s_c^T for each example: sign (C, N), None where all are 1; s (C, N, ...)."""

    sign: jax.Array | None
    s: jax.Array


@dataclasses.dataclass(frozen=True)
class Diagonal:
    """A diagonal matrix for each example, as the columns r_i e_i: sign (N, ...), r (N, ...)."""

    sign: jax.Array
    r: jax.Array

    def columns(self) -> Columns:
        """The same, a column for each number of an example."""
        return Columns(self.sign.reshape(len(self.r), -1).T, basis(self.r))


@dataclasses.dataclass(frozen=True)
class Curvature(Addend):
    """The objective's second derivative for a value in the network, as a sum over where it came from.

    Columns of one origin that reach a value by several ways are added there, as deltas are.
    """

    terms: Mapping[Any, Columns | Diagonal]

    def __add__(self, other: "Curvature") -> "Curvature":
        terms = dict(self.terms)
        for origin, term in other.terms.items():
            terms[origin] = _added(terms[origin], term) if origin in terms else term
        return Curvature(terms)

    def astype(self, dtype: Any) -> "Curvature":
        """The same in another dtype."""
        return Curvature({o: jax.tree.map(lambda a: a.astype(dtype), t) for o, t in self.terms.items()})

    def piece(self, begin: int, end: int) -> "Curvature":
        """Of the numbers from `begin` to `end` of the last axis."""
        terms = {origin: _columns(term) for origin, term in self.terms.items()}
        return Curvature({o: Columns(t.sign, t.s[..., begin:end]) for o, t in terms.items()})


for _kind in (Columns, Diagonal):
    jax.tree_util.register_dataclass(_kind)


@dataclasses.dataclass(frozen=True)
class Once(Addend):
    """The diagonal for one parameter, where it is used once; None for one that is used in several places."""

    value: jax.Array | None

    def __add__(self, other: "Once") -> "Once":
        return Once(None)

    def astype(self, dtype: Any) -> "Once":
        """The same in another dtype."""
        return self if self.value is None else Once(self.value.astype(dtype))


def hessian_diagonal(
    objective: Objective, *, rules: Rules = RULES, extras: Mapping[str, Any] | None = None
) -> Callable[..., Params]:
    """The diagonal of the objective's Hessian for the parameters, exactly.

    H_x = J^T H_y J + sum_k dy_k (d^2 y_k / dx^2) for each layer, from the output back: the square root of H goes
    through the rules as so many deltas, to which a layer that bends adds its own, one for each unit. A parameter that
    is used in several places, or in a `Repeat`, takes a product with second derivatives for each of its numbers.

    Args:
        objective: net + loss + penalty.
        rules: the backward pass.
        extras: a pytree for each path whose rule asks for one.

    Returns:
        A function `(params, batch, *, key=None, train=False)` -> a tree of params' structure and shapes. Of piecewise
        linear networks it is the diagonal of the Gauss-Newton matrix, and costs as much.

    Raises:
        RuleError: the rule of a layer, of the loss or of the penalty says too little of second derivatives.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> objective = fnn.Objective(fnn.Dense(1, bias=False), fnn.losses.squared_error, fnn.penalties.l2(0.5))
        >>> params, batch = {"w": jnp.array([[3.0]])}, (jnp.array([[2.0]]), jnp.array([[1.0]]))
        >>> print(fnn.backprop.hessian_diagonal(objective)(params, batch)["w"])
        [[8.5]]

    Source: Dangel, Kunstner and Hennig, BackPACK (2020), appendix A.3.
    """
    check_objective(objective)

    def function(params: Params, batch: Batch, *, key: Key | None = None, train: bool = False) -> Params:
        deltas: dict[tuple[str, ...], jax.Array] = {}

        def observe(ctx: Context, part: Part, rule: Rule, **values: Any) -> None:
            if is_leaf(part, rule) and "dy" in values:
                deltas[ctx.path] = values["dy"]

        def leaf(ctx: Context, part: Part, rule: Rule, residuals: Any, dy: Curvature) -> tuple[Params, Any]:
            diagonal = _of_parameters(ctx, part, rule, residuals, dy, deltas[ctx.path])
            if not ctx.need_dx:
                return diagonal, None
            through = {origin: _through(ctx, part, rule, residuals, term) for origin, term in dy.terms.items()}
            bend = _bend(ctx, part, rule, residuals, deltas[ctx.path])
            return diagonal, Curvature(through | ({} if bend is None else {("layer", *ctx.path): bend}))

        root = Context(as_rules(rules), key=key, train=train, need_dx=False, extras=extras or {}, observe=observe)
        done = run(objective, params, batch, root)
        ctx = dataclasses.replace(done.root, observe=None, leaf=leaf)
        start = Curvature({LOSS: _of_the_loss(objective, batch, done)})
        found, _ = ctx.bwd(done.net, done.residuals, start, False)
        outcome: list[Once] = jax.tree.leaves(found, is_leaf=_is_once)
        product = hessian_product(dataclasses.replace(objective, penalty=None), rules=rules, extras=extras)
        leaves, treedef = jax.tree.flatten(params)
        values = [
            _by_products(lambda v: product(params, batch, v, key=key, train=train), params, i)
            if one.value is None
            else one.value.astype(leaf.dtype)
            for i, (leaf, one) in enumerate(zip(leaves, outcome, strict=True))
        ]
        diagonal = jax.tree.unflatten(treedef, values)
        if objective.penalty is not None:
            diagonal = jax.tree.map(jnp.add, diagonal, _of_the_penalty(objective, params, done))
        return diagonal

    return function


def _of_the_loss(objective: Objective, batch: Batch, done: Run) -> Columns:
    """The root of m_n H_n; by its eigenvectors, where H_n is not positive."""
    rule, f, (_, targets, _) = need_rule(done, objective.loss), done.outputs, unpack(batch)
    hessian = loss_hessian(objective, batch, done)
    root = rule.root(objective.loss, targets, f) if isinstance(rule, LossRule) and rule.root is not None else None
    columns = _signed_root(hessian, f) if root is None else Columns(None, root)
    weight = jnp.sqrt(done.shares).reshape(1, -1, *(1,) * (f.ndim - 1)).astype(f.dtype)
    return Columns(columns.sign, columns.s * weight)


def _of_the_penalty(objective: Objective, params: Params, done: Run) -> Params:
    rule = need_rule(done, objective.penalty)
    terms = objective.penalty.terms if isinstance(objective.penalty, penalties.Sum) else (objective.penalty,)
    if not all(need_rule(done, term).elementwise for term in terms):
        raise RuleError(
            f"the penalty {objective.penalty!r} is not known to be a sum over single parameters, whose second "
            "derivative is a diagonal matrix: say so by Rule(..., second=..., elementwise=True)"
        )
    one, ones = jnp.ones((), done.value.dtype), jax.tree.map(jnp.ones_like, params)
    second = need_second(rule, objective.penalty)
    return second(objective.penalty, (), done.penalty_residuals, one, (), ones, done.root)[1]


def _of_parameters(ctx: Context, part: Part, rule: Rule, residuals: Any, dy: Curvature, delta: jax.Array) -> Params:
    """The diagonal of sum_c sign_c (J^T s_c)^2 for the layer's parameters, and what the layer bends in them."""
    if not jax.tree.leaves(part.params):
        return part.params
    outers, treedef = jax.tree.flatten(layer_rows(ctx, part, rule, residuals, delta), is_leaf=is_outer)

    def rows_of(s: jax.Array) -> list[jax.Array]:
        rows = layer_rows(ctx, part, rule, residuals, s)
        return [outer.delta for outer in jax.tree.leaves(rows, is_leaf=is_outer)]

    totals = [jnp.zeros(outer.shape, delta.dtype) for outer in outers]
    for term in dy.terms.values():
        # Of our own rules each number of a row depends on one number of dy, so that where an example has one position
        # the squares of the columns may be added first.
        if rule.rows is not None and all(outer.delta.shape[-2] == 1 and not outer.blocks for outer in outers):
            square = _squares(term)
            signs = (1,) if isinstance(term, Columns) and term.sign is None else (1, -1)
            for sign in signs:
                each = rows_of(jnp.sqrt(jnp.maximum(sign * square, 0)))
                squares = [sum_of_squares_of(o, d[None]) for o, d in zip(outers, each, strict=True)]
                totals = [total + sign * more for total, more in zip(totals, squares, strict=True)]
        else:
            columns = _columns(term)
            each = jax.vmap(rows_of)(columns.s)
            squares = [sum_of_squares_of(o, d, columns.sign) for o, d in zip(outers, each, strict=True)]
            totals = [total + more for total, more in zip(totals, squares, strict=True)]
    own = _own_bend(ctx, part, rule, residuals, delta)
    if own is not None:
        totals = [total + extra for total, extra in zip(totals, jax.tree.leaves(own), strict=True)]
    return jax.tree.unflatten(treedef, [Once(total) for total in totals])


def _own_bend(ctx: Context, part: Part, rule: Rule, residuals: Any, delta: jax.Array) -> Params | None:
    """The diagonal of sum dy (d^2 y / dparams^2), a direction at a time; None where y is linear in them."""
    second = need_second(rule, part.layer, "/".join(ctx.path))
    ones = jax.tree.map(jnp.ones_like, part.params)
    if second(part.layer, part.params, residuals, delta, ones, None, ctx)[0] is None:
        return None
    return _diagonal(lambda v: second(part.layer, part.params, residuals, delta, v, None, ctx)[0], part.params)


def _through(ctx: Context, part: Part, rule: Rule, residuals: Any, term: Columns | Diagonal) -> Columns | Diagonal:
    """J^T (...) J: each column by the rule."""

    def back(s: jax.Array) -> jax.Array:
        return rule.bwd(part.layer, part.params, residuals, s, ctx)[1]

    if isinstance(term, Diagonal) and rule.elementwise:
        r = back(term.r)
        return Diagonal(term.sign.reshape(r.shape), r)
    columns = _columns(term)
    return Columns(columns.sign, jax.vmap(back)(columns.s))


def _bend(ctx: Context, part: Part, rule: Rule, residuals: Any, delta: jax.Array) -> Columns | Diagonal | None:
    """sum_k dy_k (d^2 y_k / dx^2) of a layer; None where y is piecewise linear in x."""
    second = need_second(rule, part.layer, "/".join(ctx.path))

    def change(vx: jax.Array) -> jax.Array | None:
        return second(part.layer, part.params, residuals, delta, None, vx, ctx)[1]

    x = jax.eval_shape(lambda: rule.bwd(part.layer, part.params, residuals, delta, ctx)[1])
    along_ones = change(jnp.ones(x.shape, x.dtype))
    if along_ones is None:
        return None
    if rule.elementwise:
        return Diagonal(jnp.sign(along_ones), jnp.sqrt(jnp.abs(along_ones)))
    return _signed_root(change, x)


def _signed_root(product: Callable[[jax.Array], Any], like: Any) -> Columns:
    """The columns of a symmetric matrix for each example, by its eigenvectors: from its products with u (N, ...)."""
    n, shape = like.shape[0], like.shape[1:]
    units = basis(jnp.ones(like.shape, like.dtype))
    k = len(units)
    matrix = jax.vmap(product)(units).reshape(k, n, k).swapaxes(0, 1)
    values, vectors = jnp.linalg.eigh(at_least_float32(matrix))
    s = (vectors * jnp.sqrt(jnp.abs(values))[:, None, :]).transpose(2, 0, 1).astype(like.dtype)
    return Columns(jnp.sign(values).T.astype(like.dtype), s.reshape(k, n, *shape))


def _by_products(product: Callable[[Params], Params], params: Params, index: int) -> jax.Array:
    """The Hessian's diagonal for leaf number `index`, a product for each of its numbers."""
    leaves, treedef = jax.tree.flatten(params)
    zeros = [jnp.zeros_like(leaf) for leaf in leaves]

    def one(v: jax.Array) -> jax.Array:
        direction = jax.tree.unflatten(treedef, [*zeros[:index], v, *zeros[index + 1 :]])
        return jax.tree.leaves(product(direction))[index]

    return _diagonal(one, leaves[index])


def _diagonal(product: Callable[[Any], Any], like: Any) -> Any:
    """The diagonal of a matrix, from its products with each unit vector of the structure of `like`."""
    leaves, treedef = jax.tree.flatten(like)
    found = []
    for i, leaf in enumerate(leaves):

        def one(j: jax.Array, i: int = i, leaf: jax.Array = leaf) -> jax.Array:
            unit = jnp.zeros(leaf.size, leaf.dtype).at[j].set(1).reshape(leaf.shape)
            direction = [unit if k == i else jnp.zeros_like(other) for k, other in enumerate(leaves)]
            return jax.tree.leaves(product(jax.tree.unflatten(treedef, direction)))[i].reshape(-1)[j]

        found.append(jax.lax.map(one, jnp.arange(leaf.size)).reshape(leaf.shape))
    return jax.tree.unflatten(treedef, found)


def _squares(term: Columns | Diagonal) -> jax.Array:
    """The diagonal (N, ...)."""
    if isinstance(term, Diagonal):
        return term.sign * jnp.square(term.r)
    squares = jnp.square(term.s)
    if term.sign is not None:
        squares *= term.sign.reshape(*term.sign.shape, *(1,) * (term.s.ndim - 2))
    return sum_of_columns(squares)


def _columns(term: Columns | Diagonal) -> Columns:
    return term.columns() if isinstance(term, Diagonal) else term


def _added(a: Columns | Diagonal, b: Columns | Diagonal) -> Columns | Diagonal:
    if isinstance(a, Diagonal) and isinstance(b, Diagonal):
        return Diagonal(a.sign, a.r + b.r)
    a, b = _columns(a), _columns(b)
    return Columns(a.sign, a.s + b.s)


def _is_once(node: Any) -> bool:
    return isinstance(node, Once)
