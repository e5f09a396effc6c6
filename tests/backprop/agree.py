"""What "the same gradient" means here, and what the comparisons are made of."""

from collections.abc import Callable, Iterable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

import funcnn as fnn
from funcnn import backprop
from funcnn.backprop import Rules
from tests.problems import draw_params

# The largest difference within a leaf, divided by the leaf's largest number.
TOLERANCES = {
    # Two orders of the same sums of at most some hundred terms, through at most ten layers: about 100 roundings of
    # 1e-16 were seen, and 1e-12 leaves a factor of 100.
    "float64": 1e-12,
    # The same number of roundings, of 6e-8: about 10 of them were seen. A rule off by 0.05 % is 50 times that.
    "float32": 1e-5,
    # Central differences in float64 with a step of 1e-5: their own error is the step squared, times a third derivative
    # of the order of ten, plus a rounding of 1e-16 divided by the step.
    "difference": 1e-8,
}
STEP = 1e-5  # of the central differences


def assert_agree(got: Any, want: Any, within: float) -> None:
    """Raises unless the trees have one structure and their leaves one shape, one dtype, and numbers that agree.

    Both sides are finite, and a leaf of zeros agrees with exact zeros only.
    """
    chex.assert_trees_all_equal_structs(got, want)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
    for (path, g), w in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        where = jax.tree_util.keystr(path)
        if w.dtype == jax.dtypes.float0:
            continue
        assert np.isfinite(g).all() and np.isfinite(w).all(), where
        if w.size:
            gap, size = (float(np.max(np.abs(a))) for a in (np.asarray(g) - np.asarray(w), np.asarray(w)))
            # Below this the dtype has no relative accuracy left to compare.
            floor = float(jnp.finfo(jnp.result_type(w)).tiny / jnp.finfo(jnp.result_type(w)).eps)
            assert gap <= within * max(size, floor), f"{where}: {gap / max(size, floor):.1e} of {size:.1e}"


def draw_like(rng: np.random.Generator, tree: Any) -> Any:
    """Normal random numbers in the structure, shapes and dtypes of a tree."""
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), tree)


def draw_layer(rng: np.random.Generator, layer: fnn.Layer, in_shape: tuple[int, ...], *batch: int) -> Any:
    """(params, x, dy) for a layer, in the default dtype, all normal."""
    params = draw_params(jax.random.key(rng.integers(2**31)), layer, in_shape)
    x, dy = (rng.normal(size=(*batch, *shape)) for shape in (in_shape, layer.out_shape(in_shape)))
    return params, jnp.asarray(x), jnp.asarray(dy)


def tolerance(objective: fnn.Objective, dtype: str) -> float:
    """For a network run in `dtype`, parts of which may be cast to float32."""
    return TOLERANCES["float32" if "Cast" in repr(objective) else dtype]


def inner(a: Any, b: Any) -> jax.Array:
    """<a, b>, over all leaves."""
    products = [jnp.sum(u * v) for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    return sum(products, start=jnp.zeros(()))


def moved(tree: Any, step: float, direction: Any) -> Any:
    """tree + step * direction."""
    return jax.tree.map(lambda a, d: a + step * d, tree, direction)


def layer_gradients(
    layer: fnn.Layer, key: jax.Array | None, train: bool, rules: Rules = backprop.RULES
) -> Callable[..., Any]:
    """(params, x, dy) -> y, dparams and dx: by the rules, and by autodiff."""

    def run(params: Any, x: jax.Array, dy: jax.Array) -> Any:
        y, pullback = backprop.vjp(layer, params, x, key=key, train=train, rules=rules)
        y_auto, pullback_auto = jax.vjp(lambda p, a: layer.apply(p, a, key=key, train=train), params, x)
        return (y, pullback(dy)), (y_auto, pullback_auto(dy))

    return run


def objective_gradients(objective: fnn.Objective, **options: Any) -> Callable[..., Any]:
    """(params, batch, ...) -> value and gradients: by the rules, and by autodiff."""

    def run(*args: Any, **kwargs: Any) -> Any:
        by_hand = backprop.value_and_grad(objective, **options)(*args, **kwargs)
        return by_hand, jax.value_and_grad(objective, **options)(*args, **kwargs)

    return run


def jaxprs(jaxpr: Any) -> Iterable[Any]:
    """A jaxpr and all that are inside it."""
    yield jaxpr
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for held in value if isinstance(value, tuple | list) else (value,):
                if hasattr(found := getattr(held, "jaxpr", held), "eqns"):
                    yield from jaxprs(found)


def count(primitive: str, function: Callable[..., Any], *args: Any) -> int:
    """How many operations of one kind a function's program has."""
    program = jax.make_jaxpr(function)(*args).jaxpr
    return sum(equation.primitive.name == primitive for inside in jaxprs(program) for equation in inside.eqns)
