"""Bare JAX: a hand-rolled scan over permuted rows, with nothing around it. The floor.

A call of the compiled program is an epoch or, if the command line says "run", a whole training.
"""

import functools
import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.loops.batches import loss_and_metric
from experiments.benchmarks.loops.worker import Loop, serve
from experiments.benchmarks.networks import LEARNING_RATE, Network


def make(network: Network, x: np.ndarray, y: np.ndarray, call: str) -> Loop:
    """Epochs that are scans, in a jitted function that uses up the state."""
    images, answers = jnp.asarray(x), jnp.asarray(y)
    optimizer = optax.adam(LEARNING_RATE)

    def objective(params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        *hidden, last = params
        for w, b in hidden:
            x = jax.nn.relu(x @ w + b)
        return loss_and_metric(x @ last[0] + last[1], y)

    def epoch(state: Any, images: jax.Array, answers: jax.Array) -> tuple[Any, Any]:
        def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
            params, adam, total, correct = carry
            value_and_grad = jax.value_and_grad(objective, has_aux=True)
            (loss, metric), grads = value_and_grad(params, images[rows], answers[rows])
            updates, adam = optimizer.update(grads, adam)
            return (optax.apply_updates(params, updates), adam, total + loss, correct + metric), None

        params, adam, key = state
        key, draw = jax.random.split(key)
        order = jax.random.permutation(draw, len(images)).reshape(network.steps, network.batch)
        (params, adam, total, correct), _ = jax.lax.scan(step, (params, adam, 0.0, 0.0), order)
        return (params, adam, key), (total / network.steps, correct / network.steps)

    @functools.partial(jax.jit, donate_argnums=0)
    def advance(state: Any, images: jax.Array, answers: jax.Array, epochs: int) -> tuple[Any, Any]:
        if call == "epoch":
            return epoch(state, images, answers)
        begin = state, (jnp.zeros(()), jnp.zeros(()))
        return jax.lax.fori_loop(0, epochs, lambda _, carry: epoch(carry[0], images, answers), begin)

    shapes, he = [*itertools.pairwise(network.sizes)], jax.nn.initializers.he_normal()
    key, *keys = jax.random.split(jax.random.key(0), len(network.sizes))
    initial = [(he(key, shape), jnp.zeros(shape[1])) for key, shape in zip(keys, shapes, strict=True)]

    def start() -> Any:
        params, draw = jax.tree.map(jnp.copy, (initial, key))
        return params, optimizer.init(params), draw

    def train(state: Any, epochs: int) -> tuple[float, float]:
        values: Any = (float("nan"),) * 2
        for _ in range(epochs if call == "epoch" else 1):
            state, values = advance(state, images, answers, epochs)
        jax.block_until_ready(state)
        return jax.device_get(values)

    return Loop(start, train)


def matmul(n: int = 2048, times: int = 3) -> dict[str, float]:
    """The machine's float32 rate: the best of a few large products, as what disturbs one only slows it."""
    a, b = jax.random.normal(jax.random.key(0), (2, n, n))
    product = jax.jit(jnp.matmul)
    product(a, b).block_until_ready()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        product(a, b).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return {"flops_per_s": 2 * n**3 / min(seconds)}


if __name__ == "__main__":
    serve(make, matmul=matmul)
