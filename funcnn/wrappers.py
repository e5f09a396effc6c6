"""Wrappers: a layer that runs another one with its parameters or dtype changed. Both have the same path."""

import dataclasses
from typing import Any

import jax

from funcnn.compose import (
    Combinator,
    Part,
    check_layers,
)
from funcnn.layer import (
    Key,
    Layer,
    LayerError,
    Params,
    Shape,
    check_train,
    describe_params,
    float_dtype,
    is_floating,
    need_key,
)


@dataclasses.dataclass(frozen=True)
class Cast(Combinator):
    """Runs a layer in another dtype: its parameters and input are cast going in, its output back to the input's dtype.

    The parameters stay in their own dtype, and so do their gradients: bfloat16 compute on float32 weights.

    Args:
        layer: what runs.
        dtype: such as "bfloat16" or "float32".

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> net = fnn.Cast(fnn.Dense(2), "bfloat16")
        >>> net.apply(net.init(jax.random.key(0), (3,)), jnp.ones((1, 3))).dtype
        dtype('float32')

    Source: Micikevicius et al., Mixed Precision Training (2018).
    """

    layer: Layer
    dtype: str

    def __post_init__(self) -> None:
        check_layers("Cast", (self.layer,))
        if not (isinstance(self.dtype, str) and is_floating(self.dtype)):
            raise LayerError(f"Cast's dtype is the name of a floating dtype, such as 'bfloat16', got {self.dtype!r}")

    def init(self, key: Key, in_shape: Shape) -> Params:
        return self.layer.init(key, in_shape)

    def parts(self, params: Params) -> tuple[Part, ...]:
        return (Part(0, None, self.layer, cast(params, self.dtype)),)

    def parts_in_shapes(self, in_shape: Shape) -> tuple[tuple[str | None, Layer, Shape], ...]:
        return ((None, self.layer, in_shape),)

    def apply(self, params: Params, x: jax.Array, *, key: Key | None = None, train: bool = False) -> jax.Array:
        (part,) = self.parts(params)
        return self.cast_back(part.apply(x.astype(self.dtype), key, train), x)

    def cast_back(self, y: jax.Array, x: jax.Array) -> jax.Array:
        """y in the dtype of x, the input that came."""
        return y.astype(float_dtype(x))


@dataclasses.dataclass(frozen=True)
class WeightNoise(Combinator):
    """Adds normal noise to a layer's weights, under `train=True`, anew in each call.

    Under train: y = layer(w + std n, x), n ~ Normal(0, 1), one draw for the whole batch. Else y = layer(w, x).

    Args:
        layer: what runs.
        std: the standard deviation of the noise, in units of the weights.
        leaves: the names of the parameters that get noise; None for all.

    Raises:
        LayerError: `std` is negative; `train=True` without a key; no parameter has one of these names.

    Example:
        >>> import funcnn as fnn
        >>> fnn.WeightNoise(fnn.Dense(3), std=0.1)
        WeightNoise(Dense(3), 0.1)

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), section 7.5.
    """

    layer: Layer
    std: float
    leaves: tuple[str, ...] | None = ("w",)

    def __post_init__(self) -> None:
        check_layers("WeightNoise", (self.layer,))
        if not self.std >= 0:
            raise LayerError(f"WeightNoise's std is not negative, got {self.std!r}")
        object.__setattr__(self, "leaves", leaf_names(self.leaves))

    def init(self, key: Key, in_shape: Shape) -> Params:
        return self.layer.init(key, in_shape)

    def parts(self, params: Params) -> tuple[Part, ...]:
        return (Part(0, None, self.layer, params),)

    def parts_in_shapes(self, in_shape: Shape) -> tuple[tuple[str | None, Layer, Shape], ...]:
        return ((None, self.layer, in_shape),)

    def perturb(self, params: Params, key: Key | None, train: bool) -> Params:
        """The parameters with noise added; the same for the same key."""
        if not (check_train(train) and self.std):
            return params
        # Index 1: the key folded with 0 is the wrapped layer's own.
        noise_key = jax.random.fold_in(need_key(key, self), 1)
        leaves, treedef = jax.tree.flatten(params)
        chosen = select_leaves(params, self.leaves, self)
        keys = jax.random.split(noise_key, len(leaves))
        noisy = [
            w + self.std * jax.random.normal(k, w.shape, w.dtype) if pick else w
            for w, k, pick in zip(leaves, keys, chosen, strict=True)
        ]
        return jax.tree.unflatten(treedef, noisy)

    def apply(self, params: Params, x: jax.Array, *, key: Key | None = None, train: bool = False) -> jax.Array:
        (part,) = self.parts(self.perturb(params, key, train))
        return part.apply(x, key, train)


def leaf_names(names: Any) -> tuple[str, ...] | None:
    """The names of parameters as a tuple; one alone may be given as it is."""
    return (names,) if isinstance(names, str) else names if names is None else tuple(names)


def select_leaves(params: Params, names: tuple[str, ...] | None, owner: Any) -> list[bool]:
    """For each leaf of `params`, in the order of `jax.tree.leaves`, whether it is called one of `names` (None: all).

    Raises:
        LayerError: none is, so that `owner` would silently do nothing.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    called = [getattr(path[-1], "key", None) if path else None for path in paths]
    chosen = [names is None or name in names for name in called]
    if not any(chosen):
        raise LayerError(
            f"{owner!r} is for the parameters called {names}, and there are none among {describe_params(params)}; "
            "name yours by leaves=(...), or leaves=None for all"
        )
    return chosen


def cast(params: Params, dtype: Any) -> Params:
    """`params` with every leaf in `dtype`."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)
