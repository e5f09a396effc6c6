"""K-FAC as a whole, for optax: a direction by Kronecker factors, and all else by a quadratic model of the batch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from funcnn import backprop
from funcnn.backprop.rule import RuleError, as_rules
from funcnn.backprop.rules import RULES
from funcnn.layer import Params, is_positive
from funcnn.objective import Objective
from funcnn.train.arguments import check_count
from funcnn.train.kronecker import Curvature, KroneckerState, check_given

# The rule of Levenberg and Marquardt, for one step: the damping is divided or multiplied by GROWTH where the objective
# fell by less than POOR, or by more than GOOD, of what the model foretold.
GROWTH, POOR, GOOD = 0.95, 0.25, 0.75


class KfacState(NamedTuple):
    """What `kfac` remembers.

    Attributes:
        curvature: the factors and their inverses, as `scale_by_kfac` has them.
        last: the last update, of params' structure.
        damping: lambda.
        rate, momentum: alpha and beta of the last step.
    """

    curvature: KroneckerState
    last: Params
    damping: jax.Array
    rate: jax.Array
    momentum: jax.Array


def kfac(
    objective: Objective,
    *,
    damping: float = 1.0,
    least_damping: float = 1e-3,
    adapt_every: int = 5,
    decay: float = 0.95,
    factors_every: int = 5,
    inverses_every: int = 20,
    of: str = "fisher",
    samples: int = 1,
    rules: backprop.Rules = RULES,
    extras: Mapping[str, Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """K-FAC as a whole: a direction by Kronecker factors, and step size, momentum and damping by a quadratic model.

    u_t = -alpha P g + beta u_{t-1},  with alpha and beta that minimise  q(u) = g . u + u^T (G + lambda I) u / 2

    P g is what `scale_by_kfac` makes of the gradient g. G is the Gauss-Newton matrix of the batch as it is, which takes
    two passes forward. Each `adapt_every` steps the fall of the objective on the batch is compared with q(u), and
    lambda is made smaller where the model is good, larger where it is not. So there is no learning rate to tune.

    Args:
        objective: that of the training; its penalty is in g, and has no part in the curvature.
        damping: lambda of the first step, in units of the loss per squared parameter: large enough for the first steps,
            which a smaller one makes faster where batches are large.
        least_damping: below this lambda does not fall. A model of one batch is good on this batch too where it is not
            on others, the more so the smaller batches are.
        adapt_every: how many steps pass from one look at lambda to the next.
        decay: how much of the factors' averages stays from one update of them to the next.
        factors_every: how many steps pass from one update of the factors to the next.
        inverses_every: how many steps pass from one inversion of the damped factors to the next.
        of: "fisher" (K-FAC, targets drawn from the network's own distribution) or "gauss_newton" (KFLR, exact).
        samples: targets drawn for each example, for "fisher".
        rules: the backward pass.
        extras: a pytree for each path whose rule asks for one.

    Returns:
        An optax transformation that is a whole optimizer. Its `update` needs `params`, `batch` and `key`, which
        `train.step` and `train.fit` hand on; the objective's `value` there spares a pass.

    Raises:
        RuleError: the net or loss has no rule with a tangent, or the loss's has no curvature or is not convex.
        ValueError: an argument is not what it should be.

    Example:
        >>> import jax, funcnn as fnn
        >>> (x, y), _ = fnn.data.load_digits().arrays()
        >>> net = fnn.Serial(fnn.Dense(64), fnn.Tanh(), fnn.Dense(10))
        >>> objective = fnn.Objective(net, fnn.losses.softmax_cross_entropy)
        >>> _, history = fnn.train.fit(
        ...     objective, fnn.train.kfac(objective, damping=0.1), net.init(jax.random.key(0), (64,)), (x, y), epochs=5,
        ...     batch_size=256, key=jax.random.key(1), progress=None)
        >>> print(history["loss"][-1] < 0.1)
        True

    Source: Martens and Grosse, Optimizing Neural Networks with Kronecker-factored Approximate Curvature (2015),
    sections 3 to 7; Botev, Ritter and Barber (2017) for "gauss_newton".
    """
    curvature = Curvature.of(objective, decay, factors_every, inverses_every, of, samples, rules, extras)
    form = backprop.gauss_newton_form(objective, rules=rules, extras=extras)
    check_count("adapt_every", adapt_every)
    for name, value in (("damping", damping), ("least_damping", least_damping)):
        if not is_positive(value):
            raise ValueError(f"{name} is a positive number, got {value!r}")

    def init(params: Params) -> KfacState:
        zero = jnp.zeros((), jnp.result_type(float))
        return KfacState(curvature.init(params), jax.tree.map(jnp.zeros_like, params), zero + damping, zero, zero)

    def update(
        grads: Params,
        state: KfacState,
        params: Any = None,
        *,
        batch: Any = None,
        key: Any = None,
        value: jax.Array | None = None,
        **_: Any,
    ) -> tuple[Params, KfacState]:
        check_given("kfac", params, batch, key)
        _check_convex(objective, rules, params, batch)
        moved, inner = curvature.update(grads, state.curvature, params, batch, key, state.damping)
        directions = jax.tree.map(jnp.negative, moved), state.last
        lengths = [[optax.tree.vdot(v, w) for w in directions] for v in directions]
        squares = form(params, batch, directions, key=key, train=True)
        squares = squares + state.damping.astype(squares.dtype) * jnp.array(lengths, squares.dtype)
        slopes = jnp.array([optax.tree.vdot(grads, v) for v in directions], squares.dtype)
        rates = _minimum(squares, slopes)
        updates: Any = jax.tree.map(lambda v, w: (rates[0] * v + rates[1] * w).astype(v.dtype), *directions)

        def adapted() -> jax.Array:
            before = objective(params, batch, key=key, train=True) if value is None else value
            after = objective(optax.apply_updates(params, updates), batch, key=key, train=True)
            fall, foretold = after - before, slopes @ rates + rates @ squares @ rates / 2
            factor = GROWTH**adapt_every
            smaller, larger = state.damping * factor, state.damping / factor
            # In products, as both are 0 where the gradient is; what is not finite makes it larger.
            changed = jnp.where(fall < GOOD * foretold, smaller, state.damping)
            changed = jnp.where(fall <= POOR * foretold, changed, larger)
            return jnp.maximum(changed, least_damping)

        look = state.curvature.steps % adapt_every == adapt_every - 1
        new_damping = lax.cond(look, adapted, lambda: state.damping)
        return updates, KfacState(inner, updates, new_damping, *rates.astype(new_damping.dtype))

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _check_convex(objective: Objective, rules: backprop.Rules, params: Params, batch: Any) -> None:
    """Raises where the Gauss-Newton matrix may have negative eigenvalues, so that the model has no minimum."""
    rule, (x, targets, *_) = as_rules(rules).find(objective.loss), batch
    outputs = jax.eval_shape(objective.net.apply, params, x)
    root = getattr(rule, "root", None)
    if root is not None and jax.eval_shape(lambda f: root(objective.loss, targets, f), outputs) is None:
        raise RuleError(
            f"{objective.loss!r} is not convex in its outputs, so that kfac's quadratic model has no minimum; "
            "scale_by_kfac needs none: optax.chain(train.scale_by_kfac(objective), optax.sgd(0.1, momentum=0.9))"
        )


def _minimum(squares: jax.Array, slopes: jax.Array) -> jax.Array:
    """(alpha, beta) of least q = slopes . r + r^T squares r / 2; beta = 0 where both directions are (nearly) one."""
    (aa, ab), (_, bb) = squares
    determinant = aa * bb - ab * ab
    two = determinant > jnp.finfo(squares.dtype).eps ** 0.5 * aa * bb
    safe = jnp.where(two, determinant, 1)
    both = jnp.stack([ab * slopes[1] - bb * slopes[0], ab * slopes[0] - aa * slopes[1]]) / safe
    alone = jnp.stack([-slopes[0] / jnp.where(aa > 0, aa, 1), jnp.zeros_like(aa)])
    return jnp.where(two, both, alone)
