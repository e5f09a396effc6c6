"""The rule of `layers/dense.py`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from funcnn.backprop.outer import Outer
from funcnn.backprop.rule import Context, Rule
from funcnn.layer import Params
from funcnn.layers.dense import Dense, product


def weight_gradient(x: jax.Array, dz: jax.Array, w: jax.Array) -> jax.Array:
    """dw = sum_n x_n dz_n^T, of w's shape, dtype and sharding: x (..., D), dz (..., *out), w (D, *out).

    On a mesh with explicit axes a contraction over a sharded N has to be told where its result lives.
    """
    batch = tuple(range(x.ndim - 1))
    dtype = jnp.promote_types(x.dtype, dz.dtype)
    out_sharding = jax.typeof(w).sharding
    return lax.dot_general(
        x.astype(dtype), dz.astype(dtype), ((batch, batch), ((), ())), out_sharding=out_sharding
    ).astype(w.dtype)


def input_gradient(dz: jax.Array, w: jax.Array, x: jax.Array) -> jax.Array:
    """dx = dz w^T, of x's shape, dtype and sharding: dz (..., *out), w (D, *out)."""
    out = w.ndim - 1
    axes = tuple(range(dz.ndim - out, dz.ndim)), tuple(range(1, w.ndim))
    dtype = jnp.promote_types(dz.dtype, w.dtype)
    out_sharding = jax.typeof(x).sharding
    return lax.dot_general(dz.astype(dtype), w.astype(dtype), (axes, ((), ())), out_sharding=out_sharding).astype(
        x.dtype
    )


def sum_over_batch(dy: jax.Array, like: jax.Array) -> jax.Array:
    """The gradient of a parameter that was broadcast over the batch: the sum over the axes that it lacks."""
    return jnp.sum(dy, axis=tuple(range(dy.ndim - like.ndim))).astype(like.dtype)


def dense_fwd(layer: Dense, params: Params, x: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
    """z = x w + b. Residual: x (..., D)."""
    return layer.apply(params, x), x


def dense_bwd(layer: Dense, params: Params, x: jax.Array, dz: jax.Array, ctx: Context) -> tuple[Params, Any]:
    """dw = sum_n x_n dz_n^T (D, K),  db = sum_n dz_n (K,),  dx = dz w^T (..., D).

    z_nk = sum_d x_nd w_dk + b_k, so that dz_nk/dw_dk = x_nd, dz_nk/db_k = 1, dz_nk/dx_nd = w_dk.
    Source: Goodfellow, Bengio and Courville (2016), section 6.5.6.
    """
    grads = {"w": weight_gradient(x, dz, params["w"])}
    if layer.bias:
        grads["b"] = sum_over_batch(dz, params["b"])
    return grads, input_gradient(dz, params["w"], x) if ctx.need_dx else None


def dense_rows(layer: Dense, params: Params, x: jax.Array, dz: jax.Array, ctx: Context) -> Params:
    """dw_n = x_n dz_n^T,  db_n = dz_n: the sums of `dense_bwd` before they are taken."""
    rows = {"w": Outer.of(params["w"], x, dz)}
    return rows | {"b": Outer.of(params["b"], None, dz)} if layer.bias else rows


def dense_tangent(layer: Dense, params: Params, x: jax.Array, v: Params, vx: Any, ctx: Context) -> jax.Array:
    """vz = vx w + x vw + vb."""
    if vx is None:
        return layer.apply(v, x)
    vz = product(vx, params["w"])
    return vz if v is None else layer.apply(v, x) + vz


def dense_second(
    layer: Dense, params: Params, x: jax.Array, dz: jax.Array, v: Params, vx: Any, ctx: Context
) -> tuple[Params, Any]:
    """dw' = sum_n vx_n dz_n^T,  db' = 0,  dx' = dz vw^T: z is linear in w and in x, and not in both."""
    return affine_second(params, x, dz, v, vx, ctx)


def affine_second(params: Params, x: jax.Array, dz: jax.Array, v: Params, vx: Any, ctx: Context) -> tuple[Params, Any]:
    """`dense_second` for weights w (D, *out) and biases."""
    grads = None
    if vx is not None:
        grads = jax.tree.map(jnp.zeros_like, params) | {"w": weight_gradient(vx, dz, params["w"])}
    return grads, input_gradient(dz, v["w"], x) if ctx.need_dx and v is not None else None


RULES = {Dense: Rule(dense_fwd, dense_bwd, dense_rows, dense_tangent, dense_second, affine=True)}
