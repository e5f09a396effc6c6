"""The rules of `layers/noise.py`: nothing is kept, for the key makes the same numbers again."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcnn.backprop.rule import Context, Rule
from funcnn.layer import Layer, Params
from funcnn.layers.noise import Dropout, GaussianNoise


def noise_fwd(layer: Layer, params: Params, x: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
    """y (..., K), of x's shape. Residual: none."""
    return layer.apply(params, x, key=ctx.key, train=ctx.train), ()


def dropout_bwd(layer: Dropout, params: Params, nothing: Any, dy: jax.Array, ctx: Context) -> tuple[Params, Any]:
    """dx = m dy / (1 - rate), with the mask m of the forward pass drawn again from its key; dx = dy without train."""
    if not (ctx.train and layer.rate):
        return (), dy
    return (), jnp.where(layer.mask(ctx.key, dy), dy / (1 - layer.rate), 0)


def gaussian_noise_bwd(
    layer: GaussianNoise, params: Params, nothing: Any, dy: jax.Array, ctx: Context
) -> tuple[Params, Any]:
    """dx = dy, since y = x + n."""
    return (), dy


def same(bwd: Callable[..., tuple[Params, Any]]) -> Callable[..., jax.Array]:
    """The tangent, where the Jacobian is diagonal: what bwd does with dy."""
    return lambda layer, params, nothing, v, vx, ctx: bwd(layer, params, nothing, vx, ctx)[1]


def linear(*arguments: Any) -> tuple[Params, None]:
    """The second derivative of what is linear in x: 0."""
    return (), None


RULES = {
    Dropout: Rule(noise_fwd, dropout_bwd, tangent=same(dropout_bwd), second=linear, elementwise=True),
    GaussianNoise: Rule(
        noise_fwd, gaussian_noise_bwd, tangent=same(gaussian_noise_bwd), second=linear, elementwise=True
    ),
}
