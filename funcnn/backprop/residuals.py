"""What the forward pass keeps for the backward pass, layer by layer, beside what autodiff keeps."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from funcnn import table
from funcnn.backprop import autodiff
from funcnn.backprop.engine import check_paths
from funcnn.backprop.rule import Context, Rule, Rules, as_rules, is_leaf
from funcnn.backprop.rules import RULES
from funcnn.compose import Part
from funcnn.layer import Key, Layer, Params, Shape, check_in_shape


@dataclasses.dataclass(frozen=True)
class Residual:
    """One array that a layer keeps.

    Attributes:
        path: the layer's.
        name: "input" or "output" of the layer, or the array's place among its residuals, such as "[0]".
        shape: of the array.
        dtype: likewise.
        bytes: its size; 0 where it is kept once already.
        same_as: the layer that keeps the same array, where it is kept once already; else None.
    """

    path: str
    name: str
    shape: Shape
    dtype: str
    bytes: int
    same_as: str | None = None


@dataclasses.dataclass(frozen=True)
class Residuals:
    """What `residuals` found; printed as a table.

    Attributes:
        kept: each array that the rules keep, in forward order.
        layers: by path, the layer.
        autodiff: by path, the bytes that autodiff keeps of this layer alone; parameters are not counted.
        bytes: what the rules keep in all, each array once.
        autodiff_bytes: what autodiff keeps of the whole network, each array once, without the parameters.
        temporary: bytes of temporary memory of the compiled forward and backward pass, by the rules.
        autodiff_temporary: likewise by autodiff.
    """

    kept: tuple[Residual, ...]
    layers: Mapping[str, Layer]
    autodiff: Mapping[str, int]
    bytes: int
    autodiff_bytes: int
    temporary: int
    autodiff_temporary: int

    def __str__(self) -> str:
        return self._table().text()

    def __rich__(self) -> Any:
        return self._table().rich()

    def _table(self) -> table.Table:
        rows = []
        for path, layer in self.layers.items():
            own = [residual for residual in self.kept if residual.path == path]
            alone = _text(self.autodiff[path])
            for i, one in enumerate(own or [None]):
                first = (path, repr(layer)) if i == 0 else ("", "")
                if one is None:
                    rows.append((*first, "nothing", "", "", "0", alone))
                else:
                    size = _text(one.bytes) if one.same_as is None else f"as {one.same_as!r}"
                    shape = "x".join(map(str, one.shape))
                    rows.append((*first, one.name, shape, one.dtype, size, alone if i == 0 else ""))
        rows.append(("", "all, each once", "", "", "", *map(_text, (self.bytes, self.autodiff_bytes))))
        rows.append(("", "compiled, temporary", "", "", "", *map(_text, (self.temporary, self.autodiff_temporary))))
        return table.Table(
            "What is kept for the backward pass",
            ("path", "layer", "kept", "shape", "dtype", "bytes", "autodiff"),
            tuple(rows),
            caption="autodiff: each layer alone, without its parameters; compiled: both passes, as XLA plans them",
        )


def residuals(
    net: Layer,
    in_shape: Shape,
    batch: int,
    *,
    train: bool = False,
    rules: Rules = RULES,
    extras: Mapping[str, Any] | None = None,
) -> Residuals:
    """What each layer keeps for its backward pass, beside what autodiff keeps of the same network. Nothing is run.

    Args:
        net: any layer.
        in_shape: the shape of one example.
        batch: how many examples N.
        train: whether noise is on.
        rules: the backward pass, with its saving policies.
        extras: a pytree for each path whose rule asks for one.

    Returns:
        `Residuals`, which print as a table.

    Raises:
        RuleError: a layer has no rule.
        LayerError: `in_shape` does not fit the network.
        TypeError, ValueError: `net` is no layer, `batch` no positive integer.

    Example:
        >>> import funcnn as fnn
        >>> from funcnn.backprop import RULES, saving
        >>> net = fnn.Serial(fnn.Dense(512), fnn.Relu(), fnn.Dense(10))
        >>> found = fnn.backprop.residuals(net, (784,), 128)
        >>> [(one.path, one.name, one.bytes, one.same_as) for one in found.kept]
        [('0', 'input', 401408, None), ('1', 'output', 262144, None), ('2', 'input', 0, '1')]
    """
    if not isinstance(net, Layer):
        raise TypeError(f"residuals takes a layer, such as objective.net, got {net!r}")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch is how many examples, a positive integer, got {batch!r}")
    ctx = Context(as_rules(rules), train=train, extras=extras or {})
    layers: dict[str, Layer] = {}
    found: list[Residual] = []
    alone: dict[str, int] = {}
    whole: list[int] = []

    def trace(params: Params, x: jax.Array, key: Key) -> jax.Array:
        weights = jax.tree.leaves(params)
        first: list[tuple[jax.Array, str]] = []  # each array, and the layer that keeps it first

        def observe(at: Context, part: Part, rule: Rule, *, x: jax.Array, y: jax.Array, kept: Any) -> None:
            if not is_leaf(part, rule):
                return
            path = "/".join(at.path)
            layers[path] = part.layer
            for place, leaf in jax.tree_util.tree_leaves_with_path(kept):
                known = next((owner for array, owner in first if array is leaf), None)
                first.append((leaf, path))
                name = "input" if leaf is x else "output" if leaf is y else _named(place)
                size = _bytes([leaf]) if known is None else 0
                found.append(Residual(path, name, leaf.shape, str(leaf.dtype), size, known))
            _, pullback = autodiff.layer_fwd(part.layer, part.params, x, at)
            alone[path] = _bytes(jax.tree.leaves(pullback), [*weights, *jax.tree.leaves(part.params)])

        root, part = dataclasses.replace(ctx, key=key, observe=observe), Part(None, None, net, params)
        check_paths(root, part)
        y, _ = root.fwd(part, x)
        _, pullback = autodiff.layer_fwd(net, params, x, root)
        whole.append(_bytes(jax.tree.leaves(pullback), weights))
        return y

    in_shape = check_in_shape(in_shape)
    key = jax.random.key(0)
    params = jax.eval_shape(lambda key: net.init(key, in_shape), key)
    like = jax.ShapeDtypeStruct((batch, *in_shape), jnp.result_type(float))
    y = jax.eval_shape(trace, params, like, key)

    def by_rules(params: Params, x: jax.Array, key: Key, dy: jax.Array) -> Any:
        root, part = dataclasses.replace(ctx, key=key), Part(None, None, net, params)
        _, kept = root.fwd(part, x)
        return root.bwd(part, kept, dy, True)

    def by_autodiff(params: Params, x: jax.Array, key: Key, dy: jax.Array) -> Any:
        return autodiff.layer_fwd(net, params, x, dataclasses.replace(ctx, key=key))[1](dy)

    plans: list[Any] = [
        jax.jit(function).lower(params, like, key, y).compile().memory_analysis()
        for function in (by_rules, by_autodiff)
    ]
    temporary, autodiff_temporary = (plan.temp_size_in_bytes for plan in plans)
    total = sum(one.bytes for one in found)
    return Residuals(tuple(found), layers, alone, total, whole[0], temporary, autodiff_temporary)


def _named(place: Any) -> str:
    """A residual that is neither input nor output, by its place among them."""
    return jax.tree_util.keystr(place, simple=True, separator="/") or "residual"


def _bytes(arrays: list[jax.Array], but: Sequence[jax.Array] = ()) -> int:
    """What arrays take in memory, each once, without some that are there anyway."""
    each: list[jax.Array] = []
    for array in arrays:
        if not any(array is known for known in (*each, *but)):
            each.append(array)
    return sum(math.prod(array.shape) * array.dtype.itemsize for array in each)


def _text(size: int) -> str:
    """Bytes for people: "401,408" or "16.8 MB"."""
    return f"{size:,}" if size < 1e6 else f"{size / 1e6:,.1f} MB"
