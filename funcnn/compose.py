"""Combinators: layers made of layers, so that a network is a layer in another.

Each combinator says what it is made of by `parts(params)`, and its `apply` and its backward rule both go through them.
"""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
)
from funcnn.layers.activation import Identity


class Part(NamedTuple):
    """A layer at its place in a combinator: what runs there, with which parameters.

    Attributes:
        number: folded into the key, so that each part draws other random numbers; None for a whole network.
        name: its step in the path; None for the one part of a wrapper, which has the wrapper's path.
        layer: what runs.
        params: its parameters.
    """

    number: int | None
    name: str | None
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


def check_layers(owner: str, layers: tuple[Any, ...]) -> None:
    """Raises unless `layers` are layers, at least one."""
    if not layers:
        raise LayerError(f"{owner} needs at least one layer")
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            hint = " (an instance, with parentheses)" if isinstance(layer, type) else ""
            hint = " (each an argument: Serial(*layers))" if isinstance(layer, tuple | list) else hint
            raise LayerError(
                f"{owner} is made of layers{hint}, and its number {i} is {layer!r}; "
                "a bare pair of functions becomes one by fnn.lift(init, apply)"
            )


def _check_tuple(owner: Layer, params: Params, count: int) -> None:
    if type(params) is not tuple or len(params) != count:
        raise LayerError(
            f"{type(owner).__name__} of {count} layers needs a tuple of {count} entries, one a layer, got "
            f"{describe_params(params)}; are they another network's? Make them with net.init(key, x.shape[1:])"
        )


def check_names(owner: Layer, params: Params, names: tuple[str, ...]) -> None:
    """Raises unless `params` is a dict with just these entries."""
    if type(params) is not dict or params.keys() != set(names):
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
        check_layers("Serial", layers)
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
        check_layers("Residual", (self.body, self.shortcut))

    def named_layers(self) -> tuple[tuple[str, Layer], ...]:
        return (("body", self.body), ("shortcut", self.shortcut))

    def assemble(self, entries: list[Params]) -> Params:
        return dict(zip(("body", "shortcut"), entries, strict=True))

    def parts(self, params: Params) -> tuple[Part, ...]:
        check_names(self, params, ("body", "shortcut"))
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
        check_layers("Parallel", layers)
        check_join("Parallel", join)
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "join", join)

    def named_layers(self) -> tuple[tuple[str, Layer], ...]:
        return tuple((str(i), layer) for i, layer in enumerate(self.layers))

    def assemble(self, entries: list[Params]) -> Params:
        return tuple(entries)

    def parts(self, params: Params) -> tuple[Part, ...]:
        _check_tuple(self, params, len(self.layers))
        return tuple(Part(i, str(i), layer, params[i]) for i, layer in enumerate(self.layers))


def check_join(owner: str, how: str) -> None:
    """Raises unless `how` is a way to join arrays."""
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
