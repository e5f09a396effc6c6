"""Flax linen: a TrainState and a jitted step, as in its getting-started guide."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.loops import batches
from experiments.benchmarks.loops.worker import Loop, serve
from experiments.benchmarks.networks import LEARNING_RATE, Network

# Not a dependency, and so not an import that type checkers look up, as in the other scripts.
nn: Any = importlib.import_module("flax.linen")
train_state: Any = importlib.import_module("flax.training.train_state")


class Mlp(nn.Module):
    """Dense layers with relu between them."""

    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.sizes[:-1]:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.sizes[-1])(x)


def make(network: Network, x: np.ndarray, y: np.ndarray) -> Loop:
    """A jitted step for each batch."""
    model = Mlp(network.sizes[1:])
    params = model.init(jax.random.key(0), jnp.ones((1, network.sizes[0])))["params"]
    optimizer = optax.adam(LEARNING_RATE)

    def start() -> Any:
        return train_state.TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)

    @jax.jit
    def train_step(state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        def loss_fn(params: Any) -> tuple[jax.Array, jax.Array]:
            return batches.loss_and_metric(state.apply_fn({"params": params}, x), y)

        (loss, metric), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads), (loss, metric)

    return Loop(start, lambda state, epochs: batches.train(train_step, state, network, x, y, epochs))


if __name__ == "__main__":
    serve(make)
