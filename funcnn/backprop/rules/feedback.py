"""The rule of `layers/feedback.py`: that of a dense layer; the feedback weights have no part in the output."""

from typing import Any

import jax
import jax.numpy as jnp

from funcnn.backprop.outer import Outer
from funcnn.backprop.rule import Context, Rule
from funcnn.backprop.rules.dense import dense_bwd, dense_fwd, dense_rows, dense_second, dense_tangent
from funcnn.layer import Params
from funcnn.layers.feedback import FeedbackDense


def feedback_bwd(layer: FeedbackDense, params: Params, x: jax.Array, dz: jax.Array, ctx: Context) -> tuple[Params, Any]:
    """dw, db and dx as of a dense layer; dfeedback = 0 (D, K)."""
    grads, dx = dense_bwd(layer, params, x, dz, ctx)
    return grads | {"feedback": jnp.zeros_like(params["feedback"])}, dx


def feedback_rows(layer: FeedbackDense, params: Params, x: jax.Array, dz: jax.Array, ctx: Context) -> Params:
    """dw_n = x_n dz_n^T,  db_n = dz_n,  dfeedback_n = 0."""
    zeros = jnp.zeros((*dz.shape[:-1], layer.width), dz.dtype)
    return dense_rows(layer, params, x, dz, ctx) | {"feedback": Outer.of(params["feedback"], x, zeros)}


# Tangent and second derivative are those of a dense layer: `feedback` is left as it is by both.
RULES = {FeedbackDense: Rule(dense_fwd, feedback_bwd, feedback_rows, dense_tangent, dense_second)}
