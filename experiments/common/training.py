"""The jitted training step, made from an objective, an optimizer and a gradient function; several trainings in step."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcnn as fnn

Gradient = Callable[[fnn.Objective], Callable[..., Any]]  # jax.value_and_grad, or fnn.backprop.value_and_grad


class State(NamedTuple):
    """What a step changes."""

    params: Any
    optimizer: Any
    steps: jax.Array  # taken so far
    key: jax.Array  # for dropout; folded with `steps`, so that each step draws other numbers


def start(optimizer: optax.GradientTransformation, params: Any, key: jax.Array) -> State:
    """The state before the first step. It holds copies, so that it can be donated."""
    params, key = jax.tree.map(jnp.copy, (params, key))
    return State(params, optimizer.init(params), jnp.zeros((), jnp.int32), key)


def make_step(objective: fnn.Objective, optimizer: optax.GradientTransformation, gradient: Gradient) -> Any:
    """A jitted `(state, batch) -> (state, loss)`, which uses up the state that it is given."""
    value_and_grad = gradient(objective)

    def step(state: State, batch: Any) -> tuple[State, jax.Array]:
        key = jax.random.fold_in(state.key, state.steps)
        loss, grads = value_and_grad(state.params, batch, key=key, train=True)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        return State(params, optimizer_state, state.steps + 1, state.key), loss

    return jax.jit(step, donate_argnums=0)


def stepper(step: Callable[[State, Any], tuple[State, jax.Array]], state: State, batch: Any) -> Callable[[], State]:
    """A function without arguments that takes one more step each time, always on the same batch."""

    def take() -> State:
        nonlocal state
        state, _ = step(state, batch)
        return state

    return take


class Curve(NamedTuple):
    """One training, step by step (S steps), and how far it was from the reference training."""

    loss: np.ndarray  # (S,)
    apart: np.ndarray  # (S,) |p - q| / |q| over all parameters together, q the reference's
    apart_max: np.ndarray  # (S,) the largest |p_i - q_i|


def train_together(
    steps: Mapping[str, Callable[[State, Any], tuple[State, jax.Array]]],
    states: Mapping[str, State],
    batches: Iterable[Any],
    reference: str,
) -> tuple[dict[str, State], dict[str, Curve]]:
    """Trains several states side by side, each with its own step, on the same batches."""
    states = dict(states)
    rows: dict[str, list[Any]] = {name: [] for name in steps}
    for batch in batches:
        losses = {}
        for name, step in steps.items():
            states[name], losses[name] = step(states[name], batch)
        for name, loss in losses.items():
            rows[name].append((loss, *_apart(states[name].params, states[reference].params)))
    return states, {name: Curve(*np.array(jax.device_get(row), np.float64).T) for name, row in rows.items()}


@jax.jit
def _apart(p: Any, q: Any) -> tuple[jax.Array, jax.Array]:
    differences = [jnp.ravel(a - b) for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(q), strict=True)]
    squares = sum(jnp.sum(jnp.square(d)) for d in differences)
    size = sum(jnp.sum(jnp.square(b)) for b in jax.tree.leaves(q))
    return jnp.sqrt(squares / size), jnp.max(jnp.stack([jnp.max(jnp.abs(d)) for d in differences]))
