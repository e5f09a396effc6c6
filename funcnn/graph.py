"""Graphs: any directed acyclic graph of layers, with fan-out, joins and shared weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from funcnn.compose import (
    Combinator,
    Part,
    check_join,
    check_layers,
    check_names,
    init_at,
    join,
    joined_shape,
    out_shape_at,
)
from funcnn.description import Description
from funcnn.layer import (
    Key,
    Layer,
    LayerError,
    Params,
    Shape,
    at,
    check_in_shape,
    check_no_params,
)

INPUT = "input"  # the name of a Graph's own input among its nodes


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
        check_layers("Node", (self.layer,))
        check_join("Node", self.join)
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
        pairs = tuple((name, _as_node(name, node)) for name, node in pairs)
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
        check_names(self, params, tuple(name for name, _ in self.nodes))
        for name, node in self.nodes:
            if node.params_of:
                with at(name):
                    check_no_params(node.layer, params[name])
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


def _as_node(name: Any, node: Any) -> Node:
    if isinstance(node, tuple | list) and len(node) in (2, 3, 4):
        node = Node(*node)
    if not (isinstance(name, str) and isinstance(node, Node)):
        raise LayerError(
            f"a Graph's nodes are {{name: Node(layer, inputs)}}, or (layer, inputs) for short, got {name!r}: {node!r}"
        )
    return node


def _checked_order(pairs: tuple[tuple[str, Node], ...], output: str) -> tuple[tuple[str, Node], ...]:
    """The nodes in forward order (a node after its inputs; else as given), or the error that says what is wrong."""
    nodes = dict(pairs)
    if bad := [name for name in nodes if not name or "/" in name]:
        raise LayerError(f"Graph's names are steps in a path, not empty and without '/', got {bad}")
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
