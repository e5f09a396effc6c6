"""What the loops of the JAX libraries share: loss and metric, and an epoch of jitted steps called from Python."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.networks import Network


def loss_and_metric(outputs: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy and accuracy for labels y (N,), the mean squared error twice for targets y (N, K)."""
    if y.ndim == 2:
        loss = jnp.mean((outputs - y) ** 2)
        return loss, loss
    loss = optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()
    return loss, jnp.mean(outputs.argmax(1) == y)


def train(
    step: Callable[[Any, np.ndarray, np.ndarray], tuple[Any, Any]],
    state: Any,
    network: Network,
    x: np.ndarray,
    y: np.ndarray,
    epochs: int,
) -> tuple[float, float]:
    """Shuffles on the host and calls `step(state, x, y) -> (state, (loss, metric))`; waits once an epoch."""
    rng = np.random.default_rng(0)
    loss = metric = float("nan")
    for _ in range(epochs):
        order, values = rng.permutation(len(x)), []
        for i in range(network.steps):
            rows = order[i * network.batch : (i + 1) * network.batch]
            state, value = step(state, x[rows], y[rows])
            values.append(value)
        loss, metric = np.mean(jax.device_get(values), axis=0)
    jax.block_until_ready(state)
    return loss, metric
