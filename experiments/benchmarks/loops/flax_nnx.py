"""Flax nnx: model, optimizer and metrics change in a jitted step, cached as its performance guide advises."""

import importlib
import itertools
from typing import Any

import jax
import numpy as np
import optax

from experiments.benchmarks.loops import batches
from experiments.benchmarks.loops.worker import Loop, serve
from experiments.benchmarks.networks import LEARNING_RATE, Network

nnx: Any = importlib.import_module("flax.nnx")


class Mlp(nnx.Module):
    """Dense layers with relu between them."""

    def __init__(self, sizes: tuple[int, ...], rngs: Any):
        self.layers = nnx.List([nnx.Linear(*shape, rngs=rngs) for shape in itertools.pairwise(sizes)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


def make(network: Network, x: np.ndarray, y: np.ndarray) -> Loop:
    """A jitted step for each batch; the metrics are averaged on the device."""
    model = Mlp(network.sizes, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(LEARNING_RATE), wrt=nnx.Param)
    metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"), metric=nnx.metrics.Average("metric"))
    initial = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state((model, optimizer))))

    @nnx.jit(graph=True, graph_updates=True)
    def train_step(model: Any, optimizer: Any, metrics: Any, x: jax.Array, y: jax.Array) -> None:
        def loss_fn(model: Any) -> tuple[jax.Array, jax.Array]:
            return batches.loss_and_metric(model(x), y)

        (loss, metric), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model)
        metrics.update(loss=loss, metric=metric)
        optimizer.update(model, grads)

    with nnx.set_graph_mode(True), nnx.set_graph_updates(True):  # what `cached_partial` needs
        cached_step = nnx.cached_partial(train_step, model, optimizer, metrics)  # three times as fast

    def start() -> None:
        nnx.update((model, optimizer), jax.tree.map(jax.numpy.asarray, initial))
        metrics.reset()

    def train(state: None, epochs: int) -> tuple[float, float]:
        rng, values = np.random.default_rng(0), {}
        for _ in range(epochs):
            order = rng.permutation(len(x))
            for i in range(network.steps):
                rows = order[i * network.batch : (i + 1) * network.batch]
                cached_step(x[rows], y[rows])
            values = jax.device_get(metrics.compute())
            metrics.reset()
        jax.block_until_ready(nnx.state((model, optimizer)))
        return values["loss"], values["metric"]

    return Loop(start, train)


if __name__ == "__main__":
    serve(make)
