"""The rule of `layers/rbf.py`."""

from typing import Any

import jax
import jax.numpy as jnp

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


RULES = {Rbf: Rule(rbf_fwd, rbf_bwd)}
