"""The rule of `layers/maxout.py`."""

from typing import Any

import jax
import jax.numpy as jnp

from funcnn.backprop.outer import Outer
from funcnn.backprop.rule import Context, Rule
from funcnn.backprop.rules.dense import affine_second, input_gradient, sum_over_batch, weight_gradient
from funcnn.layer import Params
from funcnn.layers.maxout import Maxout


def maxout_fwd(layer: Maxout, params: Params, x: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
    """y_k = max_p z_pk. Residuals: x (..., D), and which pieces are the largest, a bit each, (..., ceil(P/8), K) bytes.

    Bits instead of an argmax: they take no more room up to eight pieces, and they know of ties.
    """
    z = layer.pre_activation(params, x)
    y = jnp.max(z, axis=-2)
    return y, (x, jnp.packbits(z == y[..., None, :], axis=-2))


def maxout_bwd(layer: Maxout, params: Params, residuals: Any, dy: jax.Array, ctx: Context) -> tuple[Params, Any]:
    """dz_pk = dy_k [piece p is largest] / (number that tie), (..., P, K);  then as for a dense layer:

    dw = sum_n x_n dz_n^T (D, P, K),  db = sum_n dz_n (P, K),  dx_d = sum_pk dz_pk w_dpk (..., D).
    Source: Goodfellow et al., Maxout Networks (2013); ties as `jnp.max` has them.
    """
    x, bits = residuals
    dz = piece_gradient(layer, bits, dy)
    grads = {"w": weight_gradient(x, dz, params["w"]), "b": sum_over_batch(dz, params["b"])}
    return grads, input_gradient(dz, params["w"], x) if ctx.need_dx else None


def piece_gradient(layer: Maxout, bits: jax.Array, dy: jax.Array) -> jax.Array:
    """dz_pk = dy_k [piece p is largest] / (number that tie), (..., P, K)."""
    largest = jnp.unpackbits(bits, axis=-2, count=layer.pieces)
    ties = jnp.sum(largest, axis=-2, keepdims=True, dtype=jnp.uint8 if layer.pieces < 256 else jnp.int32)
    return jnp.where(largest > 0, dy[..., None, :] / ties.astype(dy.dtype), 0)


def maxout_rows(layer: Maxout, params: Params, residuals: Any, dy: jax.Array, ctx: Context) -> Params:
    """dw_n = x_n dz_n^T,  db_n = dz_n: the sums of `maxout_bwd` before they are taken."""
    x, bits = residuals
    dz = piece_gradient(layer, bits, dy)
    return {"w": Outer.of(params["w"], x, dz), "b": Outer.of(params["b"], None, dz)}


def maxout_tangent(
    layer: Maxout, params: Params, residuals: Any, v: Params, vx: jax.Array | None, ctx: Context
) -> jax.Array:
    """vy_k = the mean over the largest pieces of vz_pk,  vz = vx w + x vw + vb."""
    x, bits = residuals
    changes = [] if v is None else [layer.pre_activation(v, x)]
    changes += [] if vx is None else [jnp.tensordot(vx, params["w"], 1)]
    vz = sum(changes[1:], start=changes[0])
    share = piece_gradient(layer, bits, jnp.ones((*vz.shape[:-2], vz.shape[-1]), vz.dtype))
    return jnp.sum(share * vz, axis=-2)


def maxout_second(
    layer: Maxout, params: Params, residuals: Any, dy: jax.Array, v: Params, vx: jax.Array | None, ctx: Context
) -> tuple[Params, Any]:
    """As of a dense layer: dw' = sum_n vx_n dz_n^T,  db' = 0,  dx_d' = sum_pk dz_pk vw_dpk."""
    x, bits = residuals
    return affine_second(params, x, piece_gradient(layer, bits, dy), v, vx, ctx)


RULES = {Maxout: Rule(maxout_fwd, maxout_bwd, maxout_rows, maxout_tangent, maxout_second)}
