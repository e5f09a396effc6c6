"""At equal numbers of parameters deeper networks generalize better, and wide shallow ones overfit sooner.

Relu networks of 1 to 8 hidden layers, as wide as the number of parameters allows, are trained on MNIST with a constant
learning rate, past the epoch where the test loss is least. For the error each depth has the learning rate that is best
for it, on training images that are held out; for the epoch of the least loss all have that of the shallowest.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import optax

import funcnn as fnn
from experiments.common import networks
from experiments.common.claims import Check, Experiment, MnistOptions, more, spread
from experiments.common.figure import BLUE, GRAY, VERMILION, figure
from experiments.common.training import fit_images, parameters, without_test_examples

adam = functools.cache(optax.adam)  # one value for each learning rate, so that trainings share a compiled program
LAST = 5  # epochs at the end, over which the test error is averaged: with a constant learning rate it goes up and down


@dataclasses.dataclass(frozen=True)
class Config(MnistOptions):
    """Networks of several depths with equal numbers of parameters on MNIST."""

    seeds: int = 3
    """Trainings of each network."""
    depths: tuple[int, ...] = (1, 2, 3, 4, 8)
    """Hidden layers."""
    parameters: int = 200_000
    """Of each network, nearly."""
    epochs: int = 15
    """Times to go through the training images."""
    batch_size: int = 128
    """Images a step."""
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
    """Adam's, to choose from."""

    several: ClassVar = {"depths": 2}


def measure(config: Config) -> dict[str, Any]:
    """By depth: width, parameters, learning rates, and errors and losses of all epochs, (seeds, epochs)."""
    data = config.dataset()
    held_out = without_test_examples(data)
    inputs, numbers = data.x_train[0].size, {}
    common = 0.0
    for depth in sorted(config.depths):
        width = equal_width(config.parameters, inputs, data.classes, depth)
        net = networks.mlp([width] * depth, fnn.Relu(), data.classes)
        tried = {rate: train(config, net, held_out, rate, 0) for rate in config.learning_rates}
        rates = {rate: last_errors([history["test error"]])[0] for rate, history in tried.items()}
        best = min(rates, key=lambda rate: np.nan_to_num(rates[rate], nan=np.inf))
        common = common or best  # that of the shallowest, which comes first
        found = {
            rate: [train(config, net, data, rate, seed) for seed in range(config.seeds)] for rate in {best, common}
        }
        numbers[str(depth)] = {
            "width": width, "parameters": parameters(net, inputs), "learning rate": best,
            "held-out error by learning rate": rates,
            "test error": [one["test error"] for one in found[best]],
            "one learning rate": common, "test loss": [one["test loss"] for one in found[common]],
        }  # fmt: skip
    return numbers


def train(config: Config, net: fnn.Layer, data: fnn.data.Dataset, rate: float, seed: int) -> dict[str, np.ndarray]:
    """Errors in percent and losses of all epochs, (epochs,)."""
    objective = fnn.Objective(net, fnn.losses.softmax_cross_entropy)
    history = fit_images(objective, adam(rate), data, epochs=config.epochs, batch_size=config.batch_size, seed=seed)[1]
    error = 100 * (1 - history["valid accuracy"])
    return {"test error": error, "test loss": history["valid loss"]}


def last_errors(errors: Any) -> np.ndarray:
    """The mean error of the last epochs of each training."""
    return np.array(errors, float)[:, -LAST:].mean(axis=1)


def equal_width(size: int, inputs: int, classes: int, depth: int) -> int:
    """Units in each of so many hidden layers, for nearly `size` parameters."""
    # size = W (D + 1) + (L - 1) W (W + 1) + C (W + 1), solved for W
    a, b, c = depth - 1, inputs + depth + classes, classes - size
    return max(1, round((-b + (b**2 - 4 * a * c) ** 0.5) / (2 * a) if a else -c / b))


def judge(numbers: dict[str, Any]) -> list[Check]:
    """Errors at the end and the epochs of the least test loss, of one layer and of more."""
    errors = {depth: last_errors(one["test error"]) for depth, one in numbers.items()}
    turns = {depth: turn(one["test loss"]) for depth, one in numbers.items()}
    shallow, deep = min(numbers, key=int), max(numbers, key=int)
    best = min((d for d in numbers if d != shallow), key=lambda depth: np.nan_to_num(errors[depth], nan=np.inf).mean())
    sizes = [one["parameters"] for one in numbers.values()]
    return [
        Check(
            f"Some network of more than {shallow} hidden layer has a lower test error, by more than three standard "
            "errors, with as many parameters (to 1 %)",
            f"{best}: {spread(errors[best])} %; {shallow}: {spread(errors[shallow])} %",
            more(errors[shallow], errors[best]) and max(sizes) <= 1.01 * min(sizes),
        ),
        Check(
            f"So has the deepest, of {deep} hidden layers",
            f"{spread(errors[deep])} %",
            more(errors[shallow], errors[deep]),
        ),
        Check(
            f"At the learning rate that is best for {shallow} layer, its test loss is least in an earlier epoch than "
            f"with {deep}, by more than three standard errors",
            f"epoch {spread(turns[shallow])} and {spread(turns[deep])}",
            more(turns[deep], turns[shallow]),
        ),
    ]


def turn(losses: Any) -> np.ndarray:
    """The epoch, from 1 on, of the least test loss of each training; NaN where there is a loss that is no number."""
    losses = np.array(losses, float)
    return np.where(np.isfinite(losses).all(axis=1), 1.0 + np.argmin(losses, axis=1), np.nan)


def draw(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """Test error against depth, and test loss against epochs for the shallowest, the best and the deepest."""
    with figure(path, 11, 4) as fig:
        by_depth, by_epoch, turning = fig.subplots(1, 3, width_ratios=(1, 1.2, 1))
        places, depths = range(len(numbers)), list(numbers)
        errors = [last_errors(one["test error"]) for one in numbers.values()]
        turns = [turn(one["test loss"]) for one in numbers.values()]
        for axes, values in ((by_depth, errors), (turning, turns)):
            for place, one in zip(places, values, strict=True):
                axes.plot([place] * len(one), one, "o", color=BLUE, fillstyle="none")
            axes.plot(places, [np.mean(one) for one in values], "-", color=BLUE)
            axes.set_xticks(places, [f"{d}\n{numbers[d]['width']}" for d in depths])
            axes.set(xlabel="hidden layers, and units in each", ylim=(0, 1.15 * np.nanmax(values)))
        count, rate = (numbers[depths[0]][name] for name in ("parameters", "one learning rate"))
        by_depth.set(title=f"Test error, {count:,} parameters", ylabel="percent, mean of the last epochs")
        turning.set(title="When it is least", ylabel="epoch")
        middle = depths[len(depths) // 2]
        styles = {depths[0]: (VERMILION, "-"), middle: (GRAY, "--"), depths[-1]: (BLUE, "-.")}
        for depth, (color, style) in styles.items():
            for index, losses in enumerate(np.array(numbers[depth]["test loss"], float)):
                label = f"{depth} hidden layer{'s' if depth != '1' else ''}" if index == 0 else None
                by_epoch.plot(np.arange(1, len(losses) + 1), losses, style, color=color, label=label, linewidth=1.2)
        by_epoch.set(title=f"Test loss at the learning rate {rate:g}", xlabel="epoch", ylabel="nats", ylim=(0, None))
        by_epoch.legend(loc="lower right")


EXPERIMENT = Experiment(
    name="depth_generalizes",
    claim="At equal numbers of parameters deeper networks generalize better, and wide shallow ones overfit sooner.",
    source="Goodfellow et al., Multi-digit Number Recognition from Street View Imagery (2014); Goodfellow, Bengio and "
    "Courville, Deep Learning (2016), section 6.4.1",
    options=Config,
    measure=measure,
    judge=judge,
    draw=draw,
    smoke={"seeds": 1, "depths": (1, 2), "parameters": 1000, "epochs": 1, "learning_rates": (1e-3,)},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return EXPERIMENT.run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
