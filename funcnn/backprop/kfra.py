"""KFRA: Kronecker factors whose second one is averaged over the examples at each layer, on its way back."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from funcnn.backprop.engine import check_objective, run
from funcnn.backprop.outer import Addend, activity_moment, at_least_float32, basis, is_outer
from funcnn.backprop.passes import layer_rows
from funcnn.backprop.products import loss_hessian
from funcnn.backprop.quantities import Kronecker
from funcnn.backprop.rule import Context, Rule, RuleError, Rules, as_rules
from funcnn.backprop.rules import RULES
from funcnn.compose import Part
from funcnn.layer import Key, Params
from funcnn.objective import Batch, Objective

CHAINS = "KFRA averages over the examples at each layer, which is defined for chains: layers one after another"


@dataclasses.dataclass(frozen=True)
class Averaged(Addend):
    """sum_n m_n (d^2 C / dy_n^2), (K, K), of a value whose examples have `shape`, of K numbers."""

    matrix: jax.Array
    shape: tuple[int, ...]

    def __add__(self, other: Any) -> Any:
        raise RuleError(f"{CHAINS}; this network adds branches: use kronecker_factors of rows (K-FAC, KFLR)")

    def piece(self, begin: int, end: int) -> Any:
        """Joined values do not make a chain."""
        raise RuleError(f"{CHAINS}; this network joins branches: use kronecker_factors of rows (K-FAC, KFLR)")

    def astype(self, dtype: Any) -> "Averaged":
        """The same in another dtype."""
        return Averaged(self.matrix.astype(dtype), self.shape)


@dataclasses.dataclass(frozen=True)
class Found(Addend):
    """The factors of one parameter."""

    factors: Kronecker

    def __add__(self, other: Any) -> Any:
        raise RuleError(f"{CHAINS}; this network uses parameters twice: use kronecker_factors of rows (K-FAC, KFLR)")

    def astype(self, dtype: Any) -> "Found":
        """The same in another dtype."""
        return Found(jax.tree.map(lambda array: array.astype(dtype), self.factors))


def kfra_factors(
    objective: Objective, *, rules: Rules = RULES, extras: Mapping[str, Any] | None = None
) -> Callable[..., Params]:
    """The Kronecker factors of KFRA, for networks whose layers stand one after another.

    A = sum_n m_n a_n a_n^T,  B = the layer's G, with G = sum_n m_n H_n at the output and G <- sum_n m_n J_n^T G J_n.

    Args:
        objective: net + loss + penalty; the penalty has no part in it.
        rules: the backward pass.
        extras: a pytree for each path whose rule asks for one.

    Returns:
        A function `(params, batch, *, key=None, train=False)` -> a tree of the structure of params, with `Kronecker`
        factors in the place of each array.

    Raises:
        RuleError: the network is no chain, or the loss's rule has no Hessian.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> net = fnn.Serial(fnn.Dense(4), fnn.Relu(), fnn.Dense(2))
        >>> objective = fnn.Objective(net, fnn.losses.softmax_cross_entropy)
        >>> params, batch = net.init(jax.random.key(0), (3,)), (jnp.ones((5, 3)), jnp.zeros(5, int))
        >>> fnn.backprop.kfra_factors(objective)(params, batch)[0]["w"].b.shape
        (4, 4)

    Source: Botev, Ritter and Barber, Practical Gauss-Newton Optimisation for Deep Learning (2017).
    """
    check_objective(objective)

    def function(params: Params, batch: Batch, *, key: Key | None = None, train: bool = False) -> Params:
        root = Context(as_rules(rules), key=key, train=train, need_dx=False, extras=extras or {})
        done = run(objective, params, batch, root)
        shares = done.shares

        def leaf(ctx: Context, part: Part, rule: Rule, residuals: Any, dy: Averaged) -> tuple[Params, Any]:
            factors = _of_parameters(ctx, part, rule, residuals, dy, shares)
            return factors, _through(ctx, part, rule, residuals, dy, shares) if ctx.need_dx else None

        n, *shape = done.outputs.shape
        hessians = jax.vmap(loss_hessian(objective, batch, done))(basis(jnp.ones_like(done.outputs)))
        start = jnp.einsum("knl,n->kl", hessians.reshape(-1, n, len(hessians)), shares.astype(hessians.dtype))
        ctx = dataclasses.replace(done.root, leaf=leaf)
        found, _ = ctx.bwd(done.net, done.residuals, Averaged(start, tuple(shape)), False)
        return jax.tree.map(lambda one: one.factors, found, is_leaf=lambda node: isinstance(node, Found))

    return function


def _through(ctx: Context, part: Part, rule: Rule, residuals: Any, dy: Averaged, shares: jax.Array) -> Averaged:
    """sum_n m_n J_n^T G J_n."""
    g, shape = dy.matrix, dy.shape

    def back(kept: Any, s: jax.Array) -> jax.Array:
        return rule.bwd(part.layer, part.params, kept, s, ctx)[1]

    weight = jnp.sqrt(shares).astype(g.dtype)
    ones = jnp.ones((len(shares), *shape), g.dtype)
    in_shape = jax.eval_shape(back, residuals, ones).shape[1:]
    if rule.elementwise:
        f = back(residuals, ones).reshape(len(shares), -1) * weight[:, None]
        return Averaged(g * (f.T @ f), in_shape)
    if rule.affine and len(shape) == 1:
        # The Jacobian does not see the example: any one stands for all, and the rows of G are so many of them.
        def any_example(s: jax.Array) -> jax.Array:
            return back(jax.tree.map(lambda r: jnp.broadcast_to(r[:1], (len(s), *r.shape[1:])), residuals), s)

        return Averaged(any_example(any_example(g).T), in_shape)
    columns = jax.vmap(lambda s: back(residuals, s))(_columns(g, shape, weight))
    flat = columns.reshape(-1, columns[0, 0].size)
    return Averaged(flat.T @ flat, in_shape)


def _of_parameters(ctx: Context, part: Part, rule: Rule, residuals: Any, dy: Averaged, shares: jax.Array) -> Params:
    """(A, B) of each parameter: B is G itself, or what G becomes where the deltas of the rows are not dy."""
    if not jax.tree.leaves(part.params):
        return part.params
    g, shape = dy.matrix, dy.shape
    weight = jnp.sqrt(shares).astype(g.dtype)
    like = jnp.zeros((len(shares), *shape), g.dtype)
    outers, treedef = jax.tree.flatten(layer_rows(ctx, part, rule, residuals, like), is_leaf=is_outer)
    if any(outer.blocks for outer in outers):
        raise RuleError(
            f"{CHAINS}; {part.layer!r} at {'/'.join(ctx.path)!r} runs its blocks as one layer: use "
            f"Serial(*[block] * {outers[0].shape[0]}), or kronecker_factors of rows (K-FAC, KFLR)"
        )
    if rule.affine and len(shape) == 1:
        seconds = [g] * len(outers)
    else:

        def rows_of(s: jax.Array) -> list[jax.Array]:
            rows = jax.tree.leaves(layer_rows(ctx, part, rule, residuals, s), is_leaf=is_outer)
            return [jnp.sum(o.delta, axis=-2) if o.activity is None else o.delta for o in rows]

        flats = [d.reshape(-1, d.shape[-1]) for d in jax.vmap(rows_of)(_columns(g, shape, weight))]
        seconds = [flat.T @ flat for flat in flats]
    firsts = [activity_moment(outer, shares) for outer in outers]
    entries = zip(firsts, seconds, outers, strict=True)
    return jax.tree.unflatten(treedef, [Found(Kronecker(a, b, outer.transposed)) for a, b, outer in entries])


def _columns(g: jax.Array, shape: tuple[int, ...], weight: jax.Array) -> jax.Array:
    """Columns (K, N, *shape) with sum_k s_nk s_nk^T = m_n G."""
    values, vectors = jnp.linalg.eigh(at_least_float32(g))
    root = (vectors * jnp.sqrt(jnp.maximum(values, 0))[None]).T.astype(g.dtype)
    return root.reshape(len(g), 1, *shape) * weight.reshape(1, -1, *(1,) * len(shape))
