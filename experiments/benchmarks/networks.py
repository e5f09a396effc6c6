"""The networks that every library trains, and their examples. It imports nothing but NumPy: the workers' clocks run."""

import itertools
from typing import NamedTuple

import numpy as np

LEARNING_RATE = 1e-3


class Network(NamedTuple):
    """A relu network, the batches it is trained on, and what is asked of `fit` there."""

    sizes: tuple[int, ...]  # features, hidden units, outputs
    batch: int
    steps: int  # batches an epoch
    peers_mark: float  # steps/s of `fit` over those of the best peer, at least
    scan_mark: float  # over those of the bare scan
    regression: bool = False  # mean squared error instead of softmax cross-entropy
    large: bool = False  # the machine's matrix products are what limits it, so that their rate is the measure

    @property
    def name(self) -> str:
        """Its sizes, such as 64-32-10."""
        return "-".join(map(str, self.sizes))

    @property
    def flops(self) -> int:
        """Of the matrix products of a step: forward, dw, and dx but in the first layer, whose dx nobody needs."""
        first, *others = (2 * self.batch * n_in * n_out for n_in, n_out in itertools.pairwise(self.sizes))
        return 2 * first + 3 * sum(others)

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Random images x (N, D) in [0, 1), and noisy answers of a linear teacher: y (N,) int32 or (N, K) float32."""
        rng = np.random.default_rng(0)
        n, features, outputs = self.batch * self.steps, self.sizes[0], self.sizes[-1]
        x = rng.random((n, features), np.float32)
        answers = (x - 0.5) @ rng.standard_normal((features, outputs), np.float32) * (12 / features) ** 0.5
        answers += 0.3 * rng.standard_normal((n, outputs), np.float32)
        return x, answers if self.regression else answers.argmax(1).astype(np.int32)


NETWORKS = {
    network.name: network
    for network in (
        Network((64, 32, 10), 32, 42, 2.5, 0.95),  # the size of scikit-learn's digits
        Network((784, 128, 10), 128, 100, 1.4, 0.95),
        Network((784, 512, 512, 10), 128, 100, 1.1, 0.97, large=True),
        Network((1024, 2048, 2048, 1024), 512, 4, 1.0, 0.98, regression=True, large=True),
    )
}
