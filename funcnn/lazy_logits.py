"""Logits that are never whole: a network leaves its last product to the loss, which makes a few rows at a time.

`with_lazy_logits` takes the last product out of a network, whose outputs then are `LazyLogits` in the place of the
logits z = x w + b. `values` and `values_and_gradients` make the logits, chunk by chunk of the rows of x, and hand each
chunk to the loss. They are what `losses.linear_cross_entropy` is made of.

Letters: R rows of x, which are the examples or their positions, C of them in a chunk, D features, K classes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import lax

from funcnn.compose import Serial
from funcnn.layer import Key, Layer, Params, Shape, against, float_dtype
from funcnn.layers.dense import Dense, product
from funcnn.wrappers import Cast, WeightNoise

FEW = 2**20  # logits of which there is nothing to save: 4 MiB in float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LazyLogits:
    """Logits z = x w + b as x (N, ..., D), w (D, K) and b (K,) or None; shape and dtype are those of z (N, ..., K)."""

    x: jax.Array
    w: jax.Array
    b: jax.Array | None = None

    @property
    def shape(self) -> Shape:
        return (*self.x.shape[:-1], self.w.shape[1])

    @property
    def ndim(self) -> int:
        return self.x.ndim

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def product_dtype(self) -> Any:
        """Of what is multiplied."""
        return jnp.promote_types(self.x.dtype, self.w.dtype)

    @property
    def dtype(self) -> Any:
        """Of what comes out, and of all sums: float32 at least, for which a chunk of logits has room."""
        return self.product_dtype if self.product_dtype.itemsize >= 4 else jnp.dtype("float32")

    def astype(self, dtype: Any) -> Self:
        """As they are. `Cast` asks for its input's dtype, and they have their own."""
        return self


@dataclasses.dataclass(frozen=True)
class LazyDense(Dense):
    """A dense layer without its product: its outputs are `LazyLogits`. Parameters and errors are those of `Dense`."""

    def apply(self, params: Params, x: jax.Array, *, key: Key | None = None, train: bool = False) -> Any:
        self.check(params, x)
        return LazyLogits(x.astype(float_dtype(x)), **params)

    def _code_name(self) -> str:
        return "Dense"


def last_layer(net: Layer, path: tuple[str, ...] = ()) -> tuple[tuple[str, ...], Layer]:
    """The path and the layer that a network ends in, looked for in `Serial`, `Cast` and `WeightNoise`."""
    if type(net) is Serial:
        return last_layer(net.layers[-1], (*path, str(len(net.layers) - 1)))
    if isinstance(net, Cast | WeightNoise):
        return last_layer(net.layer, path)
    return path, net


def with_lazy_logits(net: Layer) -> Layer:
    """The network, with the same parameters, whose last layer, a `Dense`, is a `LazyDense`."""
    if type(net) is Serial:
        return Serial(*net.layers[:-1], with_lazy_logits(net.layers[-1]))
    if isinstance(net, Cast | WeightNoise):
        return net.replace(layer=with_lazy_logits(net.layer))
    return LazyDense(**{field.name: getattr(net, field.name) for field in dataclasses.fields(net)})


def chunk_size(logits: LazyLogits) -> int:
    """How many rows are made at a time: D / 2, or more where their logits are few.

    Logits and delta of D / 2 rows take the memory of w. Each chunk also adds to dw, D K numbers: in smaller chunks the
    additions would take more time than what is done to the logits, and less than the memory of w would be saved.
    """
    features, classes = logits.w.shape
    return max(features // 2, FEW // classes, 1)


def values(loss: Any, logits: LazyLogits, targets: jax.Array) -> jax.Array:
    """The losses v (N,), each summed over the example's positions."""

    def step(nothing: tuple[()], x: jax.Array, y: jax.Array) -> tuple[tuple[()], jax.Array]:
        return nothing, loss.per_example(_made(logits, x), y)

    _, v = _over_chunks(step, (), _rows(logits, targets), loss.chunk or chunk_size(logits))
    return _sum_positions(v, logits)


def values_and_gradients(
    loss: Any, logits: LazyLogits, targets: jax.Array, dv: jax.Array
) -> tuple[jax.Array, LazyLogits]:
    """The losses v (N,), and the gradient of sum_n dv_n v_n for x, w and b, with each logit made once; dv (N,) or ().

    For every chunk:  dz = dv dv/dz (C, K),  dx = dz w^T (C, D),  dw += x^T dz (D, K),  db += sum dz (K,).
    """

    def contract(a: jax.Array, b: jax.Array, axis: int, like: jax.Array) -> jax.Array:
        a, b = a.astype(logits.product_dtype), b.astype(logits.product_dtype)
        axes, where = (((axis,), (axis,)), ((), ())), jax.typeof(like).sharding
        return lax.dot_general(a, b, axes, preferred_element_type=logits.dtype, out_sharding=where)

    def step(sums: tuple[jax.Array, Any], x: jax.Array, y: jax.Array, dv: jax.Array) -> tuple[Any, Any]:
        dw, db = sums
        z = _made(logits, x)
        dz = dv[:, None].astype(z.dtype) * loss.delta(z, y)
        dw = dw + contract(x, dz, 0, dw)
        db = None if db is None else db + jnp.sum(dz, axis=0)
        return (dw, db), (loss.per_example(z, y), contract(dz, logits.w, 1, x).astype(x.dtype))

    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, logits.dtype), (logits.w, logits.b))
    each_dv = jnp.broadcast_to(dv.reshape(dv.shape + (1,) * (logits.ndim - 1 - dv.ndim)), logits.shape[:-1])
    rows = *_rows(logits, targets), each_dv.reshape(-1)
    (dw, db), (v, dx) = _over_chunks(step, zeros, rows, loss.chunk or chunk_size(logits))
    grads = LazyLogits(dx.reshape(logits.x.shape), dw, db)
    return _sum_positions(v, logits), jax.tree.map(lambda g, like: g.astype(like.dtype), grads, logits)


def _made(logits: LazyLogits, x: jax.Array) -> jax.Array:
    """z (C, K) of some rows of x."""
    z = product(x.astype(logits.product_dtype), logits.w.astype(logits.product_dtype), logits.dtype)
    return z if logits.b is None else z + against(logits.b.astype(z.dtype), z)


def _rows(logits: LazyLogits, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x (R, D) and targets (R,) or (R, K)."""
    x = logits.x.reshape(-1, logits.x.shape[-1])
    return x, targets.reshape(len(x), *targets.shape[logits.ndim - 1 :])


def _sum_positions(v: jax.Array, logits: LazyLogits) -> jax.Array:
    return v if logits.ndim == 2 else jnp.sum(v.reshape(logits.shape[0], -1), axis=1)


def _over_chunks(step: Callable[..., Any], sums: Any, rows: tuple[jax.Array, ...], most: int) -> tuple[Any, Any]:
    """A loop of step(sums, *chunk) -> (sums, results) over chunks of equal length, of at most this many rows.

    A chunk is every n-th row, so that on a mesh each device has its part of all of them. Where the chunks do not divide
    R, rows of zeros are added: their results are cut off, and their dv of 0 keeps them out of the sums.
    """
    count = len(rows[0])
    n = -(-count // most)
    alone = jax.typeof(rows[0]).sharding.shard_shape(rows[0].shape)[0]
    if alone < count:  # on a mesh with explicit axes, where each device has as many, and no row can be added
        n = next(m for m in range(min(n, alone), alone + 1) if alone % m == 0)
    size = -(-count // n)

    def split(a: jax.Array) -> jax.Array:
        if size * n > count:
            a = jnp.pad(a, [(0, size * n - count)] + [(0, 0)] * (a.ndim - 1))
        return a.reshape(size, n, *a.shape[1:])

    def whole(a: jax.Array) -> jax.Array:
        return jnp.moveaxis(a, 0, 1).reshape(size * n, *a.shape[2:])[:count]

    parts = tuple(map(split, rows))

    def take(sums: Any, i: jax.Array) -> tuple[Any, Any]:
        return step(sums, *(lax.dynamic_index_in_dim(a, i, axis=1, keepdims=False) for a in parts))

    sums, results = lax.scan(take, sums, jnp.arange(n))
    return sums, jax.tree.map(whole, results)


# What `jax.grad` sees. It learns the cotangents of the losses only after the forward pass, so that the logits have to
# be made a second time. The weights of a weighted sum are known before: its gradient is made in the forward pass, but
# for the sum's own cotangent, one number that it is multiplied by in the end.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def each(loss: Any, logits: LazyLogits, targets: jax.Array) -> jax.Array:
    """The losses v (N,)."""
    return values(loss, logits, targets)


def _each_fwd(loss: Any, logits: Any, targets: Any) -> tuple[jax.Array, Any]:
    logits, targets = _plain(loss, targets, (logits, targets))
    return values(loss, logits, targets), (logits, targets)


def _each_bwd(loss: Any, kept: Any, dv: Any) -> tuple[LazyLogits, None]:
    logits, targets = kept
    return values_and_gradients(loss, logits, targets, _array(dv))[1], None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def weighted_sum(loss: Any, logits: LazyLogits, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """sum_n weights_n v_n, with weights (N,) or ()."""
    return jnp.sum(weights * values(loss, logits, targets))


def _sum_fwd(loss: Any, logits: Any, targets: Any, weights: Any) -> tuple[jax.Array, Any]:
    logits, targets, weights = _plain(loss, targets, (logits, targets, weights))
    v, grads = values_and_gradients(loss, logits, targets, weights)
    return jnp.sum(weights * v), (grads, v if weights.ndim else jnp.sum(v))


def _sum_bwd(loss: Any, kept: Any, dsum: Any) -> tuple[LazyLogits, None, jax.Array]:
    grads, dweights = jax.tree.map(lambda g: _array(dsum).astype(g.dtype) * g, kept)
    return grads, None, dweights


each.defvjp(_each_fwd, _each_bwd, symbolic_zeros=True)
weighted_sum.defvjp(_sum_fwd, _sum_bwd, symbolic_zeros=True)


def _plain(loss: Any, targets: Any, arguments: Any) -> Any:
    """The arguments as arrays: with symbolic zeros each comes with a flag, whether anyone differentiates for it."""
    if targets.perturbed:
        raise TypeError(
            f"{loss!r} has no gradient for its targets: use softmax_cross_entropy for that, or leave the targets out "
            "of it by jax.lax.stop_gradient(targets)"
        )
    return jax.tree.map(lambda leaf: leaf.value, arguments)


def _array(cotangent: Any) -> jax.Array:
    shape, dtype = cotangent.shape, cotangent.dtype
    return jnp.zeros(shape, dtype) if isinstance(cotangent, jax.custom_derivatives.SymbolicZero) else cotangent
