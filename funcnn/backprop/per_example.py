"""The backward pass before it sums over the examples: what each adds to a gradient, or to a curvature matrix."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from funcnn.backprop.engine import check_objective, run
from funcnn.backprop.outer import Outer, is_outer
from funcnn.backprop.passes import factors_of_layers
from funcnn.backprop.rule import Context, LossRule, RuleError, Rules, as_rules
from funcnn.backprop.rules import RULES
from funcnn.layer import Key, Params
from funcnn.objective import Batch, Objective, unpack

LOSS, GAUSS_NEWTON, FISHER = KINDS = ("loss", "gauss_newton", "fisher")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """What each example adds, in factors: see `rows`.

    Attributes:
        factors: a tree of the structure of params, with an `Outer` in the place of each array.
        value: the objective's value.
        grads: its gradient for the parameters, as `value_and_grad` gives it, penalty included.
        mean: the gradient of the mean loss alone, sum_n m_n g_n.
        shares: m_n = w_n / sum_n w_n (N,), what each example counts in the mean; 1/N without weights.
        of: what the rows are of: "loss", "gauss_newton" or "fisher".
    """

    factors: Params
    value: jax.Array
    grads: Params
    mean: Params
    shares: jax.Array
    of: str = dataclasses.field(default=LOSS, metadata={"static": True})

    def map(self, function: Callable[[Outer], Any]) -> Params:
        """A tree of the structure of params, of what `function` gives for the factors of each array."""
        return _map(function, self.factors)

    def outers(self) -> list[Outer]:
        """The factors of each array, in the order of `jax.tree.leaves(params)`."""
        return jax.tree.leaves(self.factors, is_leaf=is_outer)


def rows(
    objective: Objective,
    *,
    of: str = LOSS,
    samples: int = 1,
    rules: Rules = RULES,
    extras: Mapping[str, Any] | None = None,
) -> Callable[..., Rows]:
    """Each example's own part of a gradient or of a curvature matrix, in factors: what `quantities` are computed from.

    With m_n = w_n / sum_n w_n, J_n = df_n/dparams, and H_n = d^2 loss_n / df_n^2 = sum_c s_nc s_nc^T, the rows are

    - of="loss": g_n = dloss_n/dparams, so that the gradient of the objective is sum_n m_n g_n + that of its penalty;
    - of="gauss_newton": g_nc = sqrt(m_n) J_n^T s_nc, so that sum_nc g_nc g_nc^T is the Gauss-Newton matrix;
    - of="fisher": g_nc = sqrt(m_n / samples) J_n^T s_nc with s_nc = dloss(f_n, t_nc)/df_n for targets t_nc drawn from
      the network's own distribution, so that the mean of sum_nc g_nc g_nc^T is the Fisher matrix. It equals the
      Gauss-Newton matrix for squared errors, a given variance, Bernoulli and softmax losses, and one sample is then
      the usual Monte Carlo estimate of both; for mae, laplace_nll, nll and a learned variance it does not.

    The empirical Fisher matrix, sum_n m_n g_n g_n^T of the rows of the loss, is neither. The penalty has no rows.

    Args:
        objective: net + loss + penalty.
        of: "loss", "gauss_newton" or "fisher".
        samples: targets drawn for each example, for "fisher".
        rules: the backward pass.
        extras: a pytree for each path whose rule asks for one.

    Returns:
        A function `(params, batch, *, key=None, train=False, sample_key=None) -> Rows`; "fisher" needs `sample_key`. To
        be used under `jax.jit` together with what is computed of the rows: what nobody asks for is not computed then.

    Raises:
        RuleError: the net or loss has no rule, or the loss's has no curvature.
        ValueError: `of` is none of the three, or a random key is missing.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> objective = fnn.Objective(fnn.Dense(2), fnn.losses.squared_error)
        >>> params = objective.net.init(jax.random.key(0), (3,))
        >>> rows = fnn.backprop.rows(objective)(params, (jnp.ones((5, 3)), jnp.ones((5, 2))))
        >>> fnn.backprop.quantities.norms(rows).shape
        (5,)

    Source: Goodfellow, Efficient Per-Example Gradient Computations (2015); Dangel, Kunstner and Hennig (2020).
    """
    check_objective(objective)
    if of not in KINDS:
        raise ValueError(f"rows are of one of {KINDS}, got {of!r}")
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples is a positive integer, got {samples!r}")

    def function(
        params: Params,
        batch: Batch,
        *,
        key: Key | None = None,
        train: bool = False,
        sample_key: Key | None = None,
    ) -> Rows:
        root = Context(as_rules(rules), key=key, train=train, need_dx=False, extras=extras or {})
        done = run(objective, params, batch, root)
        assert done.root.delta is not None
        inside = dataclasses.replace(done.root, leaf=factors_of_layers)
        factors, _ = inside.bwd(done.net, done.residuals, done.root.delta, False)
        if of == LOSS:
            # Of the mean, as the gradient's own pass: compiled together, they are one. The share is taken out later.
            factors = _map(lambda outer: dataclasses.replace(outer, delta=outer.delta[None]), factors)
            return Rows(factors, done.value, done.grads, done.mean, done.shares, of)

        def deltas(column: jax.Array) -> Params:
            ctx = dataclasses.replace(inside, delta=column)
            return _map(lambda outer: outer.delta, ctx.bwd(done.net, done.residuals, column, False)[0])

        columns = _columns(objective, of, samples, batch, done.outputs, root.rules, sample_key)
        weight = jnp.sqrt(done.shares).reshape(1, -1, *(1,) * (done.outputs.ndim - 1)).astype(columns.dtype)
        d = jax.tree.leaves(_each(deltas, columns * weight))
        outers, treedef = jax.tree.flatten(factors, is_leaf=is_outer)
        outers = [dataclasses.replace(outer, delta=delta) for outer, delta in zip(outers, d, strict=True)]
        return Rows(jax.tree.unflatten(treedef, outers), done.value, done.grads, done.mean, done.shares, of)

    return function


def _each(function: Callable[[jax.Array], Params], columns: jax.Array) -> Params:
    """`function` of each column, stacked. One alone needs no vmap, whose matrix products of three axes cost more."""
    if len(columns) == 1:
        return jax.tree.map(lambda array: array[None], function(columns[0]))
    return jax.vmap(function)(columns)


def _columns(
    objective: Objective, of: str, samples: int, batch: Batch, outputs: jax.Array, rules: Rules, key: Key | None
) -> jax.Array:
    """The columns s_c (C, N, ...) that are sent backward, without the examples' weights."""
    rule = rules.find(objective.loss)
    if not isinstance(rule, LossRule) or rule.root is None or rule.score is None:
        raise RuleError(
            f"the rule of the loss {objective.loss!r} says nothing of curvature: give one by "
            "rules=RULES | {loss: LossRule(fwd, bwd, hessian, root, score)}"
        )
    _, targets, _ = unpack(batch)
    if of == GAUSS_NEWTON:
        columns = rule.root(objective.loss, targets, outputs)
        if columns is None:
            raise RuleError(
                f"{objective.loss!r} is not convex in its outputs, so that its Hessian has no square root and there is "
                "no Gauss-Newton matrix; the Fisher matrix is defined: of='fisher'"
            )
        return columns
    if key is None:
        raise ValueError('of="fisher" draws targets: give sample_key=jax.random.key(0)')
    score = rule.score
    keys = jax.random.split(key, samples)
    return jax.vmap(lambda k: score(objective.loss, targets, outputs, k))(keys) * samples**-0.5


def _map(function: Callable[[Outer], Any], factors: Params) -> Params:
    return jax.tree.map(function, factors, is_leaf=is_outer)
