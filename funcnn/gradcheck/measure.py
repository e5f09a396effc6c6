"""What is measured at a point: the gradients by rules and by autodiff, and what the objective does along directions."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from funcnn.backprop.engine import gradients
from funcnn.backprop.rule import Context, Rule
from funcnn.description import Description
from funcnn.layer import Params
from funcnn.losses import Loss
from funcnn.objective import Objective
from funcnn.wrappers import Cast

# Steps h along a direction, in units of the array's root mean square. The differences' are so small that few kinks lie
# within; the remainder's reach from where curvature is plain to where rounding ends it.
STEPS = (1e-6, 5e-7, 2.5e-7)
TAYLOR_STEPS = (1e-3, 1e-4, 1e-5, 1e-6)
DIRECTIONS = 3  # random directions per array
NUDGE = 1e-2  # how far the point is moved from a kink, likewise


class Measured(NamedTuple):
    """What is measured of one array, before it is judged. One number each, or DIRECTIONS of them."""

    error: Any  # max|g - a| in the array's own dtype
    own_rounding: Any  # max|a - a64|: the error of autodiff itself in that dtype
    scale: Any  # max|a64|
    error64: Any  # max|g64 - a64|
    largest: Any  # the largest scale of all arrays
    norm: Any  # |a64|, Euclidean
    along: Any  # <g64, t>, by direction
    along_autodiff: Any  # <a64, t>
    difference: Any  # the extrapolated central difference
    difference_error: Any  # how much the extrapolation changes from (h, h/2) to (h/2, h/4)
    rounding: Any  # what rounding does to the cost C
    noise: Any  # what it does to the difference
    bend: Any  # second differences over h^2, for STEPS
    bend_noise: Any  # what rounding does to these
    remainder: Any  # Taylor remainders, for TAYLOR_STEPS
    adjoint: Any  # |<J t, c> - <t, J^T c>|
    adjoint_scale: Any  # sum |J t * c| + sum |t * J^T c|


@dataclasses.dataclass(frozen=True)
class InnerProduct(Loss):
    """<c, f> for a network that is checked without a loss: the targets are the cotangent c of its outputs f."""

    def per_example(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return jnp.sum(outputs * targets.astype(outputs.dtype), axis=tuple(range(1, outputs.ndim)))


def _inner_fwd(loss: Loss, c: jax.Array, f: jax.Array, ctx: Context) -> tuple[jax.Array, Any]:
    return loss(f, c), ()


def _inner_bwd(loss: Loss, c: jax.Array, nothing: Any, dv: jax.Array, ctx: Context) -> tuple[None, jax.Array]:
    return None, dv.reshape(dv.shape + (1,) * (c.ndim - 1)) * c.astype(dv.dtype)


INNER = InnerProduct()
INNER_RULES = {InnerProduct: Rule(_inner_fwd, _inner_bwd)}


def paths(params: Params, x: Any) -> dict[str, Any]:
    """{path: array} of everything that has a gradient: the parameters, and the input where it is not of integers."""
    leaves = {
        "/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path) or "params": leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    return leaves | ({"input": x} if jnp.issubdtype(x.dtype, jnp.floating) else {})


def by_rules(program: Any, point: Any) -> dict[str, Any]:
    """The hand-written gradients by path, as they come."""
    objective, rules, train, _ = program
    params, batch, key, extras = point
    grads, dx = gradients(objective, params, batch, key=key, train=train, rules=rules, extras=extras)
    named = paths(grads, batch[0]) if dx is not None else paths(grads, jnp.zeros(0, int))
    return named | ({} if dx is None else {"input": dx})


@functools.partial(jax.jit, static_argnums=0)
def both(program: Any, point: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(g, a): hand-written and automatic gradients by path, in the point's dtype; NaN where g has a wrong shape."""
    objective, _, train, problems = program
    params, (x, *rest), key, _ = point
    if jnp.issubdtype(x.dtype, jnp.floating):
        da = jax.grad(lambda p, a: objective(p, (a, *rest), key=key, train=train), argnums=(0, 1))(params, x)
    else:
        da = jax.grad(lambda p: objective(p, (x, *rest), key=key, train=train))(params), x
    automatic = paths(*da)
    raw = by_rules(program, point)
    by_hand = {p: jnp.full(a.shape, jnp.nan, a.dtype) if p in problems else raw[p] for p, a in automatic.items()}
    return by_hand, automatic


@functools.partial(jax.jit, static_argnums=0)
def measure(program: Any, point: Any, own: Any, directions: jax.Array, c: jax.Array) -> Measured:
    """Everything in float64, at one point, with an axis of arrays in front.

    Args:
        program: (objective, rules, train, paths with a wrong structure).
        point: (params, batch, key, extras).
        own: (g, a), by path, in the arrays' own dtype.
        directions: random numbers (DIRECTIONS, number of all parameters and inputs).
        c: a random cotangent of the network's output, of its shape.
    """
    objective, rules, train, problems = program
    params, (x, *rest), net_key, extras = point
    arrays = paths(params, x)
    g, a = both(program, point)

    def place(values: dict[str, jax.Array]) -> tuple[Params, Any]:
        leaves = [values[path] for path in arrays if path != "input"]  # JAX sorts the keys of values: "10" before "2"
        return jax.tree.unflatten(jax.tree.structure(params), leaves), values.get("input", x)

    def outputs(values: dict[str, jax.Array]) -> jax.Array:
        return objective.net.apply(*place(values), key=net_key, train=train)

    def cost(values: dict[str, jax.Array]) -> jax.Array:
        moved, moved_x = place(values)
        return objective(moved, (moved_x, *rest), key=net_key, train=train)

    # J^T c of the network alone: its gradients under the loss <c, f>, times N, since that takes a mean.
    f = outputs(arrays)
    network = (Objective(objective.net, INNER), rules | INNER_RULES, train, problems)
    pulled = by_rules(network, (params, (x, c * x.shape[0]), net_key, extras))
    pulled = {path: jnp.full(v.shape, jnp.nan) if path in problems else pulled[path] for path, v in arrays.items()}
    terms = jnp.sum(jnp.abs(f * rest[0])) if objective.loss is INNER else 0.0  # of the sum that the cost is

    _, unravel = jax.flatten_util.ravel_pytree(arrays)
    flat_g, flat_a, flat_pulled = (jax.flatten_util.ravel_pytree(tree)[0] for tree in (g, a, pulled))
    owner = jax.flatten_util.ravel_pytree({path: jnp.full(v.shape, i) for i, (path, v) in enumerate(arrays.items())})[0]
    units = jnp.stack([jnp.sqrt(jnp.mean(jnp.square(v))) for v in arrays.values()])
    units = jnp.where(units > 0, units, 1.0)

    def along(which: tuple[jax.Array, jax.Array]) -> dict[str, Any]:
        """One direction t for one array, the others held."""
        number, direction = which
        mine = owner == number
        flat_t = jnp.where(mine, directions[direction], 0)
        t = unravel(flat_t)
        near, far = (jnp.array(steps) * units[number] for steps in (STEPS, TAYLOR_STEPS))
        steps = jnp.concatenate([jnp.zeros(1), near, -near, far])
        values = jax.lax.map(lambda s: cost({path: v + s * t[path] for path, v in arrays.items()}), steps)
        middle, (plus, minus, ahead) = values[0], jnp.split(values[1:], [len(near), 2 * len(near)])
        central = (plus - minus) / (2 * near)
        extrapolated = (4 * central[1:] - central[:-1]) / 3
        jt = jax.jvp(outputs, (arrays,), (t,))[1]

        def inner(gradient: jax.Array) -> jax.Array:  # <gradient, t>; a NaN of another array is not ours
            return jnp.sum(jnp.where(mine, gradient * flat_t, 0))

        slope = inner(flat_g)
        rounding = 50 * jnp.finfo(values.dtype).eps * (jnp.max(jnp.abs(values)) + terms)  # some tens of roundings in C
        return {
            "along": slope,
            "along_autodiff": inner(flat_a),
            "difference": extrapolated[0],
            "difference_error": jnp.abs(extrapolated[1] - extrapolated[0]),
            "rounding": rounding,
            "noise": rounding / near[-1],
            "bend": (plus - 2 * middle + minus) / near**2,
            "bend_noise": 4 * rounding / near**2,
            "remainder": jnp.abs(ahead - middle - far * slope),
            "adjoint": jnp.abs(jnp.vdot(jt, c) - inner(flat_pulled)),
            "adjoint_scale": jnp.sum(jnp.abs(jt * c)) + jnp.sum(jnp.where(mine, jnp.abs(flat_pulled * flat_t), 0)),
        }

    pairs = jnp.meshgrid(jnp.arange(len(arrays)), jnp.arange(DIRECTIONS), indexing="ij")
    directional = jax.lax.map(along, tuple(p.ravel() for p in pairs))
    directional = {name: v.reshape(len(arrays), DIRECTIONS, *v.shape[1:]) for name, v in directional.items()}
    return Measured(
        error=jnp.stack([jnp.max(jnp.abs(own[0][path] - own[1][path])) for path in arrays]),
        own_rounding=jnp.stack([jnp.max(jnp.abs(own[1][path] - a[path])) for path in arrays]),
        scale=jnp.stack([jnp.max(jnp.abs(a[path])) for path in arrays]),
        error64=jnp.stack([jnp.max(jnp.abs(g[path] - a[path])) for path in arrays]),
        largest=jnp.max(jnp.stack([jnp.max(jnp.abs(a[path])) for path in arrays])) * jnp.ones(len(arrays)),
        norm=jnp.stack([jnp.sqrt(jnp.sum(jnp.square(a[path]))) for path in arrays]),
        **directional,
    )


def nudged(point: Any, rng: np.random.Generator) -> Any:
    """The point with every parameter and floating input moved at random by NUDGE of its array's root mean square."""

    def move(array: jax.Array) -> jax.Array:
        rms = float(jnp.sqrt(jnp.mean(jnp.square(array))))
        return array + NUDGE * (rms or 1.0) * rng.standard_normal(array.shape)

    params, (x, *rest), net_key, extras = point
    moved_x = move(x) if jnp.issubdtype(x.dtype, jnp.floating) else x
    return jax.tree.map(move, params), (moved_x, *rest), net_key, extras


def per_array(measured: Measured) -> list[Measured]:
    """What was measured, array by array, in NumPy."""
    fields = jax.device_get(measured)
    return [Measured(*values) for values in zip(*fields, strict=True)]


def has_kink(m: Measured) -> bool:
    """Whether the function has a kink or a jump within the largest of STEPS from the point, along some direction.

    Where it is smooth, the second difference over h^2 is the same for h, h/2 and h/4; at a kink it doubles each time,
    at a jump it grows by four.
    """
    largest = np.max(np.abs(m.bend), axis=1, keepdims=True)
    uneven = np.abs(m.bend - m.bend[:, :1]) > 0.1 * largest + m.bend_noise + m.bend_noise[:, :1]
    return bool(uneven.any())


def to_float64(tree: Any) -> Any:
    """The tree with its floating arrays in float64, keys and integers as they are."""

    def convert(leaf: Any) -> Any:
        is_float = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(leaf).astype(jnp.float64) if is_float else leaf

    return jax.tree.map(convert, tree)


def without_casts(description: Any) -> Any:
    """The description with each `Cast` replaced by what it casts: the function that a low precision approximates.

    Differences and the adjoint law in float64 say something of that function only.
    """
    if isinstance(description, Cast):
        return without_casts(description.layer)
    if isinstance(description, tuple):
        return tuple(map(without_casts, description))
    if not isinstance(description, Description):
        return description
    held = {field.name: getattr(description, field.name) for field in dataclasses.fields(description)}
    exact = {name: without_casts(value) for name, value in held.items()}
    return description if exact == held else description.replace(**exact)
