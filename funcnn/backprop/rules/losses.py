"""The rules of `losses.py`.

In the place of (layer, params, x) stand (loss, targets, outputs); the targets get no gradient.

Shapes: outputs and doutputs (N, ..., K), dv (N,) the gradient for each example's loss.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import nn

from funcnn import losses
from funcnn.backprop.rule import Context, Rule


def closed_form(delta: Callable[[Any, jax.Array, jax.Array], jax.Array]) -> Rule:
    """The rule of a loss from its delta(loss, outputs, targets) = dv/doutputs. Residual: outputs, the net's own."""

    def fwd(loss: losses.Loss, targets: jax.Array, outputs: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
        return loss(outputs, targets), outputs

    def bwd(loss: losses.Loss, targets: jax.Array, outputs: jax.Array, dv: jax.Array, ctx: Context) -> tuple[None, Any]:
        slope = delta(loss, outputs, targets)
        return None, (per_example(dv, slope) * slope).astype(outputs.dtype)

    return Rule(fwd, bwd)


def per_example(dv: jax.Array, outputs: jax.Array) -> jax.Array:
    """dv (N,) with axes of length 1 behind, to broadcast over each example's outputs."""
    return dv.reshape(dv.shape + (1,) * (outputs.ndim - 1))


def squared_error(loss: losses.SquaredError, f: jax.Array, y: jax.Array) -> jax.Array:
    """2 (f - y)."""
    return 4 * losses.half_difference(f, y)


def mse(loss: losses.Mse, f: jax.Array, y: jax.Array) -> jax.Array:
    """2 (f - y) / K."""
    return losses.half_difference(f, y) * (4 / losses.width(f))


def mae(loss: losses.Mae, f: jax.Array, y: jax.Array) -> jax.Array:
    """sign(f - y) / K, 0 where f = y."""
    return jnp.sign(losses.half_difference(f, y)) * (1 / losses.width(f))


def gaussian_nll(loss: losses.GaussianNll, f: jax.Array, y: jax.Array) -> jax.Array:
    """(f - y) / v for the mean; for a learned log-variance s also (1 - (f - y)^2 exp(-s)) / 2."""
    q, e, _ = loss.standardized(f, y)
    df = q * e * e
    return jnp.concatenate([df, (1 - jnp.square(q)) / 2], axis=-1) if isinstance(loss.variance, str) else df


def laplace_nll(loss: losses.LaplaceNll, f: jax.Array, y: jax.Array) -> jax.Array:
    """sign(f - y) / b, 0 where f = y."""
    return jnp.sign(losses.half_difference(f, y)) * (1 / loss.scale)


def bernoulli_nll(loss: losses.BernoulliNll, z: jax.Array, y: jax.Array) -> jax.Array:
    """sigmoid(z) - y, written (1 - y) sigmoid(z) - y sigmoid(-z), which keeps its digits where the answer is right."""
    yes, no = loss.probabilities(z, y)
    return no * nn.sigmoid(z) - yes * nn.sigmoid(-z)


def softmax_cross_entropy(loss: losses.SoftmaxCrossEntropy, z: jax.Array, y: jax.Array) -> jax.Array:
    """softmax(z) sum_k y_k - y, which is softmax(z) - y where the targets sum to 1."""
    p = loss.distribution(z, y)
    return nn.softmax(z, axis=-1) * jnp.sum(p, axis=-1, keepdims=True) - p


def nll(loss: losses.Nll, log_p: jax.Array, y: jax.Array) -> jax.Array:
    """-y."""
    return -loss.distribution(log_p, y)


RULES = {
    losses.SquaredError: closed_form(squared_error),
    losses.Mse: closed_form(mse),
    losses.Mae: closed_form(mae),
    losses.GaussianNll: closed_form(gaussian_nll),
    losses.LaplaceNll: closed_form(laplace_nll),
    losses.BernoulliNll: closed_form(bernoulli_nll),
    losses.SoftmaxCrossEntropy: closed_form(softmax_cross_entropy),
    losses.Nll: closed_form(nll),
}
