"""Combinators: layers made of layers, so that a network is a layer in another.

Each combinator says what it is made of by `parts(params)`, and its `apply` and its backward rule both go through them.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcnn.description import Description
from funcnn.layer import (
    Key,
    Layer,
    LayerError,
    Params,
    Shape,
    at,
    check_in_shape,
    describe_params,
    fold,
    need_key,
)
from funcnn.layers.activation import Identity

INPUT = "input"  # the name of a Graph's own input among its nodes


class Part(NamedTuple):
    """A layer at its place in a combinator: what runs there, with which parameters."""

    number: int | None  # folded into the key, so that each part draws other random numbers; None for a whole network
    name: str | None  # its step in the path; None for the one part of a wrapper, which has the wrapper's path
    layer: Layer
    params: Params

    def apply(self, x: jax.Array, key: Key | None, train: bool) -> jax.Array:
        """y = layer(x), named in errors."""
        with at(self.name, self.layer):
            return self.layer.apply(self.params, x, key=fold(key, self.number), train=train)


class Combinator(Layer):
    """A layer made of layers."""

    @abc.abstractmethod
    def parts(self, params: Params) -> tuple[Part, ...]:
        """The layers with their parameters, in forward order; raises where `params` have another structure."""

    @abc.abstractmethod
    def parts_in_shapes(self, in_shape: Shape) -> tuple[tuple[str | None, Layer, Shape], ...]:
        """Name, layer and input shape of each part, for one example of shape `in_shape`."""

    def out_shape(self, in_shape: Shape) -> Shape:
        name, layer, shape = self.parts_in_shapes(check_in_shape(in_shape))[-1]
        return out_shape_at(name, layer, shape)

    def multiply_adds(self, in_shape: Shape) -> int:
        return sum(layer.multiply_adds(shape) for _, layer, shape in self.parts_in_shapes(check_in_shape(in_shape)))


def init_at(name: str | None, layer: Layer, key: Key, in_shape: Shape) -> Params:
    """`layer.init`, named in errors."""
    with at(name, layer):
        return layer.init(key, in_shape)


def out_shape_at(name: str | None, layer: Layer, in_shape: Shape) -> Shape:
    """`layer.out_shape`, named in errors."""
    with at(name, layer):
        return layer.out_shape(in_shape)


def _check_layers(owner: str, layers: tuple[Any, ...]) -> None:
    if not layers:
        raise LayerError(f"{owner} needs at least one layer")
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            hint = " (an instance, with parentheses)" if isinstance(layer, type) else ""
            raise LayerError(
                f"{owner} is made of layers{hint}, and its number {i} is {layer!r}; "
                "a bare pair of functions becomes one by fnn.lift(init, apply)"
            )


def _check_tuple(owner: Layer, params: Params, count: int) -> None:
    if not isinstance(params, tuple | list) or len(params) != count:
        raise LayerError(
            f"{type(owner).__name__} of {count} layers needs a tuple of {count} entries, one a layer, got "
            f"{describe_params(params)}; are they another network's? Make them with net.init(key, x.shape[1:])"
        )


def _check_names(owner: Layer, params: Params, names: tuple[str, ...]) -> None:
    if not isinstance(params, dict) or params.keys() != set(names):
        raise LayerError(
            f"{type(owner).__name__} needs a dict with the entries {list(names)}, got {describe_params(params)}; "
            "are they another network's? Make them with net.init(key, x.shape[1:])"
        )


@dataclasses.dataclass(frozen=True, init=False)
class Serial(Combinator):
    """One layer after another: z^{l+1} = f^l(z^l).

    Args:
        *layers: the layers, in forward order. Their paths are their numbers: "0", "1", ...

    Returns of `init`: a tuple with one entry a layer.

    Raises:
        LayerError: there is no layer, or one is not a layer; whatever a layer raises, with its path.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> net = fnn.Serial(fnn.Dense(8), fnn.Relu(), fnn.Dense(2))
        >>> params = net.init(jax.random.key(0), (3,))
        >>> net.apply(params, jnp.zeros((5, 3))).shape
        (5, 2)
    """

    starred = "layers"
    layers: tuple[Layer, ...]

    def __init__(self, *layers: Layer):
        _check_layers("Serial", layers)
        object.__setattr__(self, "layers", layers)

    def init(self, key: Key, in_shape: Shape) -> Params:
        places = self.parts_in_shapes(check_in_shape(in_shape))
        return tuple(
            init_at(name, layer, jax.random.fold_in(key, i), shape) for i, (name, layer, shape) in enumerate(places)
        )

    def parts(self, params: Params) -> tuple[Part, ...]:
        _check_tuple(self, params, len(self.layers))
        return tuple(Part(i, str(i), layer, params[i]) for i, layer in enumerate(self.layers))

    def apply(self, params: Params, x: jax.Array, *, key: Key | None = None, train: bool = False) -> jax.Array:
        for part in self.parts(params):
            x = part.apply(x, key, train)
        return x

    def parts_in_shapes(self, in_shape: Shape) -> tuple[tuple[str | None, Layer, Shape], ...]:
        places = []
        for i, layer in enumerate(self.layers):
            places.append((str(i), layer, in_shape))
            if i + 1 < len(self.layers):
                in_shape = out_shape_at(str(i), layer, in_shape)
        return tuple(places)


class Branches(Combinator):
    """Several layers on one input, whose outputs are joined."""

    join: Any  # "add" or "concat"

    @abc.abstractmethod
    def named_layers(self) -> tuple[tuple[str, Layer], ...]:
        """The branches with their names."""

    def apply(self, params: Params, x: jax.Array, *, key: Key | None = None, train: bool = False) -> jax.Array:
        return join(self.join, [part.apply(x, key, train) for part in self.parts(params)], self)

    def parts_in_shapes(self, in_shape: Shape) -> tuple[tuple[str | None, Layer, Shape], ...]:
        return tuple((name, layer, in_shape) for name, layer in self.named_layers())

    def out_shape(self, in_shape: Shape) -> Shape:
        places = self.parts_in_shapes(check_in_shape(in_shape))
        return joined_shape(self.join, [out_shape_at(*place) for place in places], self)

    def init(self, key: Key, in_shape: Shape) -> Params:
        self.out_shape(in_shape)
        places = self.parts_in_shapes(check_in_shape(in_shape))
        return self.assemble(
            [init_at(name, layer, jax.random.fold_in(key, i), shape) for i, (name, layer, shape) in enumerate(places)]
        )

    @abc.abstractmethod
    def assemble(self, entries: list[Params]) -> Params:
        """The parameters of the whole from those of the branches, in order."""


@dataclasses.dataclass(frozen=True)
class Residual(Branches):
    """A layer with a way around it: y = body(x) + shortcut(x).

    Args:
        body: a layer whose output has the shape of the shortcut's.
        shortcut: the identity, or a projection such as Dense where the shapes differ.

    Returns of `init`: `{"body": ..., "shortcut": ...}`.

    Raises:
        LayerError: the two outputs differ in shape.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> block = fnn.Residual(fnn.Serial(fnn.Dense(4, w_init="zeros"), fnn.Relu()))
        >>> block.apply(block.init(jax.random.key(0), (4,)), jnp.ones((1, 4)))
        Array([[1., 1., 1., 1.]], dtype=float32)

    Source: He et al., Deep Residual Learning for Image Recognition (2016).
    """

    body: Layer
    shortcut: Layer = Identity()

    join = "add"

    def __post_init__(self) -> None:
        _check_layers("Residual", (self.body, self.shortcut))

    def named_layers(self) -> tuple[tuple[str, Layer], ...]:
        return (("body", self.body), ("shortcut", self.shortcut))

    def assemble(self, entries: list[Params]) -> Params:
        return dict(zip(("body", "shortcut"), entries, strict=True))

    def parts(self, params: Params) -> tuple[Part, ...]:
        _check_names(self, params, ("body", "shortcut"))
        return tuple(Part(i, name, layer, params[name]) for i, (name, layer) in enumerate(self.named_layers()))


@dataclasses.dataclass(frozen=True, init=False)
class Parallel(Branches):
    """Several layers on one input: their outputs side by side, or their sum.

    Args:
        *layers: the branches. Their paths are their numbers.
        join: "concat" along the last axis, or "add".

    Returns of `init`: a tuple with one entry a branch.

    Raises:
        LayerError: the outputs do not fit together.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> fnn.Parallel(fnn.Identity(), fnn.Absolute()).apply(((), ()), jnp.array([[-1.0]]))
        Array([[-1.,  1.]], dtype=float32)
    """

    starred = "layers"
    layers: tuple[Layer, ...]
    join: str = "concat"

    def __init__(self, *layers: Layer, join: str = "concat"):
        _check_layers("Parallel", layers)
        _check_join("Parallel", join)
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "join", join)

    def named_layers(self) -> tuple[tuple[str, Layer], ...]:
        return tuple((str(i), layer) for i, layer in enumerate(self.layers))

    def assemble(self, entries: list[Params]) -> Params:
        return tuple(entries)

    def parts(self, params: Params) -> tuple[Part, ...]:
        _check_tuple(self, params, len(self.layers))
        return tuple(Part(i, str(i), layer, params[i]) for i, layer in enumerate(self.layers))


@dataclasses.dataclass(frozen=True)
class Node(Description):
    """One node of a `Graph`: a layer, and where its input comes from.

    Args:
        layer: what the node computes.
        inputs: the name of a node, or a tuple of names; "input" is the graph's own input.
        join: how several inputs become one: "add", or "concat" along the last axis.
        params_of: the name of a node with an equal layer, whose parameters this node uses too (weight sharing).

    Example:
        >>> import funcnn as fnn
        >>> fnn.Node(fnn.Dense(3), ("left", "right"), join="concat")
        Node(Dense(3), ('left', 'right'), join='concat')
    """

    layer: Layer
    inputs: Any
    join: str = "add"
    params_of: str | None = None

    def __post_init__(self) -> None:
        _check_layers("Node", (self.layer,))
        _check_join("Node", self.join)
        inputs = (self.inputs,) if isinstance(self.inputs, str) else tuple(self.inputs)
        if not inputs or not all(isinstance(name, str) for name in inputs):
            raise LayerError(f"a Node's inputs are names of nodes, at least one, got {self.inputs!r}")
        object.__setattr__(self, "inputs", inputs)


@dataclasses.dataclass(frozen=True, init=False)
class Graph(Combinator):
    """Any directed acyclic graph of named nodes: y = the output node; each node is layer(join of its inputs).

    A node may feed several others (fan-out), take several inputs, and use the parameters of another node.

    Args:
        nodes: `{name: Node(layer, inputs, ...)}`, in any order; a plain `(layer, inputs)` will do. A node's
            path is its name.
        output: the name of the node whose value is the graph's.

    Returns of `init`: a dict by node name; a node that uses another's parameters holds ().

    Raises:
        LayerError: a cycle, an unknown name, an unused node, shared parameters of an unequal layer, inputs that do not
            fit together; the message names the nodes.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> net = fnn.Graph({
        ...     "h": fnn.Node(fnn.Dense(4), "input"),
        ...     "a": fnn.Node(fnn.Relu(), "h"),
        ...     "b": fnn.Node(fnn.Tanh(), "h"),
        ...     "y": fnn.Node(fnn.Dense(2), ("a", "b"), join="concat"),
        ... }, output="y")
        >>> net.apply(net.init(jax.random.key(0), (3,)), jnp.zeros((5, 3))).shape
        (5, 2)
    """

    nodes: tuple[tuple[str, Node], ...]
    output: str

    def __init__(self, nodes: Any, output: str):
        pairs = tuple(nodes.items()) if isinstance(nodes, Mapping) else tuple(map(tuple, nodes))
        pairs = tuple((name, node if isinstance(node, Node) else Node(*node)) for name, node in pairs)
        object.__setattr__(self, "nodes", _checked_order(pairs, output))
        object.__setattr__(self, "output", output)

    def __repr__(self) -> str:
        return f"Graph({{{', '.join(f'{name!r}: {node!r}' for name, node in self.nodes)}}}, {self.output!r})"

    def init(self, key: Key, in_shape: Shape) -> Params:
        nodes = dict(self.nodes)
        params: dict[str, Params] = {}
        shapes: dict[str, Shape] = {}
        for i, (name, layer, shape) in enumerate(self.parts_in_shapes(check_in_shape(in_shape))):
            assert name is not None
            shapes[name] = shape
            owner = nodes[name].params_of
            params[name] = () if owner else init_at(name, layer, jax.random.fold_in(key, i), shape)
        for name, node in self.nodes:
            if node.params_of and shapes[node.params_of] != shapes[name]:
                raise LayerError(
                    f"{name!r} uses the parameters of {node.params_of!r}, but their inputs have the shapes "
                    f"{shapes[name]} and {shapes[node.params_of]}"
                )
        return params

    def parts(self, params: Params) -> tuple[Part, ...]:
        _check_names(self, params, tuple(name for name, _ in self.nodes))
        return tuple(
            Part(i, name, node.layer, params[node.params_of or name]) for i, (name, node) in enumerate(self.nodes)
        )

    def apply(self, params: Params, x: jax.Array, *, key: Key | None = None, train: bool = False) -> jax.Array:
        values = {INPUT: x}
        for part, (name, node) in zip(self.parts(params), self.nodes, strict=True):
            values[name] = part.apply(self.gather(name, node, values), key, train)
        return values[self.output]

    def gather(self, name: str, node: Node, values: Mapping[str, jax.Array]) -> jax.Array:
        """The input of `node`, joined from the values of the nodes before it."""
        with at(name):
            return join(node.join, [values[source] for source in node.inputs], node)

    def parts_in_shapes(self, in_shape: Shape) -> tuple[tuple[str | None, Layer, Shape], ...]:
        shapes, places = {INPUT: in_shape}, []
        for name, node in self.nodes:
            with at(name):
                joined = joined_shape(node.join, [shapes[source] for source in node.inputs], node)
            places.append((name, node.layer, joined))
            shapes[name] = out_shape_at(name, node.layer, joined)
        return tuple(places)

    def out_shape(self, in_shape: Shape) -> Shape:
        places = {name: (layer, shape) for name, layer, shape in self.parts_in_shapes(check_in_shape(in_shape))}
        return out_shape_at(self.output, *places[self.output])


def _checked_order(pairs: tuple[tuple[str, Node], ...], output: str) -> tuple[tuple[str, Node], ...]:
    """The nodes in forward order (a node after its inputs; else as given), or the error that says what is wrong."""
    nodes = dict(pairs)
    if len(nodes) != len(pairs) or INPUT in nodes:
        raise LayerError(f"Graph's nodes have names of their own, and none is called {INPUT!r}, the graph's input")
    if output not in nodes:
        raise LayerError(f"Graph's output {output!r} is none of its nodes {list(nodes)}")
    for name, node in nodes.items():
        for source in node.inputs:
            if source != INPUT and source not in nodes:
                raise LayerError(f"Graph's node {name!r} takes {source!r}, which is none of {[INPUT, *nodes]}")
        if node.params_of is not None:
            owner = nodes.get(node.params_of)
            if owner is None or owner.params_of is not None or owner.layer != node.layer:
                raise LayerError(
                    f"Graph's node {name!r} uses the parameters of {node.params_of!r}, which must be another node that "
                    f"owns its parameters and has an equal layer; got {owner!r} for {node!r}"
                )
    ordered: dict[str, Node] = {}
    while len(ordered) < len(nodes):
        ready = [n for n in nodes if n not in ordered and all(s == INPUT or s in ordered for s in nodes[n].inputs)]
        if not ready:
            raise LayerError(f"Graph has a cycle: {' -> '.join(_cycle(nodes, set(ordered)))}")
        ordered[ready[0]] = nodes[ready[0]]
    used = {output}
    for name in reversed(ordered):
        if name in used:
            used.update(ordered[name].inputs)
    if unused := [name for name in ordered if name not in used]:
        raise LayerError(f"Graph's output {output!r} does not depend on {unused}: use or remove them")
    return tuple(ordered.items())


def _cycle(nodes: Mapping[str, Node], ordered: set[str]) -> list[str]:
    """The names along one cycle among the nodes that could not be ordered; each follows what it waits for."""
    walk = [next(name for name in nodes if name not in ordered)]
    while walk[-1] not in walk[:-1]:
        walk.append(next(s for s in nodes[walk[-1]].inputs if s != INPUT and s not in ordered))
    return walk[walk.index(walk[-1]) :][::-1]


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
        _check_layers("Cast", (self.layer,))
        if not (isinstance(self.dtype, str) and jnp.issubdtype(jnp.dtype(self.dtype), jnp.floating)):
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
        _check_layers("WeightNoise", (self.layer,))
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
        if not (train and self.std):
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


def float_dtype(x: jax.Array) -> Any:
    """The dtype of x, or JAX's default floating dtype where x holds integers, such as the bytes of an image."""
    return x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.result_type(float)


def _check_join(owner: str, how: str) -> None:
    if how not in ("add", "concat"):
        raise LayerError(f"{owner}'s join is 'add' or 'concat', got {how!r}")


def join(how: str, values: list[jax.Array], owner: Any) -> jax.Array:
    """The sum of arrays of one shape, or the arrays side by side along the last axis."""
    joined_shape(how, [jnp.shape(v) for v in values], owner)
    if how == "concat":
        return jnp.concatenate(values, axis=-1) if len(values) > 1 else values[0]
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def joined_shape(how: str, shapes: list[Shape], owner: Any) -> Shape:
    """The shape that `join` gives, or the error that names the shapes that do not fit."""
    if how == "add":
        if len(set(shapes)) > 1:
            raise LayerError(f"{owner!r} adds arrays of one shape, got {', '.join(map(str, shapes))}")
        return shapes[0]
    if any(not s for s in shapes) or len({s[:-1] for s in shapes}) > 1:
        raise LayerError(f"{owner!r} joins arrays that differ in the last axis only, got {', '.join(map(str, shapes))}")
    return (*shapes[0][:-1], sum(s[-1] for s in shapes))
