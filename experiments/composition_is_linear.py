"""A deep network without nonlinearities is one matrix: the same function as a linear model, and no better on digits.

Networks of several depths are trained on handwritten digits, with the identity and with relu between their layers. The
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
from experiments.common.claims import Check, Experiment, Options, spread
from experiments.common.figure import BLUE, VERMILION, figure

SAME = 1e-5  # float32: the largest difference of logits over the largest logit
GAIN = 1.0  # percentage points of accuracy that count as one


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Trains deep linear networks and relu networks on scikit-learn's digits."""

    depths: tuple[int, ...] = (1, 2, 4, 8)
    """Dense layers of the networks."""
    width: int = 64
    """Of the hidden layers."""
    epochs: int = 60
    """Times to go through the training examples."""
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    """Adam's, falling to 0 by a cosine; of each network that one counts which gives the lowest training loss."""


def network(depth: int, width: int, activation: fnn.Layer) -> fnn.Serial:
    """`depth` dense layers, with the activation between them."""
    hidden = [layer for _ in range(depth - 1) for layer in (fnn.Dense(width), activation)]
    return fnn.Serial(*hidden, fnn.Dense(10))


def multiplied_out(params: Any) -> dict[str, jax.Array]:
    """The one dense layer that is the same function: w = w1 w2 ..., b = (b1 w2 + b2) w3 + ..."""
    first, *others = [layer for layer in params if layer]
    w, b = first["w"], first["b"]
    for layer in others:
        w, b = w @ layer["w"], b @ layer["w"] + layer["b"]
    return {"w": w, "b": b}


def measure(config: Config) -> dict[str, Any]:
    """Test accuracies by depth and seed, and how far the linear networks are from one matrix."""
    train, test = fnn.data.load_digits().arrays()
    numbers: dict[str, Any] = {"linear": {}, "relu": {}, "apart": {}, "same predictions": {}, "learning rate": {}}
    steps = config.epochs * -(-len(train[0]) // 64)
    for name, activation in (("linear", fnn.Identity()), ("relu", fnn.Relu())):
        for depth in config.depths:
            net = network(depth, config.width, activation)
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
    logits, by_matrix = net.apply(params, x), fnn.Dense(10).apply(multiplied_out(params), x)
    apart = jnp.abs(logits - by_matrix).max() / jnp.abs(logits).max()
    return float(apart), float(jnp.mean(logits.argmax(-1) == by_matrix.argmax(-1)))


def judge(numbers: dict[str, Any]) -> list[Check]:
    """The matrix is the network, and its depth gains nothing."""
    apart = max(max(values) for values in numbers["apart"].values())
    same = min(min(values) for values in numbers["same predictions"].values())
    one = np.array(numbers["linear"]["1"])
    deep = {depth: np.array(values) for depth, values in numbers["linear"].items() if depth != "1"}
    best = max(deep, key=lambda depth: deep[depth].mean())
    return [
        Check(
            f"Multiplied out, each deep linear network is one matrix: logits within {SAME:g}, the same predictions",
            f"furthest {apart:.1e}; {100 * same:.2f} % of the predictions are the same",
            bool(apart <= SAME and same == 1),
        ),
        Check(
            f"No depth gains {GAIN:g} point of test accuracy over one layer without nonlinearity",
            f"{spread(deep[best])} % with {best} layers, {spread(one)} % with one",
            bool(deep[best].mean() - one.mean() < GAIN),
        ),
    ]


def draw(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """Test accuracy against depth."""
    with figure(path, 7, 4) as fig:
        axes = fig.subplots()
        for name, color, marker in (("relu", BLUE, "o"), ("linear", VERMILION, "s")):
            depths = list(numbers[name])
            values = np.array([numbers[name][depth] for depth in depths])
            label = {"relu": "with relu between the layers", "linear": "with nothing between them: one matrix"}[name]
            axes.errorbar(range(len(depths)), values.mean(1), values.std(1), fmt=f"{marker}-", color=color, label=label,
                          capsize=4)  # fmt: skip
        axes.set_xticks(range(len(numbers["linear"])), list(numbers["linear"]))
        axes.set(xlabel="dense layers", ylabel="test accuracy in percent")
        axes.set_title("Depth without a nonlinearity gains nothing (handwritten digits)")
        axes.legend(loc="lower left")


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
