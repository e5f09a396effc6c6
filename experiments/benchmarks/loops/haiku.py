"""Haiku: a transformed function and a jitted update, as in its MNIST example."""

import importlib
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.benchmarks.loops import batches
from experiments.benchmarks.loops.worker import Loop, serve
from experiments.benchmarks.networks import LEARNING_RATE, Network

hk: Any = importlib.import_module("haiku")


class TrainingState(NamedTuple):
    """What an update changes."""

    params: Any
    opt_state: Any


def make(network: Network, x: np.ndarray, y: np.ndarray) -> Loop:
    """A jitted update for each batch."""

    def forward(x: jax.Array) -> jax.Array:
        return hk.nets.MLP(network.sizes[1:])(x)

    net = hk.without_apply_rng(hk.transform(forward))
    params = net.init(jax.random.key(0), x[:1])
    optimizer = optax.adam(LEARNING_RATE)

    def start() -> TrainingState:
        return TrainingState(params, optimizer.init(params))

    def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return batches.loss_and_metric(net.apply(params, x), y)

    @jax.jit
    def update(state: TrainingState, x: jax.Array, y: jax.Array) -> tuple[TrainingState, Any]:
        (loss, metric), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, x, y)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        return TrainingState(optax.apply_updates(state.params, updates), opt_state), (loss, metric)

    return Loop(start, lambda state, epochs: batches.train(update, state, network, x, y, epochs))


if __name__ == "__main__":
    serve(make)
