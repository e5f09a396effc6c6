"""Marked: `jax.custom_vjp` is used here. The bridge from the rules to `jax.grad`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from funcnn.backprop.rule import Context, Rules, Static, as_rules
from funcnn.backprop.rules import RULES
from funcnn.compose import Part
from funcnn.layer import Key, Layer, Params, Shape


@dataclasses.dataclass(frozen=True)
class WithRules(Layer):
    """The layer that `with_rules` makes."""

    layer: Layer
    rules: Rules

    def init(self, key: Key, in_shape: Shape) -> Params:
        return self.layer.init(key, in_shape)

    def out_shape(self, in_shape: Shape) -> Shape:
        return self.layer.out_shape(in_shape)

    def multiply_adds(self, in_shape: Shape) -> int:
        return self.layer.multiply_adds(in_shape)

    def apply(self, params: Params, x: jax.Array, *, key: Key | None = None, train: bool = False) -> jax.Array:
        root = Context(self.rules, train=train)

        # The key is an argument, not closed over: under an outer grad of jit, scan or vmap it is that one's tracer.
        @jax.custom_vjp
        def run(params: Params, x: jax.Array, key: Key | None) -> jax.Array:
            return self.layer.apply(params, x, key=key, train=train)

        def fwd(params: Any, x: Any, key: Any) -> tuple[jax.Array, Any]:
            # With symbolic zeros each leaf comes with a flag: whether anyone differentiates for it.
            values, key = jax.tree.map(lambda leaf: leaf.value, (params, key))
            y, residuals = dataclasses.replace(root, key=key).fwd(Part(None, None, self.layer, values), x.value)
            return y, (values, residuals, key, Static(x.perturbed))

        def bwd(saved: Any, dy: Any) -> tuple[Params, Any, None]:
            values, residuals, key, need_dx = saved
            shape, dtype = dy.shape, dy.dtype
            if isinstance(dy, jax.custom_derivatives.SymbolicZero):
                dy = jnp.zeros(shape, dtype)
            ctx = dataclasses.replace(root, key=key, delta=dy)
            return *ctx.bwd(Part(None, None, self.layer, values), residuals, dy, need_dx.value), None

        run.defvjp(fwd, bwd, symbolic_zeros=True)
        return run(params, x, key)


def with_rules(net: Layer, rules: Rules = RULES) -> Layer:
    """The same network, whose backward pass under `jax.grad` runs the hand-written rules.

    Args:
        net: any layer.
        rules: the backward pass.

    Returns:
        A layer with the parameters, outputs and shapes of `net`. `jax.grad`, `jax.vjp` and `jax.jacrev` of anything
        that contains it run the rules (by `jax.custom_vjp`); forward mode (`jax.jvp`) is not defined for it. It is for
        `jax.grad` only: under `backprop.value_and_grad` hand the rules to that instead.

    Raises:
        RuleError: (when differentiated) a layer has no rule.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> layer = fnn.backprop.with_rules(fnn.Step(), fnn.backprop.RULES | {
        ...     fnn.Step: fnn.backprop.RULES[fnn.Identity]})  # straight-through
        >>> jax.grad(lambda x: layer.apply((), x).sum())(jnp.array([-1.0, 2.0]))
        Array([1., 1.], dtype=float32)
    """
    if not isinstance(net, Layer):
        raise TypeError(f"with_rules takes a layer, got {net!r}")
    return WithRules(net, as_rules(rules))
