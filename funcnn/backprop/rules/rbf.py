"""The rule of `layers/rbf.py`."""

from typing import Any

import jax
import jax.numpy as jnp

from funcnn.backprop.outer import Outer
from funcnn.backprop.rule import Context, Rule
from funcnn.backprop.rules.dense import input_gradient, sum_over_batch, weight_gradient
from funcnn.layer import Params, against
from funcnn.layers.rbf import Rbf


def rbf_fwd(layer: Rbf, params: Params, x: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
    """y_k = exp(-(epsilon |x - c_k|)^2). Residuals: x (..., D), y (..., K)."""
    y = layer.apply(params, x)
    return y, (x, y)


def rbf_bwd(layer: Rbf, params: Params, residuals: Any, dy: jax.Array, ctx: Context) -> tuple[Params, Any]:
    """With g_k = 2 epsilon^2 y_k dy_k (..., K):

    dc_k = sum_n g_nk (x_n - c_k) (K, D),  dx = sum_k g_k (c_k - x) (..., D),

    from dy_k/dx = -2 epsilon^2 y_k (x - c_k) = -dy_k/dc_k. Both sums are matrix products once they are multiplied out,
    where autodiff forms all N K D differences; x and c are first moved to the centres' mean, so that little cancels.
    """
    x, y = residuals
    c = layer.centre_array(params, x)
    mean = jnp.mean(c, axis=0)
    from_mean, c = x - against(mean, x), c - against(mean, c)
    g = (2 * layer.epsilon**2) * y * dy
    grads: Params = ()
    if layer.centres is None:
        total = sum_over_batch(g, jnp.zeros(layer.features, g.dtype))
        grads = {"c": weight_gradient(g, from_mean, params["c"]) - (total[:, None] * c).astype(params["c"].dtype)}
    if not ctx.need_dx:
        return grads, None
    return grads, input_gradient(g, c.T, x) - (jnp.sum(g, axis=-1, keepdims=True) * from_mean).astype(x.dtype)


def rbf_rows(layer: Rbf, params: Params, residuals: Any, dy: jax.Array, ctx: Context) -> Params:
    """dc_nk = g_nk (x_n - c_k): the sum of `rbf_bwd` before it is taken; x and c moved to the centres' mean."""
    if layer.centres is not None:
        return ()
    x, y = residuals
    mean = jnp.mean(params["c"], axis=0)
    from_mean, c = x - against(mean, x), params["c"] - against(mean, params["c"])
    return {"c": Outer.of(params["c"], from_mean, (2 * layer.epsilon**2) * y * dy, shift=c, transposed=True)}


def rbf_tangent(layer: Rbf, params: Params, residuals: Any, v: Params, vx: jax.Array | None, ctx: Context) -> jax.Array:
    """vy_k = -2 epsilon^2 y_k (x - c_k)^T (vx - vc_k), multiplied out after x and c moved to the centres' mean."""
    x, y = residuals
    c = layer.centre_array(params, x)
    mean = jnp.mean(c, axis=0)
    x, c = x - against(mean, x), c - against(mean, c)
    inner = jnp.zeros_like(y)
    if vx is not None:
        inner += jnp.sum(x * vx, axis=-1, keepdims=True) - vx @ c.T
    if layer.centres is None and v is not None:
        inner += against(jnp.sum(c * v["c"], axis=-1), y) - x @ v["c"].T
    return (-2 * layer.epsilon**2) * y * inner


def rbf_second(
    layer: Rbf, params: Params, residuals: Any, dy: jax.Array, v: Params, vx: jax.Array | None, ctx: Context
) -> tuple[Params, Any]:
    """With vg_k = 2 epsilon^2 vy_k dy_k, the change of g:

    dc_k' = sum_n vg_nk (x_n - c_k) + g_nk (vx_n - vc_k),  dx' = sum_k vg_k (c_k - x) + g_k (vc_k - vx).
    """
    x, y = residuals
    c = layer.centre_array(params, x)
    mean = jnp.mean(c, axis=0)
    from_mean, c = x - against(mean, x), c - against(mean, c)
    vc = jnp.zeros_like(c) if layer.centres is not None or v is None else v["c"]
    vx = jnp.zeros_like(x) if vx is None else vx
    scale = 2 * layer.epsilon**2
    g, vg = scale * y * dy, scale * rbf_tangent(layer, params, residuals, v, vx, ctx) * dy
    grads: Params = ()
    if layer.centres is None:
        zero = jnp.zeros(layer.features, g.dtype)
        total, v_total = sum_over_batch(g, zero), sum_over_batch(vg, zero)
        products = weight_gradient(vg, from_mean, c) + weight_gradient(g, vx, c)
        grads = {"c": products - v_total[:, None] * c - total[:, None] * vc}
    sums = [jnp.sum(array, axis=-1, keepdims=True) for array in (vg, g)]
    return grads, vg @ c + g @ vc - sums[0] * from_mean - sums[1] * vx


RULES = {Rbf: Rule(rbf_fwd, rbf_bwd, rbf_rows, rbf_tangent, rbf_second)}
