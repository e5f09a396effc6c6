"""Learning rules other than backpropagation, as values: rules for layers, and what is done to a delta on its way.

Each is put into `RULES` for a type of layer, or for one at a path: `RULES | learning.FEEDBACK_ALIGNMENT`, or
`RULES | {fnn.Dense: learning.on_delta(RULES[fnn.Dense], learning.Clip(1.0))}`. The gradient that comes out goes to any
optimizer, `fit` included: `gradient=functools.partial(fnn.backprop.value_and_grad, rules=rules)`.
"""

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import random

from funcnn.backprop.outer import at_least_float32
from funcnn.backprop.rule import Context, Rule, RuleError
from funcnn.backprop.rules import activation
from funcnn.backprop.rules.dense import dense_bwd, dense_fwd, dense_rows, input_gradient
from funcnn.backprop.rules.feedback import feedback_bwd, feedback_rows
from funcnn.layer import Params, describe_params, is_floating, is_positive
from funcnn.layers import Dense, Identity, Step
from funcnn.layers.feedback import FeedbackDense


def _alignment_bwd(
    layer: FeedbackDense, params: Params, x: jax.Array, dz: jax.Array, ctx: Context
) -> tuple[Params, Any]:
    grads, _ = feedback_bwd(layer, params, x, dz, dataclasses.replace(ctx, need_dx=False))
    return grads, _back(layer, params, x, dz, ctx, "say it without outputs, or use DIRECT_FEEDBACK_ALIGNMENT")


def _kolen_pollack_bwd(
    layer: FeedbackDense, params: Params, x: jax.Array, dz: jax.Array, ctx: Context
) -> tuple[Params, Any]:
    grads, dx = _alignment_bwd(layer, params, x, dz, ctx)
    if layer.outputs is not None:
        raise RuleError(f"Kolen-Pollack learns feedback weights of w's shape, and {layer!r} has others: no outputs")
    return grads | {"feedback": grads["w"].astype(params["feedback"].dtype)}, dx


def _direct_bwd(layer: FeedbackDense, params: Params, x: jax.Array, dz: jax.Array, ctx: Context) -> tuple[Params, Any]:
    grads, _ = feedback_bwd(layer, params, x, dz, dataclasses.replace(ctx, need_dx=False))
    return grads, _back(layer, params, x, ctx.delta, ctx, "for direct feedback say FeedbackDense({}, outputs={})")


def _back(layer: FeedbackDense, params: Params, x: jax.Array, delta: Any, ctx: Context, right: str) -> Any:
    """dx = delta feedback^T (..., D)."""
    if not ctx.need_dx:
        return None
    if delta.shape != (*x.shape[:-1], layer.width):
        raise RuleError(
            f"the feedback weights of {layer!r} at {'/'.join(ctx.path)!r} take a delta of {layer.width} numbers, got "
            f"{delta.shape}; " + right.format(layer.features, delta.shape[-1])
        )
    return input_gradient(delta, params["feedback"], x)


def _sign_symmetric_bwd(layer: Dense, params: Params, x: jax.Array, dz: jax.Array, ctx: Context) -> tuple[Params, Any]:
    grads, _ = dense_bwd(layer, params, x, dz, dataclasses.replace(ctx, need_dx=False))
    w = params["w"]
    return grads, input_gradient(dz, jnp.sign(w) * jnp.mean(jnp.abs(w)), x) if ctx.need_dx else None


def _kolen_pollack_rows(layer: FeedbackDense, params: Params, x: jax.Array, dz: jax.Array, ctx: Context) -> Params:
    rows = dense_rows(layer, params, x, dz, ctx)
    return rows | {"feedback": rows["w"]}


# They have rows, as what each example adds is known; and no tangent, since what goes back is no derivative.
FEEDBACK_ALIGNMENT = {FeedbackDense: Rule(dense_fwd, _alignment_bwd, feedback_rows)}
DIRECT_FEEDBACK_ALIGNMENT = {FeedbackDense: Rule(dense_fwd, _direct_bwd, feedback_rows)}
KOLEN_POLLACK = {FeedbackDense: Rule(dense_fwd, _kolen_pollack_bwd, _kolen_pollack_rows)}
SIGN_SYMMETRIC = {Dense: Rule(dense_fwd, _sign_symmetric_bwd, dense_rows)}
STRAIGHT_THROUGH = {Step: activation.RULES[Identity]}

Transform = Callable[[jax.Array, Context], jax.Array]


def on_delta(rule: Rule, transform: Transform) -> Rule:
    """A rule that does something to the delta that comes to a layer, before the layer uses it and sends it on.

    dparams, dx = bwd(transform(dy))

    Args:
        rule: the layer's.
        transform: `(dy (N, ...), ctx) -> dy'`, of the same shape and dtype: one of this module, or your own.

    Returns:
        A `Rule` with the same forward pass.

    Raises:
        TypeError: `rule` is no `Rule`, or `transform` no function.
        RuleError: in the backward pass, `transform` gave a delta of another shape or dtype.

    Example:
        >>> import funcnn as fnn
        >>> from funcnn.backprop import RULES, learning
        >>> clipped = RULES | {fnn.Dense: learning.on_delta(RULES[fnn.Dense], learning.Clip(1.0))}
        >>> only_the_last = RULES | {"2": learning.on_delta(RULES[fnn.Dense], learning.TopK(0.1))}
    """
    if not isinstance(rule, Rule) or not callable(transform) or isinstance(transform, Rule | type):
        raise TypeError(
            "on_delta takes a rule and a function of (dy, ctx), as on_delta(RULES[fnn.Dense], learning.Clip(1.0)), got "
            f"{rule!r} and {transform!r}"
        )
    rows = None if rule.rows is None else _OnDelta(rule.rows, transform)
    return Rule(rule.fwd, _OnDelta(rule.bwd, transform), rows)


@dataclasses.dataclass(frozen=True)
class _OnDelta:
    """A value, so that rules made twice of the same things are equal, and nothing is compiled twice."""

    function: Callable[..., Any]  # the rule's bwd, or its rows
    transform: Transform

    def __call__(self, layer: Any, params: Params, residuals: Any, dy: jax.Array, ctx: Context) -> Any:
        changed = self.transform(dy, ctx)
        if changed is None or jnp.shape(changed) != dy.shape or jnp.result_type(changed) != dy.dtype:
            got = "None" if changed is None else describe_params(changed)
            raise RuleError(
                f"{self.transform!r} made {got} of the delta of {layer!r} at {'/'.join(ctx.path)!r}, which is "
                f"{dy.dtype}{list(dy.shape)} and stays so"
            )
        return self.function(layer, params, residuals, changed, ctx)


def _check_positive(name: str, what: str, value: float) -> None:
    if not is_positive(value):
        raise ValueError(f"{name}'s {what} is a positive number, got {value!r}")


@dataclasses.dataclass(frozen=True)
class Clip:
    """Scales each example's delta down to a norm of at most `bound`: dy_n min(1, bound / |dy_n|).

    Args:
        bound: the largest norm, in units of the delta (that of a mean has 1/N in it).

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> print(fnn.backprop.learning.Clip(1.0)(jnp.array([[3.0, 4.0]]), None))
        [[0.6 0.8]]
    """

    bound: float

    def __post_init__(self) -> None:
        _check_positive("Clip", "bound", self.bound)

    def __call__(self, dy: jax.Array, ctx: Context) -> jax.Array:
        size = _norm(dy)
        return dy * jnp.minimum(1, self.bound / jnp.where(size > 0, size, 1))


@dataclasses.dataclass(frozen=True)
class Normalize:
    """Scales a layer's deltas of the batch to a root mean square of `scale`: scale dy / sqrt(mean dy^2).

    Args:
        scale: the root mean square; that of a mean over N examples is of the order of 1/N.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> print(fnn.backprop.learning.Normalize(1.0)(jnp.array([[3.0, -3.0]]), None))
        [[ 1. -1.]]
    """

    scale: float

    def __post_init__(self) -> None:
        _check_positive("Normalize", "scale", self.scale)

    def __call__(self, dy: jax.Array, ctx: Context) -> jax.Array:
        largest = jnp.max(jnp.abs(dy))
        unit = dy / jnp.where(largest > 0, largest, 1)  # first, so that no square underflows
        return unit * (self.scale / jnp.sqrt(jnp.where(largest > 0, jnp.mean(jnp.square(unit)), 1)))


@dataclasses.dataclass(frozen=True)
class LowPrecision:
    """Rounds deltas to a floating dtype of fewer bits, such as "bfloat16", and back.

    Args:
        dtype: its name.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> print(fnn.backprop.learning.LowPrecision("bfloat16")(jnp.array([[1.001]]), None))
        [[1.]]
    """

    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if not is_floating(self.dtype):
            raise ValueError(f"LowPrecision's dtype is a floating dtype, got {self.dtype!r}")
        info = jnp.finfo(self.dtype)
        if float(info.max) != (2 - 2.0**-info.nmant) * 2.0 ** (2 ** (info.nexp - 1) - 1):
            raise ValueError(
                f"LowPrecision rounds to dtypes that have infinities where IEEE 754 has them, such as 'bfloat16', "
                f"'float16' and 'float8_e5m2', got {self.dtype!r}"
            )

    def __call__(self, dy: jax.Array, ctx: Context) -> jax.Array:
        # reduce_precision and not astype there and back, which compilers may leave out. It makes 0 of what is below the
        # normal numbers, where the dtype has equal steps.
        info = jnp.finfo(self.dtype)
        rounded = jax.lax.reduce_precision(dy, exponent_bits=int(info.nexp), mantissa_bits=int(info.nmant))
        if float(info.smallest_normal) <= float(jnp.finfo(dy.dtype).smallest_normal):
            return rounded
        step = jnp.asarray(info.smallest_subnormal, dy.dtype)
        return jnp.where(
            jnp.abs(dy) < jnp.asarray(info.smallest_normal, dy.dtype), jnp.round(dy / step) * step, rounded
        )


@dataclasses.dataclass(frozen=True)
class StochasticRounding:
    """Rounds deltas to 2^bits - 1 levels from -max |dy| to max |dy|, up or down at random, right in the mean.

    With the step s = 2 max |dy| / (2^bits - 2):  s floor(dy / s + u), u ~ Uniform(0, 1).

    Args:
        bits: of each number, 2 or more.

    Raises:
        RuleError: there is no random key: pass one with train=True, as `fit` does.

    Example:
        >>> import funcnn as fnn
        >>> from funcnn.backprop import RULES, learning
        >>> rules = RULES | {fnn.Dense: learning.on_delta(RULES[fnn.Dense], learning.StochasticRounding(bits=4))}

    Source: Gupta et al., Deep Learning with Limited Numerical Precision (2015).
    """

    bits: int

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 16:
            raise ValueError(f"StochasticRounding's bits is an integer from 2 to 16, got {self.bits!r}")

    def __call__(self, dy: jax.Array, ctx: Context) -> jax.Array:
        if ctx.key is None:
            raise RuleError(f"{self!r} draws random numbers and got no key: pass key=jax.random.key(0)")
        # Of its own: the layer's key may have made the noise of the forward pass.
        key = random.fold_in(ctx.key, zlib.crc32(type(self).__name__.encode()))
        exact = at_least_float32(dy)  # bfloat16 has too few bits for the sum
        largest, levels = jnp.max(jnp.abs(exact)), 2 ** (self.bits - 1) - 1
        step = jnp.where(largest > 0, largest, 1) / levels
        level = jnp.floor(exact / step + random.uniform(key, dy.shape, exact.dtype))
        return (step * jnp.clip(level, -levels, levels)).astype(dy.dtype)


@dataclasses.dataclass(frozen=True)
class TopK:
    """Keeps the largest numbers of each example's delta, by size, and sets the others to 0.

    Args:
        fraction: how many of them, of all, in (0, 1]; at least one.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> print(fnn.backprop.learning.TopK(0.5)(jnp.array([[3.0, -4.0, 1.0, 0.0]]), None))
        [[ 3. -4.  0.  0.]]

    Source: Sun et al., meProp: Sparsified Back Propagation (2017).
    """

    fraction: float

    def __post_init__(self) -> None:
        _check_positive("TopK", "fraction", self.fraction)
        if self.fraction > 1:
            raise ValueError(f"TopK's fraction is at most 1, got {self.fraction!r}")

    def __call__(self, dy: jax.Array, ctx: Context) -> jax.Array:
        size = jnp.abs(dy.reshape(len(dy), -1))
        least = jax.lax.top_k(size, max(1, round(self.fraction * size.shape[1])))[0][:, -1]
        # "less" and not "at least": what is no number stays one
        return jnp.where(jnp.abs(dy) < least.reshape(-1, *(1,) * (dy.ndim - 1)), 0, dy)


def _norm(dy: jax.Array) -> jax.Array:
    """|dy_n|, with axes of length 1 behind."""
    return jnp.sqrt(jnp.sum(jnp.square(dy), axis=tuple(range(1, dy.ndim)), keepdims=True))
