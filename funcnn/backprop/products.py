"""Products of curvature matrices with a direction, by the rules: forward once more, with tangents, and backward."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from funcnn.backprop.engine import Run, check_like, check_objective, run
from funcnn.backprop.passes import Along
from funcnn.backprop.rule import Context, LossRule, Rule, RuleError, Rules, as_rules, need_second
from funcnn.backprop.rules import RULES
from funcnn.layer import Key, Params
from funcnn.objective import Batch, Objective, unpack


def gauss_newton_product(
    objective: Objective, *, rules: Rules = RULES, extras: Mapping[str, Any] | None = None
) -> Callable[..., Params]:
    """The Gauss-Newton matrix times a direction, without the matrix.

    G v = sum_n m_n J_n^T H_n J_n v,  J_n = df_n/dparams, H_n = d^2 loss_n/df_n^2, m_n = w_n / sum_n w_n

    Args:
        objective: net + loss + penalty; the penalty has no part in it.
        rules: the backward pass.
        extras: a pytree for each path whose rule asks for one.

    Returns:
        A function `(params, batch, v, *, key=None, train=False) -> G v`, v and G v of params' structure and shapes.

    Raises:
        RuleError: a layer's rule has no tangent, or the loss's no Hessian.
        ValueError: v is not of params' structure and shapes.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> objective = fnn.Objective(fnn.Dense(1, bias=False), fnn.losses.squared_error)
        >>> params, batch = {"w": jnp.array([[3.0]])}, (jnp.array([[2.0]]), jnp.array([[1.0]]))
        >>> print(fnn.backprop.gauss_newton_product(objective)(params, batch, {"w": jnp.array([[1.0]])})["w"])
        [[8.]]

    Source: Schraudolph, Fast Curvature Matrix-Vector Products (2002).
    """
    check_objective(objective)

    def function(params: Params, batch: Batch, v: Params, *, key: Key | None = None, train: bool = False) -> Params:
        check_like("the direction v", params, v)
        done = run(objective, params, batch, _root(rules, extras, key, train))
        vf = done.root.tangent(done.net, done.residuals, v, None)
        if vf is None:  # nothing to learn
            return v
        change = _loss_product(objective, batch, done, vf)
        ctx = dataclasses.replace(done.root, delta=change)
        return ctx.bwd(done.net, done.residuals, change, False)[0]

    return function


def gauss_newton_form(
    objective: Objective, *, rules: Rules = RULES, extras: Mapping[str, Any] | None = None
) -> Callable[..., jax.Array]:
    """The Gauss-Newton matrix between a few directions: a small matrix, by passes forward alone.

    M_ij = v_i^T G v_j = sum_n m_n (J_n v_i)^T H_n (J_n v_j),  with G, J_n, H_n and m_n as in `gauss_newton_product`

    Args:
        objective: net + loss + penalty; the penalty has no part in it.
        rules: the backward pass.
        extras: a pytree for each path whose rule asks for one.

    Returns:
        A function `(params, batch, directions, *, key=None, train=False) -> M (k, k)`, where directions are k trees of
        params' structure and shapes. Under jit nothing runs backward.

    Raises:
        RuleError: a layer's rule has no tangent, or the loss's no Hessian.
        ValueError: there are no directions, or one is not of params' structure and shapes.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> objective = fnn.Objective(fnn.Dense(1, bias=False), fnn.losses.squared_error)
        >>> params, batch = {"w": jnp.array([[3.0]])}, (jnp.array([[2.0]]), jnp.array([[1.0]]))
        >>> directions = {"w": jnp.array([[1.0]])}, {"w": jnp.array([[-2.0]])}
        >>> print(fnn.backprop.gauss_newton_form(objective)(params, batch, directions))
        [[  8. -16.]
         [-16.  32.]]

    Source: Martens and Grosse (2015), section 7 and appendix C.
    """
    check_objective(objective)

    def function(
        params: Params, batch: Batch, directions: Sequence[Params], *, key: Key | None = None, train: bool = False
    ) -> jax.Array:
        if not isinstance(directions, tuple | list) or not directions:
            raise ValueError(f"directions are one tree like params or several, as (v, w), got {directions!r}")
        for v in directions:
            check_like("the direction v", params, v)
        done = run(objective, params, batch, _root(rules, extras, key, train))
        changes = [done.root.tangent(done.net, done.residuals, v, None) for v in directions]
        if changes[0] is None:  # nothing to learn
            return jnp.zeros((len(directions),) * 2)
        curved = [_loss_product(objective, batch, done, change) for change in changes]
        return jnp.stack([jnp.stack([jnp.vdot(change, other) for other in curved]) for change in changes])

    return function


def hessian_product(
    objective: Objective, *, rules: Rules = RULES, extras: Mapping[str, Any] | None = None
) -> Callable[..., Params]:
    """The objective's Hessian times a direction, without the matrix: the derivative of the backward pass along v.

    H v = d/de grad(params + e v) at e = 0. With R = d/de:  R{dy} of the output is H_n R{f}, and each layer gives
    R{(dparams, dx)} = bwd(R{dy}) + second(dy, R{params}, R{x}).

    Args:
        objective: net + loss + penalty.
        rules: the backward pass.
        extras: a pytree for each path whose rule asks for one.

    Returns:
        A function `(params, batch, v, *, key=None, train=False) -> H v`, v and H v of params' structure and shapes.
        At kinks the second derivative is that of the side that the rule takes.

    Raises:
        RuleError: the rule of a layer has no tangent or second derivative, or the loss's no Hessian.
        ValueError: v is not of params' structure and shapes.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> objective = fnn.Objective(fnn.Dense(1, bias=False), fnn.losses.squared_error, fnn.penalties.l2(0.5))
        >>> params, batch = {"w": jnp.array([[3.0]])}, (jnp.array([[2.0]]), jnp.array([[1.0]]))
        >>> print(fnn.backprop.hessian_product(objective)(params, batch, {"w": jnp.array([[1.0]])})["w"])
        [[8.5]]

    Source: Pearlmutter, Fast Exact Multiplication by the Hessian (1994).
    """
    check_objective(objective)

    def function(params: Params, batch: Batch, v: Params, *, key: Key | None = None, train: bool = False) -> Params:
        check_like("the direction v", params, v)
        along = Along()
        done = run(objective, params, batch, _root(rules, extras, key, train, along.observe))
        vf = done.root.tangent(done.net, done.residuals, v, None)
        if vf is None:
            return v
        change = _loss_product(objective, batch, done, vf)
        ctx = dataclasses.replace(done.root, delta=change, observe=None, leaf=along.leaf)
        product, _ = ctx.bwd(done.net, done.residuals, change, False)
        if objective.penalty is not None:
            second = need_second(need_rule(done, objective.penalty), objective.penalty)
            one = jnp.ones((), done.value.dtype)
            _, more = second(objective.penalty, (), done.penalty_residuals, one, (), v, done.root)
            product = jax.tree.map(jnp.add, product, more)
        return product

    return function


def need_rule(done: Run, what: Any) -> Rule:
    """The rule of the loss or the penalty."""
    rule = done.root.rules.find(what)
    if rule is None:
        raise RuleError(f"autodiff stands in for the rule of {what!r}, and has no second derivative here: give a rule")
    return rule


def _root(rules: Rules, extras: Mapping[str, Any] | None, key: Key | None, train: bool, observe: Any = None) -> Context:
    return Context(as_rules(rules), key=key, train=train, need_dx=False, extras=extras or {}, observe=observe)


def _loss_product(objective: Objective, batch: Batch, done: Run, vf: jax.Array) -> jax.Array:
    """m_n H_n vf_n (N, ...)."""
    shares = done.shares.reshape(-1, *(1,) * (vf.ndim - 1)).astype(vf.dtype)
    return shares * loss_hessian(objective, batch, done)(vf)


def loss_hessian(objective: Objective, batch: Batch, done: Run) -> Callable[[jax.Array], jax.Array]:
    """u -> H_n u_n (N, ...), of the loss for the outputs."""
    rule = need_rule(done, objective.loss)
    if not isinstance(rule, LossRule) or rule.hessian is None:
        raise RuleError(
            f"the rule of the loss {objective.loss!r} says nothing of curvature: give one by "
            "rules=RULES | {loss: LossRule(fwd, bwd, hessian=...)}"
        )
    hessian, (_, targets, _) = rule.hessian, unpack(batch)
    return lambda u: hessian(objective.loss, targets, done.outputs, u)
