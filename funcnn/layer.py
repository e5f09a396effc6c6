"""A layer: an immutable description with two pure functions, `init` and `apply`, over a pytree of parameters.

Two laws hold for every layer, and the tests check them for each:

1. Shapes: `apply(init(key, s), x)` of an `x` of shape `(N, *s)` has shape `(N, *out_shape(s))`.
2. Examples do not mix: row `n` of `apply(params, x)` depends on row `n` of `x` alone. Without `train`, it depends on
   nothing else.
"""

import abc
import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from funcnn.description import Description

Key = jax.Array
Params = Any  # nested dicts and tuples of arrays
Shape = tuple[int, ...]


class LayerError(ValueError):
    """A layer was given what it cannot take. The message begins with the layer's path in the network.

    Attributes:
        path: the names that lead to the layer, from the outermost network in.
        message: what was wrong, and the call that would be right.
    """

    def __init__(self, message: str, path: tuple[str, ...] = ()):
        super().__init__(message)
        self.message, self.path = message, path

    def __str__(self) -> str:
        return f"at {'/'.join(self.path)!r}: {self.message}" if self.path else self.message


@dataclasses.dataclass(frozen=True)
class Layer(Description, abc.ABC):
    """What every layer and every network is. Your own layer is a frozen dataclass with `init` and `apply`.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, funcnn as fnn
        >>> @dataclasses.dataclass(frozen=True)
        ... class Scale(fnn.Layer):
        ...     start: float = 1.0
        ...     def init(self, key, in_shape):
        ...         return {"scale": jnp.full(in_shape, self.start)}
        ...     def apply(self, params, x, *, key=None, train=False):
        ...         return params["scale"] * x
        >>> net = fnn.Serial(fnn.Dense(3), Scale(2.0))
        >>> net.apply(net.init(jax.random.key(0), (5,)), jnp.zeros((4, 5))).shape
        (4, 3)
    """

    @abc.abstractmethod
    def init(self, key: Key, in_shape: Shape) -> Params:
        """Parameters for examples of shape `in_shape` (one example, without the batch axis)."""

    @abc.abstractmethod
    def apply(self, params: Params, x: jax.Array, *, key: Key | None = None, train: bool = False) -> jax.Array:
        """The outputs (N, ...) for the examples `x` (N, *in_shape); `train=True` switches noise on and needs `key`."""

    def out_shape(self, in_shape: Shape) -> Shape:
        """The shape of one output, for one example of shape `in_shape`."""
        return jax.eval_shape(self.apply, *self._abstract_arguments(in_shape)).shape[1:]

    def multiply_adds(self, in_shape: Shape) -> int:
        """Multiply-adds for one example: those of the matrix products in `apply`, counted in its jaxpr."""
        return _matrix_multiply_adds(jax.make_jaxpr(self.apply)(*self._abstract_arguments(in_shape)).jaxpr)

    def _abstract_arguments(self, in_shape: Shape) -> tuple[Params, jax.ShapeDtypeStruct]:
        in_shape = check_in_shape(in_shape)
        params = jax.eval_shape(lambda: self.init(jax.random.key(0), in_shape))
        return params, jax.ShapeDtypeStruct((1, *in_shape), jnp.result_type(float))


@dataclasses.dataclass(frozen=True)
class Lifted(Layer):
    """The layer that `lift` makes."""

    init_function: Callable[..., Params]
    apply_function: Callable[..., jax.Array]

    def init(self, key: Key, in_shape: Shape) -> Params:
        return self.init_function(key, in_shape)

    def apply(self, params: Params, x: jax.Array, *, key: Key | None = None, train: bool = False) -> jax.Array:
        offered = {"key": key, "train": train}
        taken = inspect.signature(self.apply_function).parameters
        return self.apply_function(params, x, **{k: v for k, v in offered.items() if k in taken})


def lift(init: Callable[..., Params], apply: Callable[..., jax.Array]) -> Layer:
    """A layer from a bare pair of functions.

    Args:
        init: `(key, in_shape) -> params`.
        apply: `(params, x) -> y`, with `x` (N, *in_shape) and `y` (N, ...). Where it has arguments named `key` or
            `train`, they are passed on.

    Returns:
        A `Layer`. It trains by `jax.grad` at once; give it a rule to train it by hand (`Rules({layer: Rule(...)})`).

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> double = fnn.lift(lambda key, in_shape: (), lambda params, x: 2 * x)
        >>> double.apply((), jnp.ones((1, 2)))
        Array([[2., 2.]], dtype=float32)
    """
    if not (callable(init) and callable(apply)):
        raise TypeError("lift takes two functions: lift(init=(key, in_shape) -> params, apply=(params, x) -> y)")
    return Lifted(init, apply)


@contextlib.contextmanager
def at(name: str | None, layer: Layer | None = None) -> Iterator[None]:
    """Names `name` in the errors, and in the compiled program's operations, of what runs inside (None: nothing)."""
    if name is None:
        yield
        return
    try:
        with jax.named_scope(name):
            yield
    except LayerError as error:
        error.path = (name, *error.path)
        raise
    except Exception as error:
        error.add_note(f"in layer {name!r}" + (f": {layer!r}" if layer is not None else ""))
        raise


def fold(key: Key | None, index: int | jax.Array | None) -> Key | None:
    """The key of the layer number `index` inside a network that was given `key`; that key itself for None."""
    return key if key is None or index is None else jax.random.fold_in(key, index)


def check_train(train: bool) -> bool:
    """`train`, or the error that says that it cannot be traced."""
    if isinstance(train, Tracer):
        raise TypeError("train is a Python bool, and jit traced it: use jax.jit(function, static_argnames='train')")
    return train


def need_key(key: Key | None, layer: Layer) -> Key:
    """`key`, or the error that says that `train=True` needs one."""
    if key is None:
        raise LayerError(
            f"{layer!r} draws random numbers under train=True and got no key; "
            "call net.apply(params, x, key=jax.random.key(0), train=True), or leave train out"
        )
    return key


def check_in_shape(in_shape: Shape) -> Shape:
    """`in_shape`, or the error that says what it must be."""
    if not isinstance(in_shape, tuple | list) or not all(isinstance(d, int | np.integer) and d > 0 for d in in_shape):
        raise LayerError(
            f"in_shape is the shape of one example, a tuple of positive integers such as (784,), got {in_shape!r}; "
            "the batch axis is left out: net.init(key, x.shape[1:])"
        )
    return tuple(int(d) for d in in_shape)


def check_params(layer: Layer, params: Params, shapes: dict[str, Shape]) -> None:
    """Raises unless `params` is a dict of arrays with just these names and shapes (-1: any length)."""
    want = "{" + ", ".join(f"{name!r}: {str(shape).replace('-1', 'any')}" for name, shape in shapes.items()) + "}"
    got = describe_params(params)
    good = type(params) is dict and params.keys() == shapes.keys()
    good = good and all(hasattr(leaf, "dtype") for leaf in params.values())
    for name, shape in shapes.items() if good else ():
        have = np.shape(params[name])
        good &= len(have) == len(shape) and all(d in (-1, h) for d, h in zip(shape, have, strict=True))
    if not good:
        raise LayerError(
            f"{layer!r} needs parameters {want}, got {got}; are they another network's? "
            "Make them with net.init(key, x.shape[1:])"
        )


def check_no_params(layer: Layer, params: Params) -> None:
    """Raises unless `params` is `()`, what a layer without parameters holds."""
    if not (isinstance(params, tuple) and not params):
        raise LayerError(
            f"{layer!r} has no parameters, so its entry is (), got {describe_params(params)}; "
            "are these another network's? Make them with net.init(key, x.shape[1:])"
        )


def is_positive(value: Any) -> bool:
    """Whether a value is a number, and above 0."""
    is_number = isinstance(value, int | float | np.number | jax.Array) and not isinstance(value, bool)
    return is_number and not jnp.ndim(value) and bool(value > 0)


def is_floating(dtype: Any) -> bool:
    """Whether this is a floating dtype, or the name of one."""
    try:
        return jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        return False


def check_count(layer: Layer, name: str, count: int) -> None:
    """Raises unless `count`, the field `name`, is a positive integer; one of NumPy becomes Python's."""
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise LayerError(f"{type(layer).__name__}'s {name} is a positive integer, got {count!r}")
    object.__setattr__(layer, name, int(count))


def last_axis(layer: Layer, in_shape: Shape) -> int:
    """D, the length of the last axis of one example."""
    if not check_in_shape(in_shape):
        raise LayerError(f"{layer!r} maps an example's last axis, and an example of shape () has none: use (1,)")
    return in_shape[-1]


def check_last_axis(layer: Layer, x: jax.Array, width: int) -> None:
    """Raises unless the last axis of `x` has length `width`, that of the parameters."""
    if not jnp.shape(x) or jnp.shape(x)[-1] != width:
        raise LayerError(
            f"{layer!r} has parameters for inputs of shape (..., {width}) and got x of shape {jnp.shape(x)}; "
            f"give x a last axis of {width}, or make parameters with net.init(key, x.shape[1:])"
        )


def float_dtype(x: jax.Array) -> Any:
    """The dtype of x, or JAX's default floating dtype where x holds integers, such as the bytes of an image."""
    return x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.result_type(float)


def describe_params(params: Params) -> str:
    """A short text of a parameter tree for messages: names and shapes."""
    if isinstance(params, dict):
        return "{" + ", ".join(f"{k!r}: {describe_params(v)}" for k, v in params.items()) + "}"
    if isinstance(params, list):
        return "[" + ", ".join(map(describe_params, params)) + "]"
    if isinstance(params, tuple):
        return "(" + ", ".join(map(describe_params, params)) + ("," if len(params) == 1 else "") + ")"
    return f"{params.dtype.name}{list(params.shape)}" if hasattr(params, "dtype") else repr(params)


def against(v: jax.Array, x: jax.Array) -> jax.Array:
    """`v` with axes of length 1 in front, so that it has as many axes as `x` and broadcasts over the examples."""
    return jnp.reshape(v, (1,) * (x.ndim - v.ndim) + v.shape)


def magnitude(a: jax.Array) -> jax.Array:
    """|a|, with the derivative 0 at 0, where that of `jnp.abs` is 1."""
    return a * jnp.sign(a)


def _matrix_multiply_adds(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            operand, out = equation.invars[0].aval, equation.outvars[0].aval
            total += math.prod(out.shape) * math.prod(operand.shape[d] for d in contracted)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)  # noqa: PLW2901 - a ClosedJaxpr holds its Jaxpr
                if hasattr(inner, "eqns"):
                    total += _matrix_multiply_adds(inner)
    return total
