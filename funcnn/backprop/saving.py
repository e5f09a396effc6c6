"""What the forward pass keeps for the backward pass. A policy is a function from a rule to one that saves otherwise.

`RULES.saving({fnn.Relu: saving.one_bit, "0": saving.recompute})` are the same rules, but for what is kept: by type of
layer, by path, or for one layer itself.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from funcnn.backprop.outer import Addend
from funcnn.backprop.passes import slope_of
from funcnn.backprop.rule import Context, Rule, RuleError, Rules, Static
from funcnn.backprop.rules import repeat
from funcnn.compose import Part
from funcnn.layer import Layer, Params, is_floating
from funcnn.layers import Activation, LeakyRelu, Relu
from funcnn.repeat import Repeat

Policy = Callable[[Rule], Rule]
Encode = Callable[[Layer, Params, jax.Array, Any, Context], Any]  # (layer, params, x, residuals, ctx) -> what is kept
Decode = Callable[[Layer, Params, Any, Context], Any]  # (layer, params, kept, ctx) -> residuals

# Where a derivative is looked at, and at how many points, to choose the levels that stand for it.
_SEEN, _POINTS = 10.0, 801


def _kept(rule: Rule, encode: Encode, decode: Decode) -> Rule:
    """The rule that keeps what `encode` makes of its residuals; `decode` makes residuals of it again."""

    def fwd(layer: Layer, params: Params, x: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
        y, residuals = rule.fwd(layer, params, x, ctx)
        return y, encode(layer, params, x, residuals, ctx)

    def decoded(function: Any) -> Any:
        if function is None:
            return None

        def other(layer: Layer, params: Params, kept: Any, *given: Any) -> Any:
            *directions, ctx = given
            # Behind a barrier, as XLA would keep what the forward pass had rather than make it again from this.
            if any(isinstance(direction, Addend) for direction in directions):  # which is no array
                kept = lax.optimization_barrier(kept)
            else:
                kept, directions = lax.optimization_barrier((kept, directions))
            return function(layer, params, decode(layer, params, kept, ctx), *directions, ctx)

        return other

    changed: dict[str, Any] = {name: decoded(vars(rule)[name]) for name in ("bwd", "rows", "tangent", "second")}
    return dataclasses.replace(rule, fwd=fwd, **changed)


def keep(rule: Rule) -> Rule:
    """The rule as it is: what nothing else is said of.

    Args:
        rule: of any layer.

    Returns:
        The same.
    """
    return rule


def recompute(rule: Rule) -> Rule:
    """Keeps the input alone, and runs the layer forward once more on the way back. Exact.

    For a network of layers, such as a `Serial`, it keeps nothing from inside: the time of one more forward pass.

    Args:
        rule: of any layer.

    Returns:
        The rule that saves so.

    Example:
        >>> import funcnn as fnn
        >>> from funcnn.backprop import RULES, saving
        >>> rules = RULES.saving({"1": saving.recompute})

    Source: Chen et al., Training Deep Nets with Sublinear Memory Cost (2016).
    """
    return _kept(
        rule,
        lambda layer, params, x, residuals, ctx: x,
        lambda layer, params, x, ctx: rule.fwd(layer, params, x, ctx)[1],
    )


@dataclasses.dataclass(frozen=True)
class Lower:
    """Keeps floating residuals in a narrower dtype.

    Deltas pass a dense layer exactly, since they need its weights alone; the weights' gradient is that of inputs
    rounded to the dtype.

    Args:
        dtype: such as "bfloat16" (relative error 2^-9) or "float16" (2^-12, and infinity above 65,504).

    Returns of a call: the rule that saves so.

    Raises:
        ValueError: `dtype` is no floating dtype.

    Example:
        >>> import funcnn as fnn
        >>> from funcnn.backprop import RULES, saving
        >>> rules = RULES.saving({fnn.Dense: saving.Lower("float16")})
    """

    dtype: str

    def __post_init__(self) -> None:
        if not is_floating(self.dtype):
            raise ValueError(f"Lower takes a floating dtype, such as 'bfloat16', got {self.dtype!r}")
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype).name)

    def __call__(self, rule: Rule) -> Rule:
        narrow = jnp.dtype(self.dtype)

        def wider(known: Any) -> bool:
            return jnp.issubdtype(known, jnp.floating) and known.itemsize > narrow.itemsize

        # Kept as integers: where XLA does not compute in a narrow dtype, as on CPU, a loop would hold float32 for it.
        def narrowed(leaf: jax.Array) -> jax.Array:
            return lax.bitcast_convert_type(leaf.astype(narrow), f"uint{8 * narrow.itemsize}")

        def widened(leaf: jax.Array) -> jax.Array:
            return lax.bitcast_convert_type(leaf, narrow)

        def encode(layer: Layer, params: Params, x: jax.Array, residuals: Any, ctx: Context) -> Any:
            dtypes = tuple(leaf.dtype for leaf in jax.tree.leaves(residuals))
            return jax.tree.map(lambda leaf: narrowed(leaf) if wider(leaf.dtype) else leaf, residuals), Static(dtypes)

        def decode(layer: Layer, params: Params, kept: Any, ctx: Context) -> Any:
            lowered, dtypes = kept
            leaves, treedef = jax.tree.flatten(lowered)
            pairs = zip(leaves, dtypes.value, strict=True)
            return treedef.unflatten([widened(leaf).astype(known) if wider(known) else leaf for leaf, known in pairs])

        return _kept(rule, encode, decode)


def bfloat16(rule: Rule) -> Rule:
    """`Lower("bfloat16")`: half of the memory of float32, and its range.

    Args:
        rule: of any layer.

    Returns:
        The rule that saves so.

    Example:
        >>> import funcnn as fnn
        >>> from funcnn.backprop import RULES, saving
        >>> rules = RULES.saving({fnn.Dense: saving.bfloat16, fnn.Relu: saving.one_bit})
    """
    return Lower("bfloat16")(rule)


def offload(rule: Rule) -> Rule:
    """Keeps residuals in the host's memory, and fetches them on the way back. Exact.

    A CPU has no other memory than the host's, so that there nothing changes.

    Args:
        rule: of any layer.

    Returns:
        The rule that saves so.

    Example:
        >>> import funcnn as fnn
        >>> from funcnn.backprop import RULES, saving
        >>> rules = RULES.saving({fnn.Dense: saving.offload})
    """
    return _kept(
        rule,
        lambda layer, params, x, residuals, ctx: jax.device_put(residuals, jax.memory.Space.Host),
        lambda layer, params, kept, ctx: jax.device_put(kept, jax.memory.Space.Device),
    )


def one_bit(rule: Rule) -> Rule:
    """Keeps one bit a unit of relu or leaky relu: on which side of 0 it was. Exact.

    Args:
        rule: that of `Relu` or `LeakyRelu`.

    Returns:
        The rule that saves so.

    Raises:
        RuleError: in the forward pass of another layer, whose slope has not two values.

    Example:
        >>> import funcnn as fnn
        >>> from funcnn.backprop import RULES, saving
        >>> rules = RULES.saving({fnn.Relu: saving.one_bit})
    """

    def index(layer: Layer, a: jax.Array, ctx: Context) -> jax.Array:
        if not isinstance(layer, Relu | LeakyRelu):
            other = "FewBits(4)" if isinstance(layer, Activation) else "bfloat16, or recompute,"
            raise RuleError(
                f"one bit is what the slope of Relu and LeakyRelu takes, and this is {layer!r} at "
                f"{'/'.join(ctx.path)!r}; use saving.{other} for it"
            )
        return (slope_of(rule, _alone(layer), a, ctx) == 1).astype(jnp.uint8)

    def slopes(layer: Any) -> np.ndarray:
        return np.array([layer.beta if isinstance(layer, LeakyRelu) else 0.0, 1.0])

    return _few(1, index, slopes, rule, exact=True)


@dataclasses.dataclass(frozen=True)
class FewBits:
    """Keeps a few bits a unit of a smooth activation: which of 2^bits levels stands for its derivative.

    f'(a) ~ level_j for a between two breaks; breaks and levels minimise the integral of the squared error over
    -10 <= a <= 10, beyond which the outermost levels go on. The values of the forward pass stay exact, the deltas that
    pass do not.

    Args:
        bits: 1 to 8.

    Returns of a call, for the rule of an activation without parameters: the rule that saves so.

    Raises:
        ValueError: `bits` is not from 1 to 8.
        RuleError: in the forward pass of a layer that does not act on each unit alone.

    Example:
        >>> import funcnn as fnn
        >>> from funcnn.backprop import RULES, saving
        >>> rules = RULES.saving({fnn.Sigmoid: saving.FewBits(4), fnn.Silu: saving.FewBits(3)})

    Source: Novikov et al., Few-bit Backward: Quantized Gradients of Activation Functions (2022).
    """

    bits: int

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 1 <= self.bits <= 8:
            raise ValueError(f"FewBits keeps 1 to 8 bits a unit, got {self.bits!r}")

    def __call__(self, rule: Rule) -> Rule:
        def index(layer: Layer, a: jax.Array, ctx: Context) -> jax.Array:
            if not (rule.elementwise and isinstance(layer, Activation)):
                raise RuleError(
                    f"FewBits are for activations without parameters, and this is {layer!r} at "
                    f"{'/'.join(ctx.path)!r}; use saving.bfloat16 or saving.recompute for it"
                )
            return jnp.searchsorted(jnp.asarray(_fitted(rule, layer, self.bits)[0], a.dtype), a).astype(jnp.uint8)

        return _few(self.bits, index, lambda layer: _fitted(rule, layer, self.bits)[1], rule)


@functools.cache
def _fitted(rule: Rule, layer: Layer, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Breaks and levels for the layer's slope."""
    a = np.linspace(-_SEEN, _SEEN, _POINTS)
    with jax.ensure_compile_time_eval():
        slope = slope_of(rule, _alone(layer), jnp.asarray(a, jnp.result_type(float))[None], Context(Rules({})))
        return levels(a, np.asarray(slope[0], np.float64), 2**bits)


@dataclasses.dataclass(frozen=True)
class Segments:
    """For `Repeat`: keeps the input of each `length`-th block, and runs the blocks between once more on the way back.

    Memory for n / length inputs and for the residuals of `length` blocks, least for length = sqrt(n); the time of one
    more forward pass. Exact.

    Args:
        length: how many blocks; None: sqrt(n).

    Returns of a call, for the rule of `Repeat`: the rule that saves so.

    Raises:
        ValueError: `length` is no positive integer.
        RuleError: the rule is another.

    Example:
        >>> import funcnn as fnn
        >>> from funcnn.backprop import RULES, saving
        >>> rules = RULES.saving({fnn.Repeat: saving.Segments()})

    Source: Chen et al., Training Deep Nets with Sublinear Memory Cost (2016), section 4.3.
    """

    length: int | None = None

    def __post_init__(self) -> None:
        n = self.length
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise ValueError(f"Segments takes a positive integer, or None for sqrt(n), got {n!r}")

    def __call__(self, rule: Rule) -> Rule:
        if rule is not repeat.RULES[Repeat]:
            raise RuleError(f"Segments are of Repeat, with the rule that funcnn has for it, got {rule!r}")
        return repeat.in_segments(self.length)


def _few(
    bits: int,
    index: Callable[[Any, jax.Array, Context], jax.Array],
    slopes: Callable[[Any], np.ndarray],
    rule: Rule,
    exact: bool = False,
) -> Rule:
    """The rule that keeps `index(layer, a, ctx)`, below 2^bits, of which `slopes(layer)` has f'(a)."""

    def fwd(layer: Layer, params: Params, a: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
        y, _ = rule.fwd(layer, params, a, ctx)
        at = index(layer, a, ctx)
        planes = [jnp.packbits((at >> bit) & 1, axis=-1) for bit in range(bits)]  # one bit of eight units in a byte
        return y, {"bits": planes, "width": Static(a.shape[-1])}

    def along(layer: Layer, kept: Any, dy: jax.Array, ctx: Context) -> jax.Array:
        width = kept["width"].value
        unpacked = [jnp.unpackbits(plane, axis=-1, count=width) << bit for bit, plane in enumerate(kept["bits"])]
        at = functools.reduce(jnp.bitwise_or, unpacked)
        return dy * jnp.asarray(slopes(layer), dy.dtype)[at]

    def bwd(layer: Layer, params: Params, kept: Any, dy: jax.Array, ctx: Context) -> tuple[Params, Any]:
        return (), along(layer, kept, dy, ctx)

    def tangent(layer: Layer, params: Params, kept: Any, v: Params, va: jax.Array, ctx: Context) -> jax.Array:
        return along(layer, kept, va, ctx)

    def second(layer: Layer, params: Params, kept: Any, dy: jax.Array, v: Params, va: Any, ctx: Context) -> Any:
        return (), None  # of one bit: the slope does not change

    return Rule(fwd, bwd, tangent=tangent, second=second if bits == 1 and exact else None, elementwise=True)


def _alone(layer: Layer) -> Part:
    """An activation without parameters."""
    return Part(None, None, layer, ())


def levels(a: np.ndarray, slope: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The best piecewise constant function with `count` pieces for the slopes seen at a, by dynamic programming.

    Args:
        a: where, rising (P,).
        slope: f'(a) (P,).
        count: how many levels.

    Returns:
        The breaks (count - 1,) and the levels (count,).

    Example:
        >>> import numpy as np, funcnn as fnn
        >>> a = np.array([-2.0, -1.0, 1.0, 2.0])
        >>> breaks, levels = fnn.backprop.saving.levels(a, np.array([0.0, 0.1, 0.9, 1.0]), 2)
        >>> print(breaks, levels)
        [0.] [0.05 0.95]
    """
    count, p = min(count, len(a)), len(a)
    first, second = (np.concatenate([[0.0], np.cumsum(slope**power)]) for power in (1, 2))
    i, j = np.arange(p)[:, None], np.arange(1, p + 1)[None]
    size = np.maximum(j - i, 1)
    error = np.where(j > i, second[j] - second[i] - (first[j] - first[i]) ** 2 / size, np.inf)  # of a piece i..j-1
    best, begins = error[0], []
    for _ in range(count - 1):  # best[j - 1]: of the points before j, with one piece more each time
        sums = np.concatenate([[np.inf], best[:-1]])[:, None] + error
        begins.append(sums.argmin(0))
        best = sums.min(0)
    ends = [p]
    for begin in reversed(begins):
        ends.append(int(begin[ends[-1] - 1]))
    edges = [0, *reversed(ends)]
    middle = [(a[e - 1] + a[e]) / 2 for e in edges[1:-1]]
    means = [(first[end] - first[begin]) / (end - begin) for begin, end in itertools.pairwise(edges)]
    return np.array(middle), np.array(means)
