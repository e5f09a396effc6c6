"""funcnn: `fit`, with the gradient that the command line names."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcnn as fnn
from experiments.benchmarks.loops.worker import Loop, serve
from experiments.benchmarks.networks import LEARNING_RATE, Network
from funcnn.layer import Params


def make(network: Network, x: np.ndarray, y: np.ndarray, gradient: str) -> Loop:
    """Each training is a call of `fit`, whose own start is timed with it."""
    *hidden, outputs = network.sizes[1:]
    net = fnn.Serial(*(layer for width in hidden for layer in (fnn.Dense(width), fnn.Relu())), fnn.Dense(outputs))
    loss = fnn.losses.mse if network.regression else fnn.losses.softmax_cross_entropy
    metrics = {"metric": fnn.losses.mse if network.regression else fnn.train.accuracy}
    objective, optimizer = fnn.Objective(net, loss), optax.adam(LEARNING_RATE)
    params = net.init(jax.random.key(0), network.sizes[:1])
    data = jnp.asarray(x), jnp.asarray(y)

    def train(params: Params, epochs: int) -> tuple[float, float]:
        state, history = fnn.train.fit(
            objective,
            optimizer,
            params,
            data,
            epochs=epochs,
            batch_size=network.batch,
            key=jax.random.key(1),
            gradient=gradient,
            metrics=metrics,
            progress=None,
        )
        jax.block_until_ready(state.params)
        return float(history["loss"][-1]), float(history["metric"][-1])

    return Loop(lambda: params, train)


if __name__ == "__main__":
    serve(make)
