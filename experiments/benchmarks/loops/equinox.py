"""Equinox: a filtered, jitted step, as in its MNIST example."""

import importlib
from typing import Any

import jax
import numpy as np
import optax

from experiments.benchmarks.loops import batches
from experiments.benchmarks.loops.worker import Loop, serve
from experiments.benchmarks.networks import LEARNING_RATE, Network

eqx: Any = importlib.import_module("equinox")


def make(network: Network, x: np.ndarray, y: np.ndarray) -> Loop:
    """A jitted step for each batch."""
    features, *hidden, outputs = network.sizes
    initial = eqx.nn.MLP(features, outputs, hidden[0], len(hidden), jax.nn.relu, key=jax.random.key(0))
    optimizer = optax.adam(LEARNING_RATE)

    def start() -> Any:
        return initial, optimizer.init(eqx.filter(initial, eqx.is_array))

    def loss_fn(model: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return batches.loss_and_metric(jax.vmap(model)(x), y)

    @eqx.filter_jit
    def make_step(state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        model, adam = state
        (loss, metric), grads = eqx.filter_value_and_grad(loss_fn, has_aux=True)(model, x, y)
        updates, adam = optimizer.update(grads, adam, eqx.filter(model, eqx.is_array))
        return (eqx.apply_updates(model, updates), adam), (loss, metric)

    return Loop(start, lambda state, epochs: batches.train(make_step, state, network, x, y, epochs))


if __name__ == "__main__":
    serve(make)
