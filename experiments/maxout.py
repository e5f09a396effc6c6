"""Maxout learns its activation: any convex shape from pieces, with relu as a special case.

A maxout unit with w1 = b1 = 0 is compared with a relu bit by bit. One unit is fitted to curves with more and more
pieces, beside the best that so many lines can do. Maxout and relu networks of equal size are trained on MNIST.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcnn as fnn
from experiments.common import networks
from experiments.common.claims import Check, Experiment, MnistOptions, more, spread
from experiments.common.figure import BLUE, GRAY, GREEN, ORANGE, VERMILION, figure
from experiments.common.training import fit_images, parameters

X = np.linspace(-1, 1, 201, dtype=np.float32)[:, None]
TARGETS = {"$x^2$": lambda x: x**2, "$|x|$": abs, "$-x^2$": lambda x: -(x**2)}
NEAR = 2.0  # times the best error that so many lines can have
STARTS = 50  # random starts of a unit, of which the best counts: the question is what it can learn


@dataclasses.dataclass(frozen=True)
class Config(MnistOptions):
    """Maxout units on curves, and maxout and relu networks on MNIST."""

    seeds: int = 3
    """Trainings of each network."""
    pieces: tuple[int, ...] = (1, 2, 3, 4, 6)
    """Of the unit that is fitted to curves."""
    fit_steps: int = 2000
    """Of Adam, to fit it."""
    width: int = 256
    """Units of the two hidden layers of the relu network."""
    epochs: int = 8
    """Times to go through MNIST's training images."""
    batch_size: int = 128
    """Images a step."""
    learning_rate: float = 1e-3
    """Adam's, falling to 0 by a cosine."""
    dropout: float = 0.5
    """Of the hidden units, where there is dropout."""

    may_be_zero: ClassVar = ("dropout",)
    below: ClassVar = {"dropout": 1.0}


def measure(config: Config) -> dict[str, Any]:
    """Relu as maxout; fitted curves; test errors on MNIST."""
    data = config.dataset()
    curves: dict[str, Any] = {name: {} for name in TARGETS}
    for pieces in config.pieces:
        for name, found in fit_units(config, pieces).items():
            curves[name][str(pieces)] = found
    nets, sizes = {}, {}
    for rate in (0.0, config.dropout):
        hidden = [config.width] * 2
        relu = networks.mlp(hidden, fnn.Relu(), data.classes, rate)
        size = parameters(relu, data.x_train[0].size)
        nets |= {name_of("relu", rate): relu}
        for pieces in (2, 5):
            width = max(1, equal_width(size, data.x_train[0].size, data.classes, pieces))
            nets |= {
                name_of(f"maxout, {pieces} pieces", rate): networks.maxout([width] * 2, pieces, data.classes, rate)
            }
    sizes = {name: parameters(net, data.x_train[0].size) for name, net in nets.items()}
    errors = {name: [train(config, net, data, seed) for seed in range(config.seeds)] for name, net in nets.items()}
    return {"relu differs": relu_as_maxout(), "curves": curves, "parameters": sizes, "errors": errors}


def name_of(kind: str, rate: float) -> str:
    """As the record and the figure have it."""
    return f"{kind}, dropout" if rate else kind


def equal_width(size: int, inputs: int, classes: int, pieces: int) -> int:
    """Units in each of two maxout layers, that with the output layer have nearly `size` parameters."""
    # size = P K (D + 1) + P K (K + 1) + (K + 1) C, solved for K
    a, b, c = pieces, pieces * (inputs + 2) + classes, classes - size
    return round((-b + (b**2 - 4 * a * c) ** 0.5) / (2 * a))


def relu_as_maxout() -> dict[str, int]:
    """How many numbers differ between a relu layer and the maxout layer with w1 = b1 = 0, of outputs and gradients.

    All numbers are small multiples of 1/2, whose sums are exact in any order; and no z is 0, where a maxout unit shares
    its delta between the pieces that tie and a relu has the slope 0.
    """
    rng = np.random.default_rng(0)
    w, x, dy = (jnp.asarray(rng.integers(-9, 10, shape), float) for shape in ((30, 50), (100, 30), (100, 50)))
    layer = {"w": w, "b": jnp.asarray(rng.integers(-9, 10, 50) + 0.5)}
    special = {name: jnp.stack([jnp.zeros_like(leaf), leaf], axis=-2) for name, leaf in layer.items()}
    y, pull = fnn.backprop.vjp(fnn.Serial(fnn.Dense(50), fnn.Relu()), (layer, ()), x)
    y_special, pull_special = fnn.backprop.vjp(fnn.Maxout(50, pieces=2), special, x)
    (grads, _), dx = pull(dy)
    grads_special, dx_special = pull_special(dy)
    same = {"outputs": (y, y_special), "deltas of the inputs": (dx, dx_special)}
    same |= {f"gradient of {name}": (leaf, grads_special[name][..., 1, :]) for name, leaf in grads.items()}
    return {name: int(jnp.sum(a != b)) for name, (a, b) in same.items()}


def fit_units(config: Config, pieces: int) -> dict[str, dict[str, Any]]:
    """By target, the best of some random starts of one unit: its curve, and its mean squared error."""
    net = fnn.Maxout(1, pieces, w_init=fnn.Init("normal", stddev=1.5))
    objective = fnn.Objective(net, fnn.losses.mse)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.01, config.fit_steps))

    def init(key: jax.Array) -> Any:
        return net.init(key, (1,))

    found = {}
    for name, target in TARGETS.items():
        many = fnn.train.fit_many(
            objective, optimizer, init, (X, target(X)), epochs=config.fit_steps, batch_size=len(X), shuffle=False,
            strategy="vmap", seeds=STARTS, progress=None,
        )  # fmt: skip
        curves = jax.vmap(net.apply, (0, None))(many.state.params, jnp.asarray(X))[..., 0]
        errors = jnp.mean(jnp.square(curves - target(X)[:, 0]), axis=1)
        best = int(jnp.argmin(errors))
        found[name] = {"error": float(errors[best]), "curve": np.asarray(curves[best])}
    return found


def train(config: Config, net: fnn.Serial, data: fnn.data.Dataset, seed: int) -> float:
    """The test error in percent after training."""
    steps = config.epochs * -(-len(data.x_train) // config.batch_size)
    _, history = fit_images(
        fnn.Objective(net, fnn.losses.softmax_cross_entropy),
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, steps)),
        data, epochs=config.epochs, batch_size=config.batch_size, seed=seed, valid_every=config.epochs,
    )  # fmt: skip
    return 100 * (1 - history["valid accuracy"][-1])


def best_of_lines(pieces: int) -> float:
    """The least mean squared error of a convex function of so many lines for x^2 on [-1, 1].

    On an interval of length h the best line leaves h^4 / 180, the best lines of equal intervals meet at their ends,
    and no other division is better.
    """
    return (2 / pieces) ** 4 / 180


def judge(numbers: dict[str, Any]) -> list[Check]:
    """Relu exactly; curves as well as lines can; and errors on MNIST that are lower than relu's at equal size."""
    curves = {int(p): float(one["error"]) for p, one in numbers["curves"]["$x^2$"].items()}
    ratios = {p: error / best_of_lines(p) for p, error in curves.items()}
    most, variance = str(max(curves)), 4 / 45  # of x^2 for uniform x
    concave = float(numbers["curves"]["$-x^2$"][most]["error"])
    differ = numbers["relu differs"]
    sizes = list(numbers["parameters"].values())
    checks = [
        Check(
            "With w1 = b1 = 0 a maxout layer of 2 pieces is a relu layer: outputs and gradients, exactly",
            f"{sum(differ.values())} of the numbers differ ({', '.join(differ)})",
            all(count == 0 for count in differ.values()),
        ),
        Check(
            f"A unit learns $x^2$ with at most {NEAR:g} times the error of the best convex function of so many lines",
            ", ".join(f"{p}: {ratio:.2f} times" for p, ratio in ratios.items()),
            all(ratio <= NEAR for ratio in ratios.values()),
        ),
        Check(
            f"It learns convex shapes only: for $-x^2$ {most} pieces leave more than half of the variance",
            f"{concave / variance:.2f} of it",
            concave > variance / 2,
        ),
    ]
    for rate in ("", ", dropout"):
        relu = np.array(numbers["errors"][f"relu{rate}"], float)
        kinds = {name: np.array(numbers["errors"][name], float) for name in numbers["errors"] if name.startswith("max")}
        kinds = {name: errors for name, errors in kinds.items() if name.endswith("dropout") == bool(rate)}
        best = min(kinds, key=lambda name: np.nan_to_num(kinds[name], nan=np.inf).mean())
        checks.append(
            Check(
                f"On MNIST, {'with' if rate else 'without'} dropout, maxout has a lower test error than relu with as "
                "many parameters (to 1 %), by more than three standard errors",
                f"{best.removesuffix(rate)}: {spread(kinds[best])} %; relu: {spread(relu)} %",
                more(relu, kinds[best]) and max(sizes) <= 1.01 * min(sizes),
            )
        )
    return checks


def draw(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """Learned curves, errors against pieces, and test errors on MNIST."""
    with figure(path, 11, 4) as fig:
        shape, error, mnist = fig.subplots(1, 3, width_ratios=(1, 1, 1))
        curves = numbers["curves"]["$x^2$"]
        shape.plot(X[:, 0], X[:, 0] ** 2, color=GRAY, linewidth=5, alpha=0.4, label="$x^2$")
        for pieces, color, style in zip(("1", "2", "4"), (ORANGE, VERMILION, BLUE), (":", "--", "-"), strict=True):
            if pieces in curves:
                label = f"{pieces} piece{'s' if pieces != '1' else ''}"
                shape.plot(X[:, 0], curves[pieces]["curve"], style, color=color, label=label)
        shape.set(title="One maxout unit learns a parabola", xlabel="x", ylabel="y")
        shape.legend(loc="upper center")
        for (name, by_pieces), color, marker in zip(
            numbers["curves"].items(), (BLUE, GREEN, VERMILION), "o^s", strict=True
        ):
            values = [max(float(one["error"]), 1e-8) for one in by_pieces.values()]
            error.plot([int(p) for p in by_pieces], values, marker + "-", color=color, label=name)
        pieces = [int(p) for p in curves]
        error.plot(pieces, [best_of_lines(p) for p in pieces], "k--", linewidth=1, label="best lines for $x^2$")
        error.set(yscale="log", title="Convex shapes only", xlabel="pieces", ylabel="mean squared error", xticks=pieces)
        error.set_ylim(bottom=2e-9)
        error.legend(loc="center right", bbox_to_anchor=(1, 0.38), fontsize=9)
        names = list(numbers["errors"])
        values = [np.array(numbers["errors"][name], float) for name in names]
        for place, (name, one) in enumerate(zip(names, values, strict=True)):
            color = GRAY if name.startswith("relu") else BLUE
            mnist.plot(one, [place] * len(one), "o", color=color, fillstyle="none")
            mnist.plot(one.mean(), place, "|", color=color, markersize=22, markeredgewidth=3)
        mnist.set_yticks(range(len(names)), names)
        mnist.set(
            title="MNIST, at equal size", ylim=(len(names) - 0.4, -0.6), xlabel="test error in percent (bar: mean)"
        )


EXPERIMENT = Experiment(
    name="maxout",
    claim="Maxout learns convex activations from pieces, has relu as a special case, and beats it at equal size.",
    source="Goodfellow et al., Maxout Networks (2013)",
    options=Config,
    measure=measure,
    judge=judge,
    draw=draw,
    smoke={"seeds": 1, "pieces": (1, 2), "fit_steps": 20, "width": 16, "epochs": 1},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return EXPERIMENT.run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
