"""Penalties: functions of the parameters alone, added to the loss. `l1(0.1) + l2(0.01)` is their sum."""

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.core import Tracer

from funcnn.description import Description
from funcnn.layer import Params, magnitude
from funcnn.wrappers import leaf_names, select_leaves


@dataclasses.dataclass(frozen=True)
class Penalty(Description, abc.ABC):
    """Base of the penalties: a frozen value that is called with parameters and gives a number."""

    @abc.abstractmethod
    def __call__(self, params: Params) -> jax.Array:
        """The penalty of these parameters, a scalar."""

    def __add__(self, other: "Penalty") -> "Sum":
        if not isinstance(other, Penalty):
            return NotImplemented
        return Sum((*_terms(self), *_terms(other)))


@dataclasses.dataclass(frozen=True)
class _Scaled(Penalty):
    """A penalty with a scale, on the parameters of given names."""

    scale: float
    leaves: tuple[str, ...] | None = ("w",)

    def __post_init__(self) -> None:
        if not isinstance(self.scale, Tracer) and not 0 <= self.scale < math.inf:  # traced: a sweep's, under jit
            raise ValueError(f"a penalty's scale is not negative, and finite, got {self.scale!r}")
        object.__setattr__(self, "leaves", leaf_names(self.leaves))

    def penalized(self, params: Params) -> list[jax.Array]:
        """The leaves that the penalty is on; raises where there are none."""
        chosen = select_leaves(params, self.leaves, self)
        return [leaf for leaf, pick in zip(jax.tree.leaves(params), chosen, strict=True) if pick]

    def _code_name(self) -> str:
        return type(self).__name__.lower()


@dataclasses.dataclass(frozen=True)
class L2(_Scaled):
    """Weight decay: scale / 2 sum w^2, whose gradient is scale w.

    Args:
        scale: the decay, not negative.
        leaves: the names of the parameters that it is on: weights only, unless asked; None for all.

    Raises:
        LayerError: (when called) no parameter has one of these names.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.penalties.l2(0.5)({"w": jnp.array([[2.0]]), "b": jnp.array([7.0])})
        Array(1., dtype=float32)

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), section 7.1.1.
    """

    def __call__(self, params: Params) -> jax.Array:
        return _total([jnp.sum(jnp.square(w)) for w in self.penalized(params)]) * (self.scale / 2)


@dataclasses.dataclass(frozen=True)
class L1(_Scaled):
    """Sparsity: scale sum |w|, whose gradient is scale sign(w), 0 at 0.

    Args:
        scale: the strength, not negative.
        leaves: the names of the parameters that it is on: weights only, unless asked; None for all.

    Raises:
        LayerError: (when called) no parameter has one of these names.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.penalties.l1(0.5)({"w": jnp.array([[-2.0]]), "b": jnp.array([7.0])})
        Array(1., dtype=float32)

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), section 7.1.2.
    """

    def __call__(self, params: Params) -> jax.Array:
        return _total([jnp.sum(magnitude(w)) for w in self.penalized(params)]) * self.scale


@dataclasses.dataclass(frozen=True)
class Sum(Penalty):
    """The sum of penalties, as `+` makes it.

    Example:
        >>> import funcnn as fnn
        >>> fnn.penalties.l1(0.1) + fnn.penalties.l2(0.01)
        l1(0.1) + l2(0.01)
    """

    terms: tuple[Penalty, ...]

    def __call__(self, params: Params) -> jax.Array:
        return _total([term(params) for term in self.terms])

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.terms))


def _total(values: list[jax.Array]) -> jax.Array:
    """The sum, in the dtype of the values: a start of zero would bring in the default one."""
    return sum(values[1:], start=values[0])


def _terms(penalty: Penalty) -> tuple[Penalty, ...]:
    return penalty.terms if isinstance(penalty, Sum) else (penalty,)


l1 = L1
l2 = L2
