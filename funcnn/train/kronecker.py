"""K-FAC's direction, for optax: the gradient times the inverse of a curvature matrix in Kronecker factors."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve

from funcnn import backprop
from funcnn.backprop import quantities
from funcnn.backprop.outer import Outer, at_least_float32, is_outer
from funcnn.backprop.rule import RuleError
from funcnn.backprop.rules import RULES
from funcnn.compose import Combinator, Part
from funcnn.layer import Layer, Params, is_positive
from funcnn.objective import Objective
from funcnn.repeat import Repeat
from funcnn.train.arguments import check_count

Factors = tuple[jax.Array | None, jax.Array]

_SAMPLES = 2**32 - 3  # the stream of the drawn targets, beside those of the layers in the step's key


class KroneckerState(NamedTuple):
    """What `scale_by_kfac` remembers.

    Attributes:
        steps: how many updates there were, int32.
        factors: for each block its two factors (left, right), as running averages that began with 0; left is None for
            a parameter of one axis. Those of the blocks of a `Repeat` are stacked.
        inverses: those of the damped factors.
    """

    steps: jax.Array
    factors: tuple[Factors, ...]
    inverses: tuple[Factors, ...]


def scale_by_kfac(
    objective: Objective,
    *,
    damping: float | Callable[[jax.Array], jax.Array] = 1e-1,
    decay: float = 0.95,
    factors_every: int = 1,
    inverses_every: int = 10,
    bound: float | None = 1e-1,
    of: str = "fisher",
    samples: int = 1,
    rules: backprop.Rules = RULES,
    extras: Mapping[str, Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """K-FAC's direction: gradients times the inverse of a block-diagonal curvature matrix in Kronecker factors.

    G -> (A + pi sqrt(lambda) I)^-1 G (B + sqrt(lambda) / pi I)^-1,  pi^2 = (tr A / dim A) / (tr B / dim B)

    for the gradient G (D, K) of each layer's weights, where A and B are running averages of
    `quantities.kronecker_factors`. A layer's weights w and biases b are one block, with activities (a, 1). What has no
    activity, such as a slope, has B alone.

    Args:
        objective: that of the training; its penalty has no part in the curvature.
        damping: lambda, in units of the loss per squared parameter; or a schedule, a function of the count of updates.
        decay: how much of the averages stays from one update of the factors to the next.
        factors_every: how many steps pass from one update of the factors to the next.
        inverses_every: how many steps pass from one inversion of the damped factors to the next.
        bound: the largest g . (what it becomes), about twice the Kullback-Leibler divergence of such a step, in nats:
            what is larger is scaled down to it, before the learning rate; None: no bound.
        of: "fisher" (K-FAC, targets drawn from the network's own distribution) or "gauss_newton" (KFLR, exact).
        samples: targets drawn for each example, for "fisher".
        rules: the backward pass.
        extras: a pytree for each path whose rule asks for one.

    Returns:
        An optax transformation, to be followed by a learning rate, as by `optax.chain` in the example. Its `update`
        needs `params`, `batch` and `key`, which `train.step` and `train.fit` hand on.

    Raises:
        RuleError: the net or loss has no rule, or the loss's has no curvature.
        ValueError: an argument is not what it should be.

    Example:
        >>> import jax, optax, funcnn as fnn
        >>> (x, y), _ = fnn.data.load_digits().arrays()
        >>> net = fnn.Serial(fnn.Dense(64), fnn.Tanh(), fnn.Dense(10))
        >>> objective = fnn.Objective(net, fnn.losses.softmax_cross_entropy)
        >>> optimizer = optax.chain(fnn.train.scale_by_kfac(objective), optax.sgd(0.3, momentum=0.9))
        >>> _, history = fnn.train.fit(
        ...     objective, optimizer, net.init(jax.random.key(0), (64,)), (x, y), epochs=3, batch_size=64,
        ...     key=jax.random.key(1), progress=None)
        >>> print(history["loss"][-1] < 0.1)
        True

    Source: Martens and Grosse, Optimizing Neural Networks with Kronecker-factored Approximate Curvature (2015),
    sections 3, 5 and 6.3; Botev, Ritter and Barber (2017) for "gauss_newton".
    """
    curvature = Curvature.of(objective, decay, factors_every, inverses_every, of, samples, rules, extras)
    if not callable(damping) and not is_positive(damping):
        raise ValueError(f"damping is a positive number, or a function of the count of updates, got {damping!r}")
    if bound is not None and not is_positive(bound):
        raise ValueError(f"bound is a positive number or None, got {bound!r}")

    def update(
        grads: Params,
        state: KroneckerState,
        params: Params | None = None,
        *,
        batch: Any = None,
        key: Any = None,
        **_: Any,
    ) -> tuple[Params, KroneckerState]:
        check_given("scale_by_kfac", params, batch, key)
        strength = damping(state.steps) if callable(damping) else damping
        moved, state = curvature.update(grads, state, params, batch, key, strength)
        return moved if bound is None else _bounded(moved, grads, bound), state

    return optax.GradientTransformationExtraArgs(curvature.init, update)  # pyright: ignore[reportArgumentType]


def check_given(name: str, params: Any, batch: Any, key: Any) -> None:
    """Raises unless `update` was given all that it needs."""
    if params is None or batch is None or key is None:
        raise ValueError(
            f"{name}'s update needs params, batch and key: optimizer.update(grads, state, params, batch=batch, key=key)"
        )


@dataclasses.dataclass(frozen=True)
class Curvature:
    """The factors of the blocks, and what they make of a gradient."""

    net: Layer
    rows: Callable[..., backprop.Rows]
    decay: float
    factors_every: int
    inverses_every: int

    @classmethod
    def of(
        cls,
        objective: Objective,
        decay: float,
        factors_every: int,
        inverses_every: int,
        of: str,
        samples: int,
        rules: backprop.Rules,
        extras: Mapping[str, Any] | None,
    ) -> "Curvature":
        """Checked."""
        if of == "loss":
            raise ValueError('kfac is of "fisher" or of "gauss_newton": the gradients of the loss have no curvature')
        rows = backprop.rows(objective, of=of, samples=samples, rules=rules, extras=extras)
        check_count("factors_every", factors_every)
        check_count("inverses_every", inverses_every)
        if decay != 0 and not (is_positive(decay) and decay < 1):
            raise ValueError(f"decay is a number from 0 to 1, got {decay!r}")
        return cls(objective.net, rows, decay, factors_every, inverses_every)

    def init(self, params: Params) -> KroneckerState:
        """Before the first step."""
        blocks, _ = _blocks(self.net, params)
        factors = tuple(_no_factors(block) for _, block in blocks)
        return KroneckerState(jnp.zeros((), jnp.int32), factors, jax.tree.map(jnp.zeros_like, factors))

    def update(
        self, grads: Params, state: KroneckerState, params: Params, batch: Any, key: Any, damping: Any
    ) -> tuple[Params, KroneckerState]:
        """What becomes of the gradient, with the factors of this step."""

        def average() -> tuple[Factors, ...]:
            new = self._measured(params, batch, key)
            return jax.tree.map(
                lambda old, now: self.decay * old + (1 - self.decay) * now.astype(old.dtype), state.factors, new
            )

        def invert() -> tuple[Factors, ...]:
            return tuple(_inverse(pair, known, jnp.sqrt(damping)) for pair in factors)

        factors = _sometimes(self.factors_every, state.steps, average, state.factors)
        known = 1 - self.decay ** (state.steps // self.factors_every + 1).astype(jnp.result_type(float))
        inverses = _sometimes(self.inverses_every, state.steps, invert, state.inverses)
        blocks, treedef = _blocks(self.net, params)
        entries = zip(blocks, inverses, treedef.flatten_up_to(grads), strict=True)
        moved = treedef.unflatten([_product(block, inverse, grad) for (_, block), inverse, grad in entries])
        return moved, KroneckerState(state.steps + 1, factors, inverses)

    def _measured(self, params: Params, batch: Any, key: Any) -> tuple[Factors, ...]:
        """The factors at these parameters, of this batch alone."""
        found = self.rows(params, batch, key=key, train=True, sample_key=jax.random.fold_in(key, _SAMPLES))
        blocks, treedef = _blocks(self.net, params)
        outers = treedef.flatten_up_to(found.factors)
        return tuple(
            _factors(path, block, dataclasses.replace(found, factors=outer))
            for (path, block), outer in zip(blocks, outers, strict=True)
        )


def _sometimes(every: int, count: jax.Array, new: Callable[[], Any], old: Any) -> Any:
    """`new()` at each `every`-th update, `old` between."""
    return new() if every == 1 else lax.cond(count % every == 0, new, lambda: old)


@dataclasses.dataclass(frozen=True)
class _Parameter:
    """What is known of a parameter before there are numbers.

    Attributes:
        index: its place among the leaves.
        shape: with the axes of the blocks of a `Repeat`, if it lies in one.
        stack: how many axes these are.
    """

    index: int
    shape: tuple[int, ...]
    dtype: Any
    stack: int = 0

    def astype(self, _: Any) -> "_Parameter":
        """Itself: a network that casts its parameters has the same ones."""
        return self

    def of_block(self) -> tuple[int, ...]:
        """The shape of one block's."""
        return self.shape[self.stack :]


def _blocks(net: Layer, params: Params) -> tuple[list[tuple[str, Any]], Any]:
    """(path, block) of each block, and their tree: `_Parameter`s, or {"w", "b"} of these where they are affine."""
    leaves, treedef = jax.tree.flatten(params)
    known = [_Parameter(i, jnp.shape(leaf), jnp.result_type(leaf)) for i, leaf in enumerate(leaves)]
    stacks: dict[int, int] = {}
    _count_repeats(Part(None, None, net, treedef.unflatten(known)), 0, stacks)
    known = [dataclasses.replace(one, stack=stacks.get(one.index, 0)) for one in known]
    with_path, blocks = jax.tree_util.tree_flatten_with_path(treedef.unflatten(known), is_leaf=_is_affine)
    return [(jax.tree_util.keystr(path), block) for path, block in with_path], blocks


def _count_repeats(part: Part, depth: int, stacks: dict[int, int]) -> None:
    """In how many `Repeat`s, one within another, each parameter lies."""
    if isinstance(part.layer, Combinator):
        for inner in part.layer.parts(part.params):
            _count_repeats(inner, depth, stacks)
    elif isinstance(part.layer, Repeat):
        stacks.update({one.index: depth + 1 for one in jax.tree.leaves(part.params)})
        _count_repeats(part.layer.part(part.params), depth + 1, stacks)


def _is_affine(node: Any) -> bool:
    """Whether these are the weights and biases of one layer: a block of their own."""
    if not isinstance(node, dict) or set(node) != {"w", "b"}:
        return False
    w, b = node["w"], node["b"]
    return isinstance(w, _Parameter) and len(w.of_block()) >= 2 and b.of_block() == w.of_block()[1:]


def _no_factors(block: Any) -> Factors:
    """Zeros of the shapes of the block's factors."""
    affine = _is_affine(block)
    parameter = block["w"] if affine else block
    dtype, shape, stack = parameter.dtype, parameter.of_block(), parameter.shape[: parameter.stack]
    if len(shape) < 2:
        return None, jnp.zeros((*stack, *(math.prod(shape),) * 2), dtype)
    left, right = shape[0] + affine, math.prod(shape[1:])
    return jnp.zeros((*stack, left, left), dtype), jnp.zeros((*stack, right, right), dtype)


def _factors(path: str, block: Any, rows: backprop.Rows) -> Factors:
    """The factors of a block with these rows."""
    outer = rows.factors
    if _is_affine(block):
        w = outer["w"]
        if w.activity is not None and not w.transposed and w.shift is None and outer["b"].delta.shape == w.delta.shape:
            a = jnp.concatenate([w.activity, jnp.ones_like(w.activity[..., :1])], axis=-1)
            found = quantities.kronecker_factors(dataclasses.replace(rows, factors=Outer(a, w.delta, blocks=w.blocks)))
            return found.a, found.b
    elif is_outer(outer) and (outer.activity is not None or len(block.of_block()) < 2):
        found = quantities.kronecker_factors(rows)
        if found.transposed and found.a is not None:
            return found.b, found.a
        return found.a, found.b
    raise RuleError(
        f"kfac: the rule of the layer with params{path} gives its examples' gradients as they are, where "
        "Kronecker factors are needed: Rule(fwd, bwd, rows) with rows that returns an Outer with an activity"
    )


def _inverse(factors: Factors, known: jax.Array, damping: jax.Array) -> Factors:
    """(A + pi damping I)^-1 and (B + damping / pi I)^-1; `known` is what averages that began with 0 are divided by."""
    if factors[1].ndim > 2:
        return jax.vmap(lambda one: _inverse(one, known, damping))(factors)
    left, right = (None if factor is None else factor / known.astype(factor.dtype) for factor in factors)
    assert right is not None
    damping = damping.astype(right.dtype)
    if left is None:
        return None, _inverse_of(right, jnp.square(damping))
    sizes = jnp.trace(left) / len(left), jnp.trace(right) / len(right)
    defined = (sizes[0] > 0) & (sizes[1] > 0)  # a layer that is dead has factors of 0
    pi = jnp.where(defined, jnp.sqrt(sizes[0] / jnp.where(defined, sizes[1], 1)), 1)
    return _inverse_of(left, pi * damping), _inverse_of(right, damping / pi)


def _inverse_of(matrix: jax.Array, damping: jax.Array) -> jax.Array:
    damped = at_least_float32(matrix + damping * jnp.eye(len(matrix), dtype=matrix.dtype))
    return cho_solve(cho_factor(damped), jnp.eye(len(matrix), dtype=damped.dtype)).astype(matrix.dtype)


def _bounded(moved: Params, grads: Params, bound: float) -> Params:
    """Scaled down where g . moved, the squared length of `moved` in the metric of the curvature, is over the bound."""
    length: Any = optax.tree.vdot(moved, grads)
    factor = jnp.minimum(1, jnp.sqrt(bound / jnp.maximum(length, jnp.finfo(length.dtype).tiny)))
    return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), moved)


def _product(block: Any, inverse: Factors, grad: Any) -> Any:
    """left^-1 G right^-1, in the block's shape."""
    left, right = inverse
    if right.ndim > 2:
        return jax.vmap(lambda one, of_one: _product(block, one, of_one))(inverse, grad)
    if left is None:
        return (grad.reshape(-1) @ right).reshape(grad.shape)
    if _is_affine(block):
        w, b = grad["w"], grad["b"]
        moved = left @ jnp.concatenate([w.reshape(len(w), -1), b.reshape(1, -1)]) @ right
        return {"w": moved[:-1].reshape(w.shape), "b": moved[-1].reshape(b.shape)}
    return (left @ grad.reshape(len(left), -1) @ right).reshape(grad.shape)
