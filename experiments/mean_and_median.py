"""Squared error learns the conditional mean, absolute error the conditional median, and likelihoods the scale too.

Targets have skewed noise, whose mean and median are known in closed form: t = sin(2 x) + s(x) e, with e exponential.
One network is trained by four losses, and its outputs are compared with the curves.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcnn as fnn
from experiments.common.claims import Check, Experiment, Options, spread
from experiments.common.figure import BLUE, GRAY, GREEN, VERMILION, figure

SQUARED, ABSOLUTE, GAUSSIAN, LAPLACE = "squared error", "absolute error", "Gaussian likelihood", "Laplace likelihood"
CLOSE = 0.2  # of the distance between mean and median, root mean squares over x


def learned_laplace(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """|f - t| / b + log 2 b, with f and log b the two outputs (N,)."""
    f, log_b = outputs[:, 0], outputs[:, 1]
    return jnp.abs(f - targets[:, 0]) * jnp.exp(-log_b) + log_b + np.log(2)


LOSSES = {  # and how many outputs the network has
    SQUARED: (fnn.losses.squared_error, 1),
    ABSOLUTE: (fnn.losses.mae, 1),
    GAUSSIAN: (fnn.losses.gaussian_nll(variance="learned"), 2),
    LAPLACE: (learned_laplace, 2),
}


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """One network by four losses, on data with skewed noise."""

    examples: int = 20000
    """Drawn anew for each seed."""
    width: int = 32
    """Of both hidden layers."""
    epochs: int = 60
    """Times to go through the examples."""
    learning_rate: float = 3e-3
    """Adam's, falling to 0 by a cosine."""


def scale(x: Any) -> Any:
    """s(x), of the exponential noise."""
    return 0.5 + 0.4 * np.sin(3 * x + 1)


def curves(x: np.ndarray) -> dict[str, np.ndarray]:
    """What there is to learn, in closed form: an exponential e has mean 1, median log 2, deviations 1 and log 2."""
    return {
        "mean": np.sin(2 * x) + scale(x),
        "median": np.sin(2 * x) + scale(x) * np.log(2),
        "standard deviation": scale(x),
        "mean distance from the median": scale(x) * np.log(2),
    }


def network(width: int, outputs: int) -> fnn.Serial:
    """Two hidden layers of tanh units."""
    return fnn.Serial(fnn.Dense(width), fnn.Tanh(), fnn.Dense(width), fnn.Tanh(), fnn.Dense(outputs))


def measure(config: Config) -> dict[str, Any]:
    """What each loss has learned, for each seed, on a grid."""
    grid = np.linspace(-1.9, 1.9, 191)
    learned: dict[str, dict[str, Any]] = {name: {"center": [], "spread": []} for name in LOSSES}
    sample = None
    for seed in range(config.seeds):
        x, t = examples(config.examples, seed)
        sample = (x[:600].ravel(), t[:600].ravel()) if sample is None else sample
        for name, (loss, outputs) in LOSSES.items():
            made = train(config, loss, outputs, (x, t), seed, grid)
            learned[name]["center"].append(made[:, 0])
            if outputs == 2:
                learned[name]["spread"].append(np.exp(made[:, 1] / (2 if name == GAUSSIAN else 1)))
    assert sample is not None
    return {"grid": grid, "learned": learned, "sample": sample}


def examples(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """x (N, 1), uniform, and t (N, 1)."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, (n, 1))
    return x.astype(np.float32), (np.sin(2 * x) + scale(x) * rng.exponential(size=(n, 1))).astype(np.float32)


def train(config: Config, loss: Any, outputs: int, data: Any, seed: int, grid: np.ndarray) -> np.ndarray:
    """The trained network's outputs on the grid (P, outputs)."""
    net = network(config.width, outputs)
    init_key, key = jax.random.split(jax.random.key(seed))
    steps = config.epochs * -(-config.examples // 256)
    state, _ = fnn.train.fit(
        fnn.Objective(net, loss), optax.adam(optax.cosine_decay_schedule(config.learning_rate, steps)),
        net.init(init_key, (1,)), data, epochs=config.epochs, batch_size=256, key=key, progress=None,
    )  # fmt: skip
    return np.asarray(net.apply(state.params, jnp.asarray(grid, jnp.float32)[:, None]))


def distance(a: Any, b: Any) -> np.ndarray:
    """The root mean square over x, for each seed."""
    return np.sqrt(np.mean(np.square(np.array(a) - np.array(b)), axis=-1))


def judge(numbers: dict[str, Any]) -> list[Check]:
    """Each loss has learned its own curve, to a part of the distance between the two."""
    truth = curves(np.array(numbers["grid"]))
    unit = float(distance(truth["mean"], truth["median"]))

    def check(loss: str, what: str, other: str, text: str) -> Check:
        found = np.array(numbers["learned"][loss]["center"])
        near, far = distance(found, truth[what]) / unit, distance(found, truth[other]) / unit
        return Check(
            f"{text} learns the conditional {what}: within {CLOSE:g} of the distance between mean and median",
            f"{spread(near)} from the {what}, {spread(far)} from the {other}",
            bool(near.mean() <= CLOSE),
        )

    def scale_check(loss: str, what: str) -> Check:
        near = distance(numbers["learned"][loss]["spread"], truth[what]) / unit
        return Check(
            f"The {loss} with a learned scale learns the {what}: within {CLOSE:g} of that distance",
            f"{spread(near)} from it",
            bool(near.mean() <= CLOSE),
        )

    return [
        check(SQUARED, "mean", "median", "Squared error"),
        check(ABSOLUTE, "median", "mean", "Absolute error"),
        scale_check(GAUSSIAN, "standard deviation"),
        scale_check(LAPLACE, "mean distance from the median"),
    ]


def draw(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """Left the data and what two losses have learned; right the scales of the two likelihoods."""
    x = np.array(numbers["grid"])
    truth = curves(x)
    with figure(path, 11, 4.5) as fig:
        left, right = fig.subplots(1, 2)
        left.plot(*np.array(numbers["sample"]), ".", color=GRAY, markersize=3, alpha=0.4, label="some of the examples")
        for loss, what, color in ((SQUARED, "mean", BLUE), (ABSOLUTE, "median", VERMILION)):
            for i, made in enumerate(numbers["learned"][loss]["center"]):
                left.plot(x, made, color=color, linewidth=0.8, label=f"{loss}, each seed" if i == 0 else None)
            style = {"mean": "--", "median": ":"}[what]
            left.plot(x, truth[what], style, color="black", linewidth=1.8, label=f"conditional {what}, in closed form")
        left.set(title="Squared error: the mean. Absolute error: the median", xlabel="x", ylabel="t", ylim=(-1.5, 4.5))
        left.legend(loc="upper left", ncols=2, fontsize=8)
        for loss, what, color, style in (
            (GAUSSIAN, "standard deviation", BLUE, "--"),
            (LAPLACE, "mean distance from the median", GREEN, ":"),
        ):
            for i, made in enumerate(numbers["learned"][loss]["spread"]):
                right.plot(x, made, color=color, linewidth=0.8, label=f"{loss}, each seed" if i == 0 else None)
            right.plot(x, truth[what], style, color="black", linewidth=1.8, label=f"{what}, in closed form")
        right.set(title="Likelihoods with a learned scale", xlabel="x", ylabel="scale", ylim=(0, 1.35))
        right.legend(loc="upper left", fontsize=8)


EXPERIMENT = Experiment(
    name="mean_and_median",
    claim="Squared error learns the conditional mean, absolute error the median, and likelihoods the scale too.",
    source="Goodfellow, Bengio and Courville, Deep Learning (2016), section 6.2.1.2",
    options=Config,
    measure=measure,
    judge=judge,
    draw=draw,
    smoke={"seeds": 2, "examples": 300, "epochs": 1, "width": 4},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return EXPERIMENT.run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
