"""Initial values of parameters: named, so that a description stays a value; made by `jax.nn.initializers`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcnn.description import Description
from funcnn.layer import Key, Shape

_PLAIN = ("zeros", "ones")  # in jax.nn.initializers these are initialisers; the others make one
_MAKERS = (
    "constant",
    "delta_orthogonal",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "orthogonal",
    "truncated_normal",
    "uniform",
    "variance_scaling",
    "xavier_normal",
    "xavier_uniform",
)


@dataclasses.dataclass(frozen=True, init=False)
class Init(Description):
    """A named initialiser of `jax.nn.initializers` with its options, as a value.

    Args:
        name: such as "normal", "uniform", "orthogonal", "variance_scaling".
        **options: the keyword arguments of that initialiser.

    Raises:
        ValueError: there is no such initialiser.

    Example:
        >>> import funcnn as fnn
        >>> fnn.Dense(8, w_init=fnn.Init("normal", stddev=0.01))
        Dense(8, w_init=Init('normal', stddev=0.01))
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def __init__(self, name: str, options: tuple[tuple[str, Any], ...] = (), **more: Any):
        if name not in (*_MAKERS, *_PLAIN):
            raise ValueError(f"no initialiser is named {name!r}; the names are {', '.join((*_PLAIN, *_MAKERS))}")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "options", tuple(sorted({**dict(options), **more}.items())))

    def __repr__(self) -> str:
        return f"Init({', '.join([repr(self.name), *(f'{k}={v!r}' for k, v in self.options)])})"


Initializer = str | float | Init | Callable[..., jax.Array]


def draw(init: Initializer, key: Key, shape: Shape) -> jax.Array:
    """An array of `shape` from an initialiser: a name, a number (constant), an `Init`, or a function of jax's form.

    Its dtype is JAX's default: float32, or float64 under `jax.enable_x64(True)`.
    """
    dtype = jnp.result_type(float)
    if isinstance(init, bool) or not (callable(init) or isinstance(init, str | int | float | Init)):
        raise TypeError(f"an initialiser is a name, a number, an Init or a function, got {init!r}")
    if isinstance(init, int | float):
        return jnp.full(shape, init, dtype)
    if callable(init):
        drawn = init(key, shape, dtype)
        if getattr(drawn, "shape", None) != tuple(shape):
            raise TypeError(
                f"an initialiser is a function (key, shape, dtype) -> array of that shape; {init!r} gave {drawn!r}; "
                'one of jax.nn.initializers is made first, he_normal(), or named, "he_normal"'
            )
        return drawn
    named = Init(init) if isinstance(init, str) else init
    found = getattr(jax.nn.initializers, named.name)
    return (found if named.name in _PLAIN else found(**dict(named.options)))(key, shape, dtype)
