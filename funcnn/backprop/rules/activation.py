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

from funcnn.backprop.outer import Outer
from funcnn.backprop.rule import Context, Rule
from funcnn.backprop.rules.dense import sum_over_batch
from funcnn.layer import Layer, Params, against
from funcnn.layers import activation as layers

Backward = Callable[[Any, jax.Array, jax.Array], jax.Array]
Second = Callable[[Any, jax.Array, jax.Array, jax.Array], Any]


def piecewise_linear(layer: Any, saved: Any, dy: jax.Array, va: jax.Array) -> None:
    """f'' = 0, between kinks."""
    return None


def from_output(
    backward: Backward, second: Second = piecewise_linear, tangent: Backward | None = None, elementwise: bool = True
) -> Rule:
    """The rule of an activation whose derivative follows from its output: backward(layer, y, dy) -> da.

    second(layer, y, dy, va) -> the derivative of da along va. The tangent is the backward map itself, unless given: the
    Jacobian is diagonal, or symmetric.
    """

    def fwd(layer: Layer, params: Params, a: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
        y = layer.apply(params, a)
        return y, y

    def bwd(layer: Layer, params: Params, y: jax.Array, dy: jax.Array, ctx: Context) -> tuple[Params, Any]:
        return (), backward(layer, y, dy)

    return Rule(fwd, bwd, tangent=_tangent(tangent or backward), second=_second(second), elementwise=elementwise)


def from_input(
    backward: Backward,
    second: Second = piecewise_linear,
    save: Callable[[Any, jax.Array], Any] = lambda layer, a: a,
) -> Rule:
    """The rule of an activation that keeps something of its input: backward(layer, save(layer, a), dy) -> da.

    second(layer, save(layer, a), dy, va) -> the derivative of da along va.
    """

    def fwd(layer: Layer, params: Params, a: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
        return layer.apply(params, a), save(layer, a)

    def bwd(layer: Layer, params: Params, saved: jax.Array, dy: jax.Array, ctx: Context) -> tuple[Params, Any]:
        return (), backward(layer, saved, dy)

    return Rule(fwd, bwd, tangent=_tangent(backward), second=_second(second), elementwise=True)


def _tangent(forward: Backward) -> Callable[..., jax.Array]:
    return lambda layer, params, saved, v, va, ctx: forward(layer, saved, va)


def _second(second: Second) -> Callable[..., tuple[Params, Any]]:
    return lambda layer, params, saved, dy, v, va, ctx: ((), None if va is None else second(layer, saved, dy, va))


def identity(layer: layers.Identity, nothing: Any, dy: jax.Array) -> jax.Array:
    """f' = 1. Residual: none."""
    return dy


def sigmoid(layer: layers.Sigmoid, y: jax.Array, dy: jax.Array) -> jax.Array:
    """f' = y (1 - y)."""
    return dy * y * (1 - y)


def sigmoid_second(layer: layers.Sigmoid, y: jax.Array, dy: jax.Array, va: jax.Array) -> jax.Array:
    """f'' = y (1 - y) (1 - 2 y)."""
    return dy * y * (1 - y) * (1 - 2 * y) * va


def tanh(layer: layers.Tanh, y: jax.Array, dy: jax.Array) -> jax.Array:
    """f' = 1 - y^2, written (1 - y)(1 + y), which loses no digits where |y| is near 1."""
    return dy * (1 - y) * (1 + y)


def tanh_second(layer: layers.Tanh, y: jax.Array, dy: jax.Array, va: jax.Array) -> jax.Array:
    """f'' = -2 y (1 - y^2)."""
    return dy * (-2 * y) * (1 - y) * (1 + y) * va


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


def swish_second(beta: float, a: jax.Array, dy: jax.Array, va: jax.Array) -> jax.Array:
    """f'' = beta s (1 - s) (2 + beta a (1 - 2 s)), s = sigmoid(beta a)."""
    s = nn.sigmoid(beta * a)
    slope = beta * s * (1 - s)
    return dy * va * (2 * slope + a * (beta * slope) * (1 - 2 * s))


def hard_swish(layer: layers.HardSwish, a: jax.Array, dy: jax.Array) -> jax.Array:
    """f' = 0 for a <= -3, (2 a + 3) / 6 between, 1 for a >= 3."""
    return dy * jnp.where(a <= -3, 0, jnp.where(a >= 3, 1, (2 * a + 3) / 6))


def hard_swish_second(layer: layers.HardSwish, a: jax.Array, dy: jax.Array, va: jax.Array) -> jax.Array:
    """f'' = 1/3 for -3 < a < 3, else 0."""
    return jnp.where((a > -3) & (a < 3), dy * va / 3, 0)


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


def gelu_second(layer: layers.Gelu, a: jax.Array, dy: jax.Array, va: jax.Array) -> jax.Array:
    """Exact: f'' = (2 - a^2) phi(a).

    Tanh form, with u and t as in `gelu`: f'' = (1 - t^2) (u' + a u'' / 2 - a t u'^2), u'' = 6 sqrt(2/pi) 0.044715 a.
    """
    square = jnp.square(a)
    if not layer.approximate:
        phi = jnp.exp(-square / 2) * (1 / math.sqrt(2 * math.pi))
        return dy * va * jnp.where(phi > 0, (2 - square) * phi, 0)
    c = math.sqrt(2 / math.pi)
    t = jnp.tanh(c * (a + 0.044715 * (a * square)))
    first, second = c * (1 + 3 * 0.044715 * square), 6 * c * 0.044715 * a
    inner = first + a * second / 2 - a * t * jnp.square(first)
    return dy * va * jnp.where(jnp.abs(t) < 1, (1 - t) * (1 + t) * inner, 0)


def softplus(layer: layers.Softplus, y: jax.Array, dy: jax.Array) -> jax.Array:
    """f' = sigmoid(a) = 1 - exp(-y), since exp(y) = 1 + exp(a)."""
    return dy * -jnp.expm1(-y)


def softplus_second(layer: layers.Softplus, y: jax.Array, dy: jax.Array, va: jax.Array) -> jax.Array:
    """f'' = s (1 - s), s = 1 - exp(-y)."""
    return dy * va * -jnp.expm1(-y) * jnp.exp(-y)


def elu(layer: layers.Elu, y: jax.Array, dy: jax.Array) -> jax.Array:
    """f' = 1 where a > 0, alpha exp(a) = y + alpha elsewhere; y > 0 where a > 0."""
    return dy * jnp.where(y > 0, 1, y + layer.alpha)


def elu_second(layer: layers.Elu, y: jax.Array, dy: jax.Array, va: jax.Array) -> jax.Array:
    """f'' = 0 where a > 0, alpha exp(a) = y + alpha elsewhere."""
    return dy * va * jnp.where(y > 0, 0, y + layer.alpha)


def step(layer: layers.Step, nothing: Any, dy: jax.Array) -> jax.Array:
    """f' = 0. Residual: none."""
    return jnp.zeros_like(dy)


def softmax(layer: layers.Softmax, y: jax.Array, dy: jax.Array) -> jax.Array:
    """da_k = y_k (dy_k - sum_j y_j dy_j), from dy_j/da_k = y_j ([j = k] - y_k)."""
    return y * (dy - jnp.sum(y * dy, axis=-1, keepdims=True))


def softmax_second(layer: layers.Softmax, y: jax.Array, dy: jax.Array, va: jax.Array) -> jax.Array:
    """With vy = y (va - sum_j y_j va_j):  vy (dy - sum_j y_j dy_j) - y sum_j vy_j dy_j."""
    vy = softmax(layer, y, va)
    return vy * (dy - jnp.sum(y * dy, axis=-1, keepdims=True)) - y * jnp.sum(vy * dy, axis=-1, keepdims=True)


def log_softmax(layer: layers.LogSoftmax, y: jax.Array, dy: jax.Array) -> jax.Array:
    """da_k = dy_k - exp(y_k) sum_j dy_j, from dy_j/da_k = [j = k] - softmax_k, softmax_k = exp(y_k)."""
    return dy - jnp.exp(y) * jnp.sum(dy, axis=-1, keepdims=True)


def log_softmax_tangent(layer: layers.LogSoftmax, y: jax.Array, va: jax.Array) -> jax.Array:
    """vy = va - sum_j p_j va_j, p = exp(y)."""
    return va - jnp.sum(jnp.exp(y) * va, axis=-1, keepdims=True)


def log_softmax_second(layer: layers.LogSoftmax, y: jax.Array, dy: jax.Array, va: jax.Array) -> jax.Array:
    """-p (va - sum_j p_j va_j) sum_j dy_j, p = exp(y)."""
    return -jnp.exp(y) * log_softmax_tangent(layer, y, va) * jnp.sum(dy, axis=-1, keepdims=True)


def prelu_fwd(layer: layers.Prelu, params: Params, a: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
    """y = a where a >= 0, s a below. Residual: a (..., *unit), since the slope's gradient needs its size."""
    return layer.apply(params, a), a


def prelu_bwd(layer: layers.Prelu, params: Params, a: jax.Array, dy: jax.Array, ctx: Context) -> tuple[Params, Any]:
    """ds = sum over the batch (shared: over all) of [a < 0] a dy;  da = dy where a >= 0, s dy below."""
    s = params["slope"]
    ds = sum_over_batch(jnp.where(a >= 0, 0, a * dy), s)
    return {"slope": ds}, jnp.where(a >= 0, dy, against(s, dy) * dy).astype(a.dtype)


def prelu_rows(layer: layers.Prelu, params: Params, a: jax.Array, dy: jax.Array, ctx: Context) -> Params:
    """ds_n = [a_n < 0] a_n dy_n (shared: summed over the units): the sum of `prelu_bwd` before it is taken."""
    return {"slope": Outer.of(params["slope"], None, jnp.where(a >= 0, 0, a * dy))}


def prelu_tangent(
    layer: layers.Prelu, params: Params, a: jax.Array, v: Params, va: jax.Array | None, ctx: Context
) -> jax.Array:
    """vy = va where a >= 0, s va + vs a below."""
    va = jnp.zeros_like(a) if va is None else va
    s = against(params["slope"], a)
    below = s * va if v is None else s * va + against(v["slope"], a) * a
    return jnp.where(a >= 0, va, below).astype(a.dtype)


def prelu_second(
    layer: layers.Prelu, params: Params, a: jax.Array, dy: jax.Array, v: Params, va: jax.Array | None, ctx: Context
) -> tuple[Params, Any]:
    """ds' = sum over the batch of [a < 0] va dy;  da' = [a < 0] vs dy."""
    s = params["slope"]
    ds = None if va is None else {"slope": sum_over_batch(jnp.where(a >= 0, 0, va * dy), s)}
    return ds, None if v is None else jnp.where(a >= 0, 0, against(v["slope"], dy) * dy).astype(a.dtype)


RULES = {
    layers.Identity: from_input(identity, save=lambda layer, a: ()),
    layers.Sigmoid: from_output(sigmoid, sigmoid_second),
    layers.Tanh: from_output(tanh, tanh_second),
    layers.Relu: from_output(relu),
    layers.LeakyRelu: from_input(leaky_relu, save=lambda layer, a: a >= 0),
    layers.Prelu: Rule(prelu_fwd, prelu_bwd, prelu_rows, prelu_tangent, prelu_second, elementwise=True),
    layers.Absolute: from_input(absolute, save=lambda layer, a: jnp.sign(a).astype(jnp.int8)),
    layers.Swish: from_input(
        lambda layer, a, dy: swish_gradient(layer.beta, a, dy),
        lambda layer, a, dy, va: swish_second(layer.beta, a, dy, va),
    ),
    layers.Silu: from_input(
        lambda layer, a, dy: swish_gradient(1.0, a, dy), lambda layer, a, dy, va: swish_second(1.0, a, dy, va)
    ),
    layers.HardSwish: from_input(hard_swish, hard_swish_second),
    layers.Gelu: from_input(gelu, gelu_second),
    layers.Softplus: from_output(softplus, softplus_second),
    layers.Elu: from_output(elu, elu_second),
    layers.Step: from_input(step, save=lambda layer, a: ()),
    layers.Softmax: from_output(softmax, softmax_second, elementwise=False),
    layers.LogSoftmax: from_output(log_softmax, log_softmax_second, log_softmax_tangent, False),
}
