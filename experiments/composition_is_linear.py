"""A deep network without nonlinearities is one matrix: the same function as a linear model, and no better on digits.

Networks of several depths are trained on handwritten digits, with the identity and with relu between their layers: to
name the digit, and to say whether it is odd, for which a linear model is too weak and relu's depth has to gain. The
weights of the linear ones are multiplied out, and the single layer that this gives is compared with the network.
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
from experiments.common import record
from experiments.common.claims import Check, Experiment, Options, deviation, spread
from experiments.common.figure import BLUE, VERMILION, figure

SAME = 1e-5  # float32: the largest difference of logits over the largest logit
GAIN = 1.0  # percentage points of accuracy that count as one
MUCH = 5.0  # what relu has to gain where a linear model is too weak
# How many classes a digit is sorted into: its remainder by that.
TASKS = {"which digit": 10, "odd or even": 2}


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Trains deep linear networks and relu networks on scikit-learn's digits."""

    depths: tuple[int, ...] = (1, 2, 4, 8)
    """Dense layers of the networks."""
    width: int = 64
    """Of the hidden layers."""
    epochs: int = 60
    """Times to go through the training examples."""
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    """Adam's, falling to 0 by a cosine; of each network that one counts which gives the lowest training loss."""

    def check(self) -> None:
        """Raises UsageError where there is no depth to compare with one layer."""
        super().check()
        if 1 not in self.depths or len(self.depths) < 2:
            raise record.UsageError(f"--depths are 1 and others, got {' '.join(map(str, self.depths))}")


def network(depth: int, width: int, activation: fnn.Layer, classes: int) -> fnn.Serial:
    """`depth` dense layers, with the activation between them."""
    hidden = [layer for _ in range(depth - 1) for layer in (fnn.Dense(width), activation)]
    return fnn.Serial(*hidden, fnn.Dense(classes))


def multiplied_out(params: Any) -> dict[str, jax.Array]:
    """The one dense layer that is the same function: w = w1 w2 ..., b = (b1 w2 + b2) w3 + ..."""
    first, *others = [layer for layer in params if layer]
    w, b = first["w"], first["b"]
    for layer in others:
        w, b = w @ layer["w"], b @ layer["w"] + layer["b"]
    return {"w": w, "b": b}


def measure(config: Config) -> dict[str, Any]:
    """By task, test accuracies by depth and seed, and how far the linear networks are from one matrix."""
    parts = fnn.data.load_digits().arrays()
    return {
        task: measure_task(config, classes, *((x, y % classes) for x, y in parts)) for task, classes in TASKS.items()
    }


def measure_task(config: Config, classes: int, train: Any, test: Any) -> dict[str, Any]:
    """The same for one of them."""
    numbers: dict[str, Any] = {"linear": {}, "relu": {}, "apart": {}, "same predictions": {}, "learning rate": {}}
    steps = config.epochs * -(-len(train[0]) // 64)
    for name, activation in (("linear", fnn.Identity()), ("relu", fnn.Relu())):
        for depth in config.depths:
            net = network(depth, config.width, activation, classes)
            many = fnn.train.fit_many(
                fnn.Objective(net, fnn.losses.softmax_cross_entropy),
                lambda learning_rate: optax.adam(optax.cosine_decay_schedule(learning_rate, steps)),
                lambda key, net=net: net.init(key, (64,)), train, epochs=config.epochs, batch_size=64,
                seeds=config.seeds, grid={"learning_rate": config.learning_rates}, valid=test,
                valid_every=config.epochs, metrics={"accuracy": fnn.train.accuracy}, strategy="vmap", progress=None,
            )  # fmt: skip
            best = int(np.argmin(many["loss"][:, :, -1].mean(1)))
            numbers[name][str(depth)] = 100 * many["valid accuracy"][best, :, -1]
            numbers["learning rate"][f"{name}, {depth}"] = config.learning_rates[best]
            if name == "linear":
                params = jax.tree.map(lambda leaf, best=best: leaf[best], many.state.params)
                pairs = [compare(net, run, jnp.asarray(test[0])) for run in each(params, config.seeds)]
                numbers["apart"][str(depth)], numbers["same predictions"][str(depth)] = zip(*pairs, strict=True)
    return numbers


def each(params: Any, runs: int) -> list[Any]:
    """The parameters of each run."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(runs)]


def compare(net: fnn.Serial, params: Any, x: jax.Array) -> tuple[float, float]:
    """Network and matrix: the largest difference over the largest logit, and the fraction of equal predictions."""
    logits, by_matrix = net.apply(params, x), net.layers[-1].apply(multiplied_out(params), x)
    apart = jnp.abs(logits - by_matrix).max() / jnp.abs(logits).max()
    return float(apart), float(jnp.mean(logits.argmax(-1) == by_matrix.argmax(-1)))


def judge(numbers: dict[str, Any]) -> list[Check]:
    """The matrix is the network, and its depth gains nothing, also where relu's does."""
    apart = np.max([values for one in numbers.values() for values in one["apart"].values()])
    same = np.min([values for one in numbers.values() for values in one["same predictions"].values()])
    gains = {task: {kind: gain(one[kind]) for kind in ("linear", "relu")} for task, one in numbers.items()}
    weak = gains["odd or even"]
    return [
        Check(
            f"Multiplied out, each deep linear network is one matrix: logits within {SAME:g}, the same predictions",
            f"furthest {apart:.1e}; {100 * same:.2f} % of the predictions are the same",
            bool(apart <= SAME and same == 1),
        ),
        Check(
            f"Without a nonlinearity no depth gains {GAIN:g} point of test accuracy over one layer, on either task",
            "; ".join(f"{task}: at most {spread(both['linear'])} points" for task, both in gains.items()),
            bool(all(both["linear"].mean() < GAIN for both in gains.values())),
        ),
        Check(
            f"With relu some depth gains at least {MUCH:g} points on the harder one, odd or even",
            f"{spread(weak['relu'])} points",
            bool(weak["relu"].mean() >= MUCH),
        ),
    ]


def gain(by_depth: dict[str, Any]) -> np.ndarray:
    """Of the best depth over one layer, by seed, in points; NaN where any accuracy is no number."""
    values = np.array(list(by_depth.values()), float)
    gains = (values - np.array(by_depth["1"], float)).round(3)  # no digits of float32's rounding
    return np.where(np.isfinite(values).all(), gains[1 + np.argmax(gains[1:].mean(axis=1))], np.nan)


def draw(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """Test accuracy against depth, for each task."""
    with figure(path, 10, 4) as fig:
        panels = fig.subplots(1, len(numbers))
        for axes, (task, one) in zip(panels, numbers.items(), strict=True):
            for name, color, marker in (("relu", BLUE, "o"), ("linear", VERMILION, "s")):
                values = np.array(list(one[name].values()), float)
                label = {"relu": "with relu between the layers", "linear": "with nothing between them: one matrix"}
                axes.errorbar(range(len(values)), values.mean(1), deviation(values), fmt=f"{marker}-", color=color,
                              label=label[name], capsize=4)  # fmt: skip
            axes.set_xticks(range(len(one["linear"])), list(one["linear"]))
            axes.set(xlabel="dense layers", ylabel="test accuracy in percent", title=task.capitalize())
        panels[-1].legend(loc="center right")
        fig.suptitle("Depth without a nonlinearity gains nothing (handwritten digits)", x=0.01, ha="left")


EXPERIMENT = Experiment(
    name="composition_is_linear",
    claim="A deep network without nonlinearities is one matrix, and gains nothing from its depth.",
    source="Goodfellow, Bengio and Courville, Deep Learning (2016), section 6.1",
    options=Config,
    measure=measure,
    judge=judge,
    draw=draw,
    smoke={"seeds": 2, "depths": (1, 2), "epochs": 1},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return EXPERIMENT.run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
