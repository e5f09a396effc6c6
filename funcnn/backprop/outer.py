"""The gradient of one parameter for each example by itself, in factors: what a layer has before it sums."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcnn.layer import against

MOST_SLICES = 32  # that are added in one loop


class Addend:
    """What stands in the place of an array on its way back through a network: it adds and is cast in its own way."""

    def piece(self, begin: int, end: int) -> Any:
        """What comes from `begin` to `end` of the last axis of a value that was joined."""
        raise TypeError(f"{type(self).__name__} stands for a parameter's gradient, and has no pieces")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outer(Addend):
    """For each example n the gradient of one parameter, as a sum of outer products over positions t.

    g_n = sum_t a_nt d_nt^T   (A, B), seen in the parameter's shape;  with a shift s:  g_n = sum_t (a_nt - s_b)_a d_ntb

    A dense layer has its input as a and its delta as d. There is one position t, unless examples have more axes than
    one or the parameter is used in several places. Backward passes of several deltas share a and differ in d. For the
    parameters of n blocks, in one array (n, A, B), there is an axis of the blocks before that of the examples.

    Attributes:
        activity: a ([n,] N, T, A); None where A = 1 and all a = 1, as for a bias.
        delta: d ([n,] N, T, B); or (C, [n,] N, T, B) for C deltas.
        shift: s ([n,] B, A), as the centres of radial basis functions; else None.
        shape: the parameter's, ([n,] ...).
        transposed: whether the parameter is (B, A), with the units first.
        blocks: how many axes are numbers of blocks: 1 in a `Repeat`, 2 in one within another.
    """

    activity: jax.Array | None
    delta: jax.Array
    shift: jax.Array | None = None
    shape: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
    transposed: bool = dataclasses.field(default=False, metadata={"static": True})
    blocks: int = dataclasses.field(default=0, metadata={"static": True})

    @classmethod
    def of(
        cls,
        parameter: jax.Array,
        activity: jax.Array | None,
        delta: jax.Array,
        shift: jax.Array | None = None,
        transposed: bool = False,
    ) -> "Outer":
        """From arrays as a rule has them: activity (N, ..., A), delta (N, ..., *B), all axes between positions."""
        shape = parameter.shape
        units = shape if activity is None else shape[:-1] if transposed else shape[1:]
        n, b = delta.shape[0], math.prod(units)
        if activity is not None:
            activity = activity.reshape(n, -1, activity.shape[-1])
            if not jnp.issubdtype(activity.dtype, jnp.floating):  # such as the bytes of an image, whose squares wrap
                activity = activity.astype(delta.dtype)
        return cls(activity, delta.reshape(n, -1, b), shift, shape, transposed)

    def __add__(self, other: "Outer") -> "Outer":
        """The gradient of a parameter that is used in two places: the positions of both."""
        if self.activity is None and other.activity is None:
            activity = None
        else:
            activity = jnp.concatenate([self.activities(), other.activities()], axis=-2)
        return dataclasses.replace(self, activity=activity, delta=jnp.concatenate([self.delta, other.delta], axis=-2))

    def activities(self) -> jax.Array:
        """a (N, T, A), also where all are 1."""
        if self.activity is not None:
            return self.activity
        return jnp.ones((*self.delta.shape[-3 - self.blocks : -1], 1), self.delta.dtype)

    def astype(self, dtype: jnp.dtype) -> "Outer":
        """The same in another dtype."""
        return jax.tree.map(lambda array: array.astype(dtype), self)

    def stacked(self, n: int) -> "Outer":
        """Of n blocks, where the arrays of these have got an axis for them, in front."""
        return dataclasses.replace(self, shape=(n, *self.shape), blocks=self.blocks + 1)

    def by_block(self, d: jax.Array) -> "Outer":
        """With deltas d (C, n, N, T, B): what loops can go through, the blocks first in each array."""
        d = jnp.moveaxis(d, -3 - self.blocks, 0)
        return dataclasses.replace(self, delta=d, shape=self.shape[1:], blocks=self.blocks - 1)

    def shaped(self, g: jax.Array) -> jax.Array:
        """g (..., A, B) in the parameter's shape (..., *shape)."""
        g = jnp.swapaxes(g, -1, -2) if self.transposed else g
        return g.reshape(*g.shape[:-2], *self.shape)


def is_outer(node: Any) -> bool:
    """Whether a node of a tree stands in the place of one array."""
    return isinstance(node, Outer)


def basis(values: jax.Array) -> jax.Array:
    """values (N, ...) as one column for each output: (C, N, ...), column c the values of output c, 0 elsewhere."""
    n, shape = values.shape[0], values.shape[1:]
    unit = jnp.eye(math.prod(shape), dtype=values.dtype).reshape(-1, 1, *shape)
    return unit * values.reshape(1, n, *shape)


def at_least_float32(a: jax.Array) -> jax.Array:
    """For linear algebra, which has no bfloat16, and for sums of small and large numbers."""
    return a if a.dtype.itemsize >= 4 else a.astype(jnp.float32)


def _added_over_blocks(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A function of factors without blocks, for those with: the sum of what it gives, a block at a time."""

    @functools.wraps(function)
    def whole(outer: Outer, d: jax.Array) -> jax.Array:
        if not outer.blocks:
            return function(outer, d)
        each = outer.by_block(d)
        like = jax.eval_shape(lambda one: whole(one, one.delta), jax.tree.map(lambda array: array[0], each))
        zero = jnp.zeros(like.shape, like.dtype)
        return jax.lax.scan(lambda total, one: (total + whole(one, one.delta), None), zero, each)[0]

    return whole


def _beside_each_other(axis: int) -> Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]:
    """A function of factors without blocks, for those with: what it gives for each, stacked along an axis."""

    def of_blocks(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        @functools.wraps(function)
        def whole(outer: Outer, d: jax.Array, *rest: Any) -> jax.Array:
            if not outer.blocks:
                return function(outer, d, *rest)
            return jnp.moveaxis(jax.lax.map(lambda one: whole(one, one.delta, *rest), outer.by_block(d)), 0, axis)

        return whole

    return of_blocks


@_beside_each_other(2)
def formed(outer: Outer, d: jax.Array) -> jax.Array:
    """g_n = sum_t (a_nt - s) d_nt (C, N, *shape)."""
    if outer.activity is None:
        return outer.shaped(jnp.sum(d, axis=-2)[..., None, :])
    g = jnp.einsum("nta,cntb->cnab", outer.activity, d)
    if outer.shift is not None:
        g = g - against(outer.shift.T, g) * jnp.sum(d, axis=-2)[..., None, :]
    return outer.shaped(g)


@_beside_each_other(0)
def weighted_sum(outer: Outer, d: jax.Array) -> jax.Array:
    """sum_n g_n of deltas (N, T, B), in the parameter's shape."""
    if outer.activity is None:
        return outer.shaped(jnp.sum(d, axis=(0, 1))[None])
    g = jnp.tensordot(outer.activity, d, axes=((0, 1), (0, 1)))
    if outer.shift is not None:
        g = g - outer.shift.T * jnp.sum(d, axis=(0, 1))[None]
    return outer.shaped(g)


@_added_over_blocks
def squared_norms_of(outer: Outer, d: jax.Array) -> jax.Array:
    """(C, N)."""
    outer, d = _precise(outer), at_least_float32(d)
    positions = d.shape[-2]
    if outer.activity is None:
        return jnp.sum(jnp.square(jnp.sum(d, axis=-2)), axis=-1)
    if positions == 1:
        a, d = outer.activity[:, 0], d[..., 0, :]
        if outer.shift is None:
            return jnp.sum(jnp.square(a), axis=-1)[None] * jnp.sum(jnp.square(d), axis=-1)
        distance = jnp.sum(jnp.square(a[:, None, :] - outer.shift[None]), axis=-1)
        return jnp.sum(jnp.square(d) * distance[None], axis=-1)
    # Of one example and delta at a time, whose positions are rows.
    over_examples = jax.vmap(lambda a, rows: jnp.maximum(jnp.sum(_gram(a, rows, outer.shift)), 0))
    return jax.vmap(lambda rows: over_examples(outer.activity, rows))(d)


def _precise(outer: Outer) -> Outer:
    return jax.tree.map(at_least_float32, outer)


def _gram(a: jax.Array, d: jax.Array, shift: jax.Array | None) -> jax.Array:
    """((a_i - s) d_i) . ((a_j - s) d_j) (M, M) of a (M, A) and d (M, B)."""
    aa, dd = a @ a.T, d @ d.T
    if shift is None:
        return aa * dd
    # sum_b d_ib d_jb (a_i - s_b) . (a_j - s_b), multiplied out
    mixed = (d * (a @ shift.T)) @ d.T
    return aa * dd - mixed - mixed.T + (d * jnp.sum(jnp.square(shift), axis=-1)[None]) @ d.T


@_added_over_blocks
def dot_products_of(outer: Outer, d: jax.Array) -> jax.Array:
    """(C N, C N)."""
    outer, d = _precise(outer), at_least_float32(d)
    columns, n, positions, _ = d.shape
    if outer.activity is None:
        total = jnp.sum(d, axis=-2).reshape(columns * n, -1)
        return total @ total.T
    a = jnp.broadcast_to(outer.activity, (columns, *outer.activity.shape)).reshape(-1, outer.activity.shape[-1])
    gram = _gram(a, d.reshape(-1, d.shape[-1]), outer.shift)
    return gram.reshape(columns * n, positions, columns * n, positions).sum((1, 3))


@_beside_each_other(0)
def sum_of_squares_of(outer: Outer, d: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """sum_nc weight_cn g_nc^2, in the parameter's shape, of deltas d (C, N, T, B); weight (C, N), 1 unless given."""

    def weighted(squares: jax.Array) -> jax.Array:
        if weight is None:
            return squares
        return squares * weight.reshape(*weight.shape, *(1,) * (squares.ndim - 2)).astype(squares.dtype)

    if outer.activity is None:
        columns = weighted(jnp.square(jnp.sum(d, axis=-2)))
        return outer.shaped(jnp.sum(sum_of_columns(columns), axis=0)[None])
    if d.shape[-2] == 1:
        a, squares = outer.activity[:, 0], sum_of_columns(weighted(jnp.square(d[..., 0, :])))
        g = jnp.square(a).T @ squares
        if outer.shift is not None:
            s = outer.shift.T
            g = g - 2 * s * (a.T @ squares) + jnp.square(s) * jnp.sum(squares, axis=0)[None]
        return outer.shaped(g)

    # The square of a sum over positions: an example at a time, so that one gradient is held and not N.
    def add(total: jax.Array, example: Any) -> tuple[jax.Array, None]:
        activity, delta, w = example
        one = Outer(activity[None], delta[:, None], outer.shift, outer.shape, outer.transposed)
        squares = jnp.square(formed(one, one.delta)) * w.reshape(-1, *(1,) * (len(outer.shape) + 1))
        return total + jnp.sum(squares, axis=(0, 1)), None

    weights = jnp.ones(d.shape[:2], d.dtype) if weight is None else weight.astype(d.dtype)
    return jax.lax.scan(add, jnp.zeros(outer.shape, d.dtype), (outer.activity, jnp.moveaxis(d, 0, 1), weights.T))[0]


def sum_of_columns(values: jax.Array) -> jax.Array:
    """The sum over the first axis, in halves and slices: XLA's reduction over it is fifty times slower on CPU."""
    while len(values) > MOST_SLICES:
        half = len(values) // 2
        rest = values[2 * half :]
        values = jnp.concatenate([values[:half] + values[half : 2 * half], rest])
    total, *others = list(values)
    for value in others:
        total = total + value
    return total


@_beside_each_other(0)
def delta_moment(outer: Outer, d: jax.Array) -> jax.Array:
    """B = sum_nct d_nct d_nct^T; where there is no activity, of the sum over the positions."""
    d = jnp.sum(d, axis=-2) if outer.activity is None else d
    d = d.reshape(-1, d.shape[-1])
    return d.T @ d


def activity_moment(outer: Outer, shares: jax.Array) -> jax.Array | None:
    """A = sum_n m_n / T sum_t a_nt a_nt^T; of a - s_b its mean over the units b. None without an activity."""
    return None if outer.activity is None else _activity_moment(outer, outer.delta, shares)


@_beside_each_other(0)
def _activity_moment(outer: Outer, _: jax.Array, shares: jax.Array) -> jax.Array:
    a = outer.activity
    assert a is not None
    n, t, width = a.shape
    weight = jnp.sqrt(shares / t).astype(a.dtype)
    flat = (a * weight[:, None, None]).reshape(n * t, width)
    moment = flat.T @ flat
    if outer.shift is None:
        return moment
    mean, s = flat.T @ jnp.repeat(weight, t), outer.shift
    middle = jnp.mean(s, axis=0)
    return moment - jnp.outer(mean, middle) - jnp.outer(middle, mean) + s.T @ s / len(s)
