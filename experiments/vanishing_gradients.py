"""Deltas shrink or grow by a factor at each layer, which the start of the weights and the activation decide.

Deltas of deep networks are recorded at the start, from the last layer back to the first, beside the factor that theory
gives: chi = sigma_w^2 E[phi'(z)^2], with sigma_w^2 the variance of a weight times the fan-in, and z normal of the
variance that the forward pass arrives at. Then networks of several depths are trained on digits.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcnn as fnn
from experiments.common.claims import Check, Experiment, Options, spread
from experiments.common.figure import BLUE, GREEN, ORANGE, SKY, VERMILION, figure

ACTIVATIONS: dict[str, fnn.Layer] = {
    "sigmoid": fnn.Sigmoid(), "tanh": fnn.Tanh(), "relu": fnn.Relu(), "leaky relu": fnn.LeakyRelu(0.2),
    "swish": fnn.Silu(),
}  # fmt: skip
STARTS: dict[str, Callable[[int], float]] = {  # the standard deviation of weights between layers of so many units
    "small": lambda width: 0.01,
    "Glorot": lambda width: width**-0.5,
    "He": lambda width: (2 / width) ** 0.5,
}
UNIT = fnn.Init("normal", stddev=1.0)
EXAMPLES = 32  # whose deltas are averaged
# Decades a layer between prediction and measurement: theory is of infinite width, and a mean of few networks remains.
APART = 0.03
# What has to train, and what cannot: decades that theory has delta^2 change by, and lose, from last layer to first.
MILD, SEVERE = 3.0, 12.0
LEARNS = 50.0  # percent of the test examples; chance has 10


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Deltas of deep networks at the start, and what trains."""

    seeds: int = 3
    """Networks of each kind."""
    depth: int = 100
    """Hidden layers of the networks whose deltas are recorded."""
    width: int = 200
    """Units in each of them."""
    trained_depths: tuple[int, ...] = (5, 10, 30)
    """Hidden layers, of 64 units each, of the trained networks."""
    epochs: int = 20
    """Times to go through the training examples."""
    learning_rates: tuple[float, ...] = (0.001, 0.003, 0.03)
    """Of stochastic gradient descent with momentum 0.9; the one with the lowest training loss counts."""


def measure(config: Config) -> dict[str, Any]:
    """By activation and start: mean squares of deltas, those that theory gives, and test accuracies by depth."""
    (x, y), test = fnn.data.load_digits().arrays()
    numbers: dict[str, Any] = {"measured": {}, "predicted": {}, "accuracy": {}, "decades": {}}
    for name, activation in ACTIVATIONS.items():
        trained = {depth: train(config, activation, depth, (x, y), test) for depth in config.trained_depths}
        for start, stddev in STARTS.items():
            kind, batch = f"{name}, {start}", (x[:EXAMPLES], y[:EXAMPLES])
            numbers["measured"][kind] = deltas(config, activation, stddev(config.width), batch)
            numbers["predicted"][kind] = predicted(activation, stddev, batch[0], config.width, config.depth)
            numbers["accuracy"][kind] = {str(depth): found[start] for depth, found in trained.items()}
            numbers["decades"][kind] = {
                str(depth): predicted(activation, stddev, batch[0], x.shape[1], depth)[-1] for depth in trained
            }
    return numbers


def deltas(config: Config, activation: fnn.Layer, stddev: float, batch: Any) -> np.ndarray:
    """log10 of the mean square of the delta in front of each activation, the last first, (seeds, depth)."""
    hidden = [layer for _ in range(config.depth) for layer in (fnn.Dense(config.width, w_init=UNIT), activation)]
    net = fnn.Serial(*hidden, fnn.Dense(10, w_init=UNIT))
    with jax.enable_x64(True):  # in which 10^-300 is a number
        batch = batch[0].astype(float), batch[1]
        found = [
            squares(net, net.init(jax.random.key(i), batch[0].shape[1:]), stddev, batch) for i in range(config.seeds)
        ]
    with np.errstate(divide="ignore"):  # narrow networks of relu units may be dead: a delta of 0 is 10^-inf
        return np.log10(np.array(found))


@functools.partial(jax.jit, static_argnames="net")
def squares(net: fnn.Serial, unit: Any, stddev: jax.Array, batch: Any) -> jax.Array:
    """Mean squares of the deltas that come to the dense layers but the last, from the last on, (depth,)."""
    params = jax.tree.map(lambda leaf: stddev * leaf, unit)  # biases are 0
    record = fnn.backprop.record(fnn.Objective(net, fnn.losses.softmax_cross_entropy))(params, batch)
    dense = [entry for entry in record.values() if isinstance(entry.layer, fnn.Dense)]
    return jnp.stack([jnp.mean(jnp.square(entry.dy)) for entry in dense[-2::-1]])


def predicted(activation: fnn.Layer, stddev: Callable[[int], float], x: Any, width: int, depth: int) -> np.ndarray:
    """log10 of delta^2 over that of the last layer, as `deltas` has it: the sum of log10 chi of the layers between."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)  # an even number: none at the kink
    variance, chis = width * stddev(width) ** 2, []
    q = stddev(width) ** 2 * float(jnp.mean(jnp.sum(jnp.square(x), axis=-1)))
    with jax.enable_x64(True):
        for _ in range(depth):
            z = jnp.asarray(np.sqrt(q) * nodes)
            y, slope = jax.jvp(lambda z: activation.apply((), z), (z,), (jnp.ones_like(z),))
            mean_square, mean_slope = (float(weights @ np.square(v) / weights.sum()) for v in (y, slope))
            chis.append(variance * mean_slope)
            q = variance * mean_square
    # The delta of a layer is that of the layer above it, times weights and phi' here: chi of this layer's z.
    return np.concatenate([[0.0], np.cumsum(np.log10(chis[:-1])[::-1])])


def train(config: Config, activation: fnn.Layer, depth: int, data: Any, test: Any) -> dict[str, np.ndarray]:
    """By start, test accuracies in percent, (seeds,), at the learning rate with the lowest training loss."""
    width = data[0].shape[1]  # of all layers, so that one program has them as a loop
    net = fnn.Serial(
        fnn.Repeat(fnn.Serial(fnn.Dense(width, w_init=UNIT), activation), depth), fnn.Dense(10, w_init=UNIT)
    )
    many = fnn.train.fit_many(
        fnn.Objective(net, fnn.losses.softmax_cross_entropy),
        lambda learning_rate: optax.sgd(learning_rate, momentum=0.9),
        lambda key, stddev: jax.tree.map(lambda leaf: stddev * leaf, net.init(key, (width,))),
        data, epochs=config.epochs, batch_size=64, valid=test, valid_every=config.epochs,
        metrics={"accuracy": fnn.train.accuracy}, seeds=config.seeds, strategy="vmap", progress=None,
        grid={"stddev": [stddev(width) for stddev in STARTS.values()], "learning_rate": config.learning_rates},
    )  # fmt: skip
    losses = np.nan_to_num(many["loss"][..., -1], nan=np.inf).mean(axis=-1)  # (starts, rates)
    accuracies = 100 * many["valid accuracy"][..., -1]
    return {start: accuracies[i, int(np.argmin(losses[i]))] for i, start in enumerate(STARTS)}


def slope(log_squares: Any) -> float:
    """Decades of delta^2 a layer, from the last hidden layer to the first; as far as float64 has numbers for them.

    Where float64 has none the logarithm is -infinity. A NaN is something else, and is passed on.
    """
    values = np.asarray(log_squares, float)
    if np.isnan(values).any():
        return np.nan
    finite = int(np.argmax(~(values > -300))) if np.any(~(values > -300)) else len(values)
    return float(np.polyfit(np.arange(finite), values[:finite], 1)[0]) if finite > 1 else np.nan


def named(cells: Sequence[tuple[float, str]]) -> str:
    """In words; "none" of none."""
    return ", ".join(f"{name} ({accuracy:.1f} %)" for accuracy, name in cells) or "none"


def judge(numbers: dict[str, Any]) -> list[Check]:
    """Slopes are those predicted; a sigmoid's shrinks at any start; what theory calls mild trains, what severe not."""
    slopes = {kind: np.array([slope(row) for row in rows]) for kind, rows in numbers["measured"].items()}
    theory = {}
    for kind, row in numbers["predicted"].items():
        ends = min(int(np.sum(np.array(one, float) > -300)) for one in numbers["measured"][kind])
        theory[kind] = slope(row[:ends])
    apart = {kind: abs(slopes[kind].mean() - theory[kind]) for kind in slopes}
    worst = max(apart, key=lambda kind: np.nan_to_num(apart[kind], nan=np.inf))
    sigmoid = np.concatenate(
        [slopes[kind] for kind in slopes if kind.startswith("sigmoid") and not kind.endswith("He")]
    )
    cells = [
        (float(numbers["decades"][kind][depth]), np.array(accuracy, float), f"{kind}, depth {depth}")
        for kind, by_depth in numbers["accuracy"].items()
        for depth, accuracy in by_depth.items()
    ]
    mild = [(accuracy.mean(), name) for decades, accuracy, name in cells if abs(decades) <= MILD]
    severe = [(accuracy.mean(), name) for decades, accuracy, name in cells if not decades > -SEVERE]
    return [
        Check(
            f"The mean slope of log10 delta^2 against the layer is that of log10 chi, to {APART:g} a layer",
            f"furthest: {worst}, {spread(slopes[worst])} where {theory[worst]:.3g} is predicted",
            bool(max(np.nan_to_num(list(apart.values()), nan=np.inf)) <= APART),
        ),
        Check(
            "sigmoid' is at most 1/4: from a small or Glorot start delta^2 shrinks at least 16 times a layer",
            f"at the least {10 ** -sigmoid.max():.3g} times",
            bool(np.all(sigmoid <= -np.log10(16))),
        ),
        Check(
            f"Where theory has delta^2 lose or gain at most {MILD:g} decades, networks learn: mean test accuracy at "
            f"least {LEARNS:g} %",
            f"{len(mild)} kinds; the worst: {named(sorted(mild)[:1])}",
            bool(mild and all(accuracy >= LEARNS for accuracy, _ in mild)),
        ),
        Check(
            f"Where it has it lose {SEVERE:g} decades or more, they do not: less than {LEARNS:g} %",
            f"{len(severe)} kinds; the best: {named(sorted(severe)[-1:])}",
            bool(severe and all(accuracy < LEARNS for accuracy, _ in severe)),
        ),
    ]  # fmt: skip


def draw(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """Deltas layer by layer with their prediction, and below which depths train."""
    colors = dict(zip(ACTIVATIONS, (VERMILION, BLUE, GREEN, SKY, ORANGE), strict=True))
    markers = dict(zip(ACTIVATIONS, "os^Dv", strict=True))
    with figure(path, 11, 7) as fig:
        axes = fig.subplots(2, 3, height_ratios=(1.6, 1))
        for (above, below), start in zip(axes.T, STARTS, strict=True):
            for name in ACTIVATIONS:
                values = np.array(numbers["measured"][f"{name}, {start}"], float)
                values = np.where(values > -300, values, np.nan).mean(axis=0)
                layers = np.arange(len(values))
                above.plot(layers, values - values[0], markers[name], color=colors[name], markersize=5,
                           markevery=max(1, len(layers) // 12), linestyle="none")  # fmt: skip
                theory = np.array(numbers["predicted"][f"{name}, {start}"])
                above.plot(layers, np.where(theory > -310, theory, np.nan), color=colors[name], linewidth=1)
            above.set(title=f"{start} start", xlabel="layers back from the last", ylim=(-60, 12))
            accuracy = np.array(
                [[np.mean(a) for a in numbers["accuracy"][f"{name}, {start}"].values()] for name in ACTIVATIONS]
            )
            below.imshow(accuracy, cmap="Greys_r", vmin=0, vmax=100, aspect="auto")
            for (row, column), value in np.ndenumerate(accuracy):
                below.text(
                    column, row, f"{value:.0f} %", ha="center", va="center", color="black" if value > 50 else "white"
                )
            depths = list(numbers["accuracy"][f"relu, {start}"])
            below.set_xticks(range(len(depths)), depths)
            below.set_yticks(
                range(len(ACTIVATIONS)), list(ACTIVATIONS) if start == "small" else [""] * len(ACTIVATIONS)
            )
            below.grid(visible=False)
            below.set(xlabel="hidden layers")
        axes[0, 0].set_ylabel("log10 of delta², over that of the last layer")
        for name in ACTIVATIONS:
            axes[0, 0].plot([], [], markers[name] + "-", color=colors[name], label=name)
        axes[0, 0].legend(title="measured (marks),\npredicted (lines)", loc="upper right")
        axes[1, 0].set_title("Test accuracy after training")


EXPERIMENT = Experiment(
    name="vanishing_gradients",
    claim="Deltas shrink or grow by the factor chi at each layer; where they vanish, deep networks do not train.",
    source="Hochreiter (1991); Glorot and Bengio (2010); He et al. (2015); Schoenholz et al., Deep Information "
    "Propagation (2017)",
    options=Config,
    measure=measure,
    judge=judge,
    draw=draw,
    smoke={"seeds": 1, "depth": 4, "width": 20, "trained_depths": (2,), "epochs": 1, "learning_rates": (0.1,)},
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return EXPERIMENT.run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
