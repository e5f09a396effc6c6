"""The rule of `layers/maxout.py`."""

from typing import Any

import jax
import jax.numpy as jnp

from funcnn.backprop.rule import Context, Rule
from funcnn.backprop.rules.dense import input_gradient, sum_over_batch, weight_gradient
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
    largest = jnp.unpackbits(bits, axis=-2, count=layer.pieces)
    ties = jnp.sum(largest, axis=-2, keepdims=True, dtype=jnp.uint8 if layer.pieces < 256 else jnp.int32)
    dz = jnp.where(largest > 0, dy[..., None, :] / ties.astype(dy.dtype), 0)
    grads = {"w": weight_gradient(x, dz, params["w"]), "b": sum_over_batch(dz, params["b"])}
    return grads, input_gradient(dz, params["w"], x) if ctx.need_dx else None


RULES = {Maxout: Rule(maxout_fwd, maxout_bwd)}
