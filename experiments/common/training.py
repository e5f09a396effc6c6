"""Trainings that several experiments have in common: of images, and of several states side by side."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import funcnn as fnn

State = fnn.train.State
Step = Callable[[State, Any], tuple[State, dict[str, jax.Array]]]


def fit_images(
    objective: fnn.Objective,
    optimizer: Any,
    data: fnn.data.Dataset,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    **options: Any,
) -> tuple[State, fnn.train.History]:
    """One training on images, bytes on the device, whose history has loss and accuracy of the test images too."""
    init_key, key = jax.random.split(jax.random.key(seed))
    return fnn.train.fit(
        objective,
        optimizer,
        objective.net.init(init_key, (data.x_train[0].size,)),
        (data.x_train, data.y_train),
        epochs=epochs,
        batch_size=batch_size,
        key=key,
        valid=(data.x_test, data.y_test),
        valid_batch_size=1000,
        gradient="backprop",
        metrics={"accuracy": fnn.train.accuracy},
        prepare=fnn.data.Pixels(data.x_max),
        progress=None,
        **options,
    )


def without_test_examples(data: fnn.data.Dataset) -> fnn.data.Dataset:
    """The last sixth of the training examples in the place of the test examples."""
    n = len(data.x_train) * 5 // 6
    return dataclasses.replace(
        data, x_train=data.x_train[:n], y_train=data.y_train[:n], x_test=data.x_train[n:], y_test=data.y_train[n:]
    )


def parameters(net: fnn.Layer, inputs: int) -> int:
    """How many numbers a network for examples of so many inputs has."""
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), (inputs,)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def stepper(step: Step, state: State, batch: Any) -> Callable[[], State]:
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
    steps: Mapping[str, Step],
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
            states[name], metrics = step(states[name], batch)
            losses[name] = metrics["loss"]
        for name, loss in losses.items():
            rows[name].append((loss, *_apart(states[name].params, states[reference].params)))
    return states, {name: Curve(*np.array(jax.device_get(row), np.float64).T) for name, row in rows.items()}


@jax.jit
def _apart(p: Any, q: Any) -> tuple[jax.Array, jax.Array]:
    differences = [jnp.ravel(a - b) for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(q), strict=True)]
    squares = sum(jnp.sum(jnp.square(d)) for d in differences)
    size = sum(jnp.sum(jnp.square(b)) for b in jax.tree.leaves(q))
    return jnp.sqrt(squares / size), jnp.max(jnp.stack([jnp.max(jnp.abs(d)) for d in differences]))
