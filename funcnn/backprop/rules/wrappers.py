"""The rules of `wrappers.py`."""

from typing import Any

import jax
import jax.numpy as jnp

from funcnn.backprop.rule import Context, Rule, Static
from funcnn.layer import Params, float_dtype
from funcnn.wrappers import Cast, WeightNoise


def cast_fwd(net: Cast, params: Params, x: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
    """y = layer(x), computed in another dtype. Residuals: the layer's, and the dtypes of y inside and of x."""
    (part,) = net.parts(params)
    y, kept = ctx.fwd(part, x.astype(net.dtype))
    return net.cast_back(y, x), (kept, Static((y.dtype, x.dtype)))


def cast_bwd(net: Cast, params: Params, residuals: Any, dy: jax.Array, ctx: Context) -> tuple[Params, Any]:
    """The gradients of the layer in its dtype, cast back to those of params and x."""
    kept, dtypes = residuals
    inside, outside = dtypes.value
    (part,) = net.parts(params)
    dparams, dx = ctx.bwd(part, kept, dy.astype(inside), ctx.need_dx)
    dparams = jax.tree.map(lambda p, g: g.astype(p.dtype), params, dparams)
    return dparams, dx.astype(outside) if ctx.need_dx else None


def weight_noise_fwd(net: WeightNoise, params: Params, x: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
    """y = layer(w + n, x). Residuals: the layer's."""
    (part,) = net.parts(net.perturb(params, ctx.key, ctx.train))
    return ctx.fwd(part, x)


def weight_noise_bwd(net: WeightNoise, params: Params, kept: Any, dy: jax.Array, ctx: Context) -> tuple[Params, Any]:
    """dw is the layer's own at w + n, for d(w + n)/dw = 1; the noise is drawn again from its key."""
    (part,) = net.parts(net.perturb(params, ctx.key, ctx.train))
    return ctx.bwd(part, kept, dy, ctx.need_dx)


def cast_tangent(net: Cast, params: Params, residuals: Any, v: Params, vx: Any, ctx: Context) -> Any:
    """The tangent of the layer in its dtype, cast back to that of y."""
    kept, dtypes = residuals
    (part,), (direction,) = net.parts(params), net.parts(v)
    vy = ctx.tangent(part, kept, direction.params, None if vx is None else vx.astype(net.dtype))
    return None if vy is None else vy.astype(float_dtype(jnp.zeros((), dtypes.value[1])))


def weight_noise_tangent(net: WeightNoise, params: Params, kept: Any, v: Params, vx: Any, ctx: Context) -> Any:
    """The layer's own at w + n, for d(w + n)/dw = 1."""
    (part,), (direction,) = net.parts(net.perturb(params, ctx.key, ctx.train)), net.parts(v)
    return ctx.tangent(part, kept, direction.params, vx)


RULES = {
    Cast: Rule(cast_fwd, cast_bwd, tangent=cast_tangent),
    WeightNoise: Rule(weight_noise_fwd, weight_noise_bwd, tangent=weight_noise_tangent),
}
