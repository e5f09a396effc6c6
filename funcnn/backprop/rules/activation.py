"""The rules of `layers/activation.py`: da = f'(a) dy for each unit; the softmaxes see a whole row.

Most derivatives can be had from the output alone, which the next layer keeps anyway; the others keep the input. All
arrays of an elementwise rule have one shape, (..., K). Each equation follows from the definition in a line.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, nn

from funcnn.backprop.rule import Context, Rule
from funcnn.backprop.rules.dense import sum_over_batch
from funcnn.layer import Layer, Params, against
from funcnn.layers import activation as layers

Backward = Callable[[Any, jax.Array, jax.Array], jax.Array]


def from_output(backward: Backward) -> Rule:
    """The rule of an activation whose derivative follows from its output: backward(layer, y, dy) -> da."""

    def fwd(layer: Layer, params: Params, a: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
        y = layer.apply(params, a)
        return y, y

    def bwd(layer: Layer, params: Params, y: jax.Array, dy: jax.Array, ctx: Context) -> tuple[Params, Any]:
        return (), backward(layer, y, dy)

    return Rule(fwd, bwd)


def from_input(backward: Backward, save: Callable[[Any, jax.Array], Any] = lambda layer, a: a) -> Rule:
    """The rule of an activation that keeps something of its input: backward(layer, save(layer, a), dy) -> da."""

    def fwd(layer: Layer, params: Params, a: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
        return layer.apply(params, a), save(layer, a)

    def bwd(layer: Layer, params: Params, saved: jax.Array, dy: jax.Array, ctx: Context) -> tuple[Params, Any]:
        return (), backward(layer, saved, dy)

    return Rule(fwd, bwd)


def identity(layer: layers.Identity, nothing: Any, dy: jax.Array) -> jax.Array:
    """f' = 1. Residual: none."""
    return dy


def sigmoid(layer: layers.Sigmoid, y: jax.Array, dy: jax.Array) -> jax.Array:
    """f' = y (1 - y)."""
    return dy * y * (1 - y)


def tanh(layer: layers.Tanh, y: jax.Array, dy: jax.Array) -> jax.Array:
    """f' = 1 - y^2, written (1 - y)(1 + y), which loses no digits where |y| is near 1."""
    return dy * (1 - y) * (1 + y)


def relu(layer: layers.Relu, y: jax.Array, dy: jax.Array) -> jax.Array:
    """f' = [y > 0], for a > 0 where y > 0; f'(0) = 0."""
    return jnp.where(y > 0, dy, 0)


def leaky_relu(layer: layers.LeakyRelu, positive: jax.Array, dy: jax.Array) -> jax.Array:
    """f' = 1 where a >= 0, beta below. Residual: a >= 0, one byte a unit."""
    return jnp.where(positive, dy, layer.beta * dy)


def absolute(layer: layers.Absolute, sign: jax.Array, dy: jax.Array) -> jax.Array:
    """f' = sign(a); f'(0) = 0. Residual: sign(a), one byte a unit."""
    return dy * sign.astype(dy.dtype)


def swish_gradient(beta: float, a: jax.Array, dy: jax.Array) -> jax.Array:
    """f' = s + a beta s (1 - s), s = sigmoid(beta a): the product rule, with s' = beta s (1 - s)."""
    s = nn.sigmoid(beta * a)
    return dy * (s + a * (beta * s * (1 - s)))  # in this order: beta a may overflow, where s (1 - s) is 0


def hard_swish(layer: layers.HardSwish, a: jax.Array, dy: jax.Array) -> jax.Array:
    """f' = 0 for a <= -3, (2 a + 3) / 6 between, 1 for a >= 3."""
    return dy * jnp.where(a <= -3, 0, jnp.where(a >= 3, 1, (2 * a + 3) / 6))


def gelu(layer: layers.Gelu, a: jax.Array, dy: jax.Array) -> jax.Array:
    """Exact: f' = Phi(a) + a phi(a), phi(a) = exp(-a^2 / 2) / sqrt(2 pi).

    Tanh form: with u = sqrt(2/pi) (a + 0.044715 a^3) and t = tanh u, f = a (1 + t) / 2 gives
    f' = (1 + t) / 2 + a (1 - t^2) u' / 2, u' = sqrt(2/pi) (1 + 3 * 0.044715 a^2).
    """
    if not layer.approximate:
        cdf = lax.erfc(a * -math.sqrt(0.5)) / 2  # Phi, with all its digits far below 0 too
        # Where exp(-a^2/2) is 0 the product is 0 too, also where a^2 overflows.
        return dy * (cdf + a * jnp.exp(-jnp.square(a) / 2) * (1 / math.sqrt(2 * math.pi)))
    c = math.sqrt(2 / math.pi)
    t = jnp.tanh(c * (a + 0.044715 * (a * a * a)))
    slope = jnp.where(jnp.abs(t) < 1, (1 - t) * (1 + t) * c * (1 + 3 * 0.044715 * jnp.square(a)), 0)
    return dy * ((1 + t) / 2 + a * slope / 2)


def softplus(layer: layers.Softplus, y: jax.Array, dy: jax.Array) -> jax.Array:
    """f' = sigmoid(a) = 1 - exp(-y), since exp(y) = 1 + exp(a)."""
    return dy * -jnp.expm1(-y)


def elu(layer: layers.Elu, y: jax.Array, dy: jax.Array) -> jax.Array:
    """f' = 1 where a > 0, alpha exp(a) = y + alpha elsewhere; y > 0 where a > 0."""
    return dy * jnp.where(y > 0, 1, y + layer.alpha)


def step(layer: layers.Step, nothing: Any, dy: jax.Array) -> jax.Array:
    """f' = 0. Residual: none."""
    return jnp.zeros_like(dy)


def softmax(layer: layers.Softmax, y: jax.Array, dy: jax.Array) -> jax.Array:
    """da_k = y_k (dy_k - sum_j y_j dy_j), from dy_j/da_k = y_j ([j = k] - y_k)."""
    return y * (dy - jnp.sum(y * dy, axis=-1, keepdims=True))


def log_softmax(layer: layers.LogSoftmax, y: jax.Array, dy: jax.Array) -> jax.Array:
    """da_k = dy_k - exp(y_k) sum_j dy_j, from dy_j/da_k = [j = k] - softmax_k, softmax_k = exp(y_k)."""
    return dy - jnp.exp(y) * jnp.sum(dy, axis=-1, keepdims=True)


def prelu_fwd(layer: layers.Prelu, params: Params, a: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
    """y = a where a >= 0, s a below. Residual: a (..., *unit), since the slope's gradient needs its size."""
    return layer.apply(params, a), a


def prelu_bwd(layer: layers.Prelu, params: Params, a: jax.Array, dy: jax.Array, ctx: Context) -> tuple[Params, Any]:
    """ds = sum over the batch (shared: over all) of [a < 0] a dy;  da = dy where a >= 0, s dy below."""
    s = params["slope"]
    ds = sum_over_batch(jnp.where(a >= 0, 0, a * dy), s)
    return {"slope": ds}, jnp.where(a >= 0, dy, against(s, dy) * dy).astype(a.dtype)


RULES = {
    layers.Identity: from_input(identity, save=lambda layer, a: ()),
    layers.Sigmoid: from_output(sigmoid),
    layers.Tanh: from_output(tanh),
    layers.Relu: from_output(relu),
    layers.LeakyRelu: from_input(leaky_relu, save=lambda layer, a: a >= 0),
    layers.Prelu: Rule(prelu_fwd, prelu_bwd),
    layers.Absolute: from_input(absolute, save=lambda layer, a: jnp.sign(a).astype(jnp.int8)),
    layers.Swish: from_input(lambda layer, a, dy: swish_gradient(layer.beta, a, dy)),
    layers.Silu: from_input(lambda layer, a, dy: swish_gradient(1.0, a, dy)),
    layers.HardSwish: from_input(hard_swish),
    layers.Gelu: from_input(gelu),
    layers.Softplus: from_output(softplus),
    layers.Elu: from_output(elu),
    layers.Step: from_input(step, save=lambda layer, a: ()),
    layers.Softmax: from_output(softmax),
    layers.LogSoftmax: from_output(log_softmax),
}
