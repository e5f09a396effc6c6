"""Keras on JAX: `compile` and `fit`."""

import importlib
import os
from typing import Any

import numpy as np

from experiments.benchmarks.loops.worker import Loop, serve
from experiments.benchmarks.networks import LEARNING_RATE, Network

os.environ["KERAS_BACKEND"] = "jax"
keras: Any = importlib.import_module("keras")


def make(network: Network, x: np.ndarray, y: np.ndarray) -> Loop:
    """Each training is a call of `model.fit`; before it, weights and optimizer get their first values again."""
    keras.utils.set_random_seed(0)
    *hidden, outputs = network.sizes[1:]
    dense = keras.layers.Dense
    model = keras.Sequential(
        [keras.Input(network.sizes[:1]), *(dense(width, activation="relu") for width in hidden), dense(outputs)]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(LEARNING_RATE),
        loss="mse" if network.regression else keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[] if network.regression else ["accuracy"],
        jit_compile=True,
    )
    model.optimizer.build(model.trainable_variables)
    variables = [*model.trainable_variables, *model.optimizer.variables]
    initial = [variable.numpy() for variable in variables]

    def start() -> None:
        for variable, value in zip(variables, initial, strict=True):
            variable.assign(value)

    def train(_: None, epochs: int) -> tuple[float, float]:
        history = model.fit(x, y, batch_size=network.batch, epochs=epochs, shuffle=True, verbose=0).history
        return history["loss"][-1], history.get("accuracy", history["loss"])[-1]

    return Loop(start, train)


if __name__ == "__main__":
    serve(make)
