"""The rules of `losses.py`.

In the place of (layer, params, x) stand (loss, targets, outputs); the targets get no gradient.

Shapes: outputs and doutputs (N, ..., K), dv (N,) the gradient for each example's loss.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import nn, random

from funcnn import losses
from funcnn.backprop.outer import basis
from funcnn.backprop.rule import Context, LossRule
from funcnn.layer import Key
from funcnn.lazy_logits import LazyLogits, values_and_gradients


def closed_form(
    delta: Callable[[Any, jax.Array, jax.Array], jax.Array],
    hessian: Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array],
    root: Callable[[Any, jax.Array, jax.Array], jax.Array | None],
    score: Callable[[Any, jax.Array, jax.Array, Key], jax.Array],
) -> LossRule:
    """The rule of a loss from its delta(loss, outputs, targets) = dv/doutputs. Residual: outputs, the net's own.

    The others are those of `LossRule`, with outputs and targets in this order.
    """

    def fwd(loss: losses.Loss, targets: jax.Array, outputs: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
        return loss(outputs, targets), outputs

    def bwd(loss: losses.Loss, targets: jax.Array, outputs: jax.Array, dv: jax.Array, ctx: Context) -> tuple[None, Any]:
        slope = delta(loss, outputs, targets)
        return None, (per_example(dv, slope) * slope).astype(outputs.dtype)

    return LossRule(
        fwd,
        bwd,
        hessian=lambda loss, targets, outputs, u: hessian(loss, outputs, targets, u),
        root=lambda loss, targets, outputs: root(loss, outputs, targets),
        score=lambda loss, targets, outputs, key: score(loss, outputs, targets, key),
    )


def elementwise(
    delta: Callable[[Any, jax.Array, jax.Array], jax.Array],
    second: Callable[[Any, jax.Array, jax.Array], jax.Array],
    score: Callable[[Any, jax.Array, jax.Array, Key], jax.Array],
) -> LossRule:
    """The rule of a loss that is a sum over outputs: second(loss, outputs, targets) = d^2 v / doutputs^2 >= 0."""

    def hessian(loss: losses.Loss, f: jax.Array, y: jax.Array, u: jax.Array) -> jax.Array:
        return second(loss, f, y) * u

    def root(loss: losses.Loss, f: jax.Array, y: jax.Array) -> jax.Array:
        return basis(jnp.sqrt(second(loss, f, y)))

    return closed_form(delta, hessian, root, score)


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


def gaussian_nll_hessian(loss: losses.GaussianNll, f: jax.Array, y: jax.Array, u: jax.Array) -> jax.Array:
    """u / v; for a learned log-variance s: [[e^-s, -(f - y) e^-s], [-(f - y) e^-s, (f - y)^2 e^-s / 2]] u."""
    q, e, _ = loss.standardized(f, y)
    if not isinstance(loss.variance, str):
        return u / loss.variance
    for_f, for_s = jnp.split(u, 2, axis=-1)
    off = -q * e * e
    return jnp.concatenate([e**4 * for_f + off * for_s, off * for_f + jnp.square(q) / 2 * for_s], axis=-1)


def gaussian_nll_root(loss: losses.GaussianNll, f: jax.Array, y: jax.Array) -> jax.Array | None:
    """One column 1/sigma for each output; none for a learned variance, with which the loss is not convex."""
    if isinstance(loss.variance, str):
        return None
    return basis(jnp.full(f.shape, loss.variance**-0.5, f.dtype))


def gaussian_nll_score(loss: losses.GaussianNll, f: jax.Array, y: jax.Array, key: Key) -> jax.Array:
    """eps / sigma, eps ~ Normal(0, 1); for the log-variance (1 - eps^2) / 2."""
    if not isinstance(loss.variance, str):
        return loss.variance**-0.5 * random.normal(key, f.shape, f.dtype)
    s = jnp.split(f, 2, axis=-1)[1]
    eps = random.normal(key, s.shape, f.dtype)
    return jnp.concatenate([eps * jnp.exp(s / -2), (1 - jnp.square(eps)) / 2], axis=-1)


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


def softmax_hessian(loss: losses.SoftmaxCrossEntropy, z: jax.Array, y: jax.Array, u: jax.Array) -> jax.Array:
    """s (p u - p (p^T u)), p = softmax(z), s = sum_k y_k: H = s (diag(p) - p p^T)."""
    p, s = nn.softmax(z, axis=-1), jnp.sum(loss.distribution(z, y), axis=-1, keepdims=True)
    return s * p * (u - jnp.sum(p * u, axis=-1, keepdims=True))


def softmax_root(loss: losses.SoftmaxCrossEntropy, z: jax.Array, y: jax.Array) -> jax.Array:
    """s_c = sqrt(s p_c) (e_c - p), a column for each class (and position): sum_c s_c s_c^T = s (diag(p) - p p^T)."""
    p, s = nn.softmax(z, axis=-1), jnp.sum(loss.distribution(z, y), axis=-1, keepdims=True)
    class_ = jnp.eye(z.shape[-1], dtype=z.dtype).reshape(-1, *(1,) * (z.ndim - 1), z.shape[-1])
    columns = jnp.sqrt(s[None] * jnp.moveaxis(p, -1, 0)[..., None]) * (class_ - p[None])
    positions = math.prod(z.shape[1:-1])
    if positions == 1:
        return columns
    # A column for each class of each position, 0 at the others.
    at = jnp.eye(positions, dtype=z.dtype).reshape(positions, 1, 1, *z.shape[1:-1], 1)
    return (at * columns[None]).reshape(-1, *z.shape)


def softmax_score(loss: losses.SoftmaxCrossEntropy, z: jax.Array, y: jax.Array, key: Key) -> jax.Array:
    """sqrt(s) (p - e_t), with the class t drawn from p."""
    p, s = nn.softmax(z, axis=-1), jnp.sum(loss.distribution(z, y), axis=-1, keepdims=True)
    return jnp.sqrt(s) * (p - nn.one_hot(draw_class(p, key), z.shape[-1], dtype=z.dtype))


def nll_score(loss: losses.Nll, log_p: jax.Array, y: jax.Array, key: Key) -> jax.Array:
    """-e_t, with the class t drawn from exp(log_p)."""
    return -nn.one_hot(draw_class(jnp.exp(log_p), key), log_p.shape[-1], dtype=log_p.dtype)


def draw_class(p: jax.Array, key: Key) -> jax.Array:
    """A class from each distribution p (..., K), by one uniform number: `random.categorical` takes K of them."""
    ends = jnp.cumsum(p, axis=-1)
    total = ends[..., -1:]
    # Below the total, whatever the rounding, so that the class that is found is one whose probability is not 0.
    u = jnp.minimum(random.uniform(key, total.shape, p.dtype) * total, jnp.nextafter(total, jnp.zeros_like(total)))
    return jnp.argmax(ends > u, axis=-1)


def flat(loss: losses.Loss, f: jax.Array, y: jax.Array) -> jax.Array:
    """0: the loss is linear in each output, between kinks."""
    return jnp.zeros_like(f)


def bernoulli_score(loss: losses.BernoulliNll, z: jax.Array, y: jax.Array, key: Key) -> jax.Array:
    """sigmoid(z) - t, with t drawn from its Bernoulli distribution."""
    p = nn.sigmoid(z)
    return p - random.bernoulli(key, p).astype(z.dtype)


def normal_score(variance: Callable[[jax.Array], float]) -> Callable[..., jax.Array]:
    """eps / sigma, eps ~ Normal(0, 1): of the normal distribution whose log-density is -loss, of this variance."""

    def score(loss: losses.Loss, f: jax.Array, y: jax.Array, key: Key) -> jax.Array:
        return variance(f) ** -0.5 * random.normal(key, f.shape, f.dtype)

    return score


def laplace_score(scale: Callable[[Any, jax.Array], float]) -> Callable[..., jax.Array]:
    """+-1 / b: of the Laplace distribution whose log-density is -loss, of this scale."""

    def score(loss: losses.Loss, f: jax.Array, y: jax.Array, key: Key) -> jax.Array:
        return random.rademacher(key, f.shape, f.dtype) / scale(loss, f)

    return score


def nll(loss: losses.Nll, log_p: jax.Array, y: jax.Array) -> jax.Array:
    """-y."""
    return -loss.distribution(log_p, y)


def linear_cross_entropy(
    loss: losses.LinearCrossEntropy, targets: jax.Array, logits: LazyLogits, dv: jax.Array
) -> tuple[jax.Array, LazyLogits]:
    """v (N,), and for each chunk of logits z: dz = dv (softmax(z) sum_k y_k - y),  dw += x^T dz,  dx = dz w^T."""
    loss.check(logits, targets)
    return values_and_gradients(loss, logits, targets, dv)


SOFTMAX = closed_form(softmax_cross_entropy, softmax_hessian, softmax_root, softmax_score)

RULES = {
    losses.SquaredError: elementwise(
        squared_error, lambda loss, f, y: jnp.full_like(f, 2), normal_score(lambda f: 1 / 2)
    ),
    losses.Mse: elementwise(
        mse, lambda loss, f, y: jnp.full_like(f, 2 / losses.width(f)), normal_score(lambda f: losses.width(f) / 2)
    ),
    losses.Mae: elementwise(mae, flat, laplace_score(lambda loss, f: losses.width(f))),
    losses.GaussianNll: closed_form(gaussian_nll, gaussian_nll_hessian, gaussian_nll_root, gaussian_nll_score),
    losses.LaplaceNll: elementwise(laplace_nll, flat, laplace_score(lambda loss, f: loss.scale)),
    losses.BernoulliNll: elementwise(bernoulli_nll, lambda loss, z, y: nn.sigmoid(z) * nn.sigmoid(-z), bernoulli_score),
    losses.SoftmaxCrossEntropy: SOFTMAX,
    losses.LinearCrossEntropy: dataclasses.replace(SOFTMAX, at_once=linear_cross_entropy),
    losses.Nll: elementwise(nll, flat, nll_score),
}
