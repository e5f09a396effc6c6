"""Scikit-learn: `MLPClassifier.fit` (`MLPRegressor.fit`), which computes the loss and no other metric."""

import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor

from experiments.benchmarks.loops.worker import Loop, serve
from experiments.benchmarks.networks import LEARNING_RATE, Network


def make(network: Network, x: np.ndarray, y: np.ndarray) -> Loop:
    """Each training is one call of `fit` that never stops early."""
    warnings.simplefilter("ignore", ConvergenceWarning)  # it stops where it is told to

    def start() -> Any:
        return MLPRegressor if network.regression else MLPClassifier

    def train(kind: Any, epochs: int) -> tuple[float, float]:
        model = kind(
            hidden_layer_sizes=network.sizes[1:-1],
            solver="adam",
            alpha=0.0,
            batch_size=network.batch,
            learning_rate_init=LEARNING_RATE,
            max_iter=epochs,
            n_iter_no_change=epochs + 1,
            random_state=0,
        )
        model.fit(x, y)
        loss = model.loss_ * (2 if network.regression else 1)  # it halves squares
        return loss, loss if network.regression else float("nan")

    return Loop(start, train)


if __name__ == "__main__":
    serve(make)
