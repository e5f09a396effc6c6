"""No linear model can represent XOR; a network with two hidden relu units can, and gradient descent may find it.

Linear and logistic regression are fitted to the four examples, to the end. The network with the weights of Goodfellow,
Bengio and Courville is evaluated. Then networks of several widths are trained from many random starts.
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
from experiments.common.claims import Check, Experiment, Options, deviation, more, spread
from experiments.common.figure import BLUE, GRAY, ORANGE, figure

X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
Y = np.array([[0], [1], [1], [0]], np.float32)
# Goodfellow, Bengio and Courville (2016), equations 6.4 to 6.6.
KNOWN = (
    {"w": np.ones((2, 2), np.float32), "b": np.array([0, -1], np.float32)},
    (),
    {"w": np.array([[1], [-2]], np.float32), "b": np.zeros(1, np.float32)},
)
FOUND = 1e-4  # a mean squared error below this is a solution


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Linear models and small relu networks on the four examples of XOR."""

    seeds: int = 5
    """Groups of random starts; the spread is over them."""
    starts: int = 100
    """Random starts in each group, for each width."""
    widths: tuple[int, ...] = (2, 3, 4, 8)
    """Hidden units of the trained networks."""
    steps: int = 3000
    """Steps of gradient descent, by Adam."""
    learning_rate: float = 0.02
    """Adam's."""

    several: ClassVar = {"widths": 2}
    at_least: ClassVar = {"widths": 2}


def network(width: int) -> fnn.Serial:
    """One hidden layer of relu units."""
    return fnn.Serial(fnn.Dense(width), fnn.Relu(), fnn.Dense(1))


def measure(config: Config) -> dict[str, Any]:
    """The best that linear models do; the known network; how often training finds a solution, and one that it found."""
    hidden, outputs = (np.asarray(a) for a in through(KNOWN, network(2)))
    numbers: dict[str, Any] = {
        "linear": fit_linear(fnn.losses.squared_error, lambda z: z),
        "logistic": fit_linear(fnn.losses.bernoulli_nll, jax.nn.sigmoid),
        "known": {"hidden": hidden, "outputs": outputs},
        "trained": {},
    }
    for width in config.widths:
        params, errors = train(config, width)
        order = np.argsort(errors.ravel())
        best = jax.tree.map(lambda leaf, best=order[0]: np.asarray(leaf[best]), params)
        numbers["trained"][str(width)] = {
            "found": (errors < FOUND).mean(axis=1),  # (seeds,)
            "where the others ended": levels(errors),
            "best": {"params": best, "hidden": through(best, network(width))[0]},
        }
    return numbers


def through(params: Any, net: fnn.Serial) -> tuple[jax.Array, jax.Array]:
    """The hidden units (4, width) and the outputs (4,) for the four examples."""
    hidden = fnn.Serial(*net.layers[:2]).apply(params[:2], jnp.asarray(X))
    return hidden, net.apply(params, jnp.asarray(X)).ravel()


def fit_linear(loss: Any, transform: Any) -> dict[str, Any]:
    """An affine function after so many steps that nothing changes any more: both losses are convex."""
    net = fnn.Dense(1)
    state, _ = fnn.train.fit(
        fnn.Objective(net, loss), optax.sgd(0.5), net.init(jax.random.key(0), (2,)), (X, Y), epochs=1000, batch_size=4,
        key=jax.random.key(1), progress=None,
    )  # fmt: skip
    outputs = np.asarray(transform(net.apply(state.params, jnp.asarray(X)))).ravel()
    return {"outputs": outputs, "mse": float(np.mean((outputs - Y.ravel()) ** 2))}


def train(config: Config, width: int) -> tuple[Any, np.ndarray]:
    """The parameters of all starts, and their mean squared errors (seeds, starts)."""
    net = network(width)
    many = fnn.train.fit_many(
        fnn.Objective(net, fnn.losses.squared_error), optax.adam(config.learning_rate),
        lambda key: net.init(key, (2,)), (X, Y), epochs=config.steps, batch_size=4, strategy="vmap",
        seeds=config.seeds * config.starts, progress=None,
    )  # fmt: skip
    return many.state.params, many["loss"][:, -1].reshape(config.seeds, config.starts)


def levels(errors: np.ndarray) -> dict[str, int]:
    """How many starts ended at which error, of those that found no solution."""
    values, counts = np.unique(errors[errors >= FOUND].round(2), return_counts=True)
    return {f"{value:.2f}": int(count) for value, count in zip(values, counts, strict=True)}


def judge(numbers: dict[str, Any]) -> list[Check]:
    """Linear models give 1/2 for all four; the known weights are exact; more units find a solution more often."""
    halves = {name: np.abs(np.array(numbers[name]["outputs"]) - 0.5).max() for name in ("linear", "logistic")}
    known = np.abs(np.array(numbers["known"]["outputs"]) - Y.ravel()).max()
    rates = {int(width): np.array(one["found"]) for width, one in numbers["trained"].items()}
    least, most = min(rates), max(rates)
    return [
        Check(
            "Linear and logistic regression end at four outputs of 1/2 (to 1e-3), with a mean squared error of 1/4",
            f"furthest from 1/2: {halves['linear']:.1e} and {halves['logistic']:.1e}; errors "
            f"{numbers['linear']['mse']:.4f} and {numbers['logistic']['mse']:.4f}",
            bool(np.max([*halves.values()]) < 1e-3),
        ),
        Check("The network with the known weights is exact", f"largest error {known:g}", bool(known == 0)),
        Check(
            f"With {least} hidden units training finds a solution (error below {FOUND:g}) in some starts, not in all",
            f"{spread(100 * rates[least])} % of the starts",
            bool(0 < rates[least].mean() < 1),
        ),
        Check(
            f"With {most} hidden units it is found more often than with {least}, by more than three standard errors",
            f"{spread(100 * rates[most])} % of the starts",
            more(rates[most], rates[least]),
        ),
    ]


def draw(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """The plane and the learned features of a found solution, and how often one is found."""
    found = [w for w, one in numbers["trained"].items() if np.any(one["found"])]
    width = found[0] if found else min(numbers["trained"], key=int)
    best = numbers["trained"][width]["best"]
    with figure(path, 11, 3.8) as fig:
        plane, features, rates = fig.subplots(1, 3, width_ratios=(1, 1, 1.2))
        grid = np.stack(np.meshgrid(np.linspace(-0.5, 1.5, 101), np.linspace(-0.5, 1.5, 101)), axis=-1)
        params = tuple({k: jnp.asarray(leaf) for k, leaf in layer.items()} if layer else () for layer in best["params"])
        surface = np.asarray(network(int(width)).apply(params, jnp.asarray(grid, jnp.float32)))[..., 0]
        plane.contourf(grid[..., 0], grid[..., 1], surface, levels=[-9, 0.5, 9], colors=["#F6E3BF", "#CFE2F0"])
        plane.contour(grid[..., 0], grid[..., 1], surface, levels=[0.5], colors="black", linewidths=1)
        hidden = np.array(best["hidden"])
        if len(np.unique(hidden.round(2), axis=0)) < len(X):
            features.text(0.97, 0.97, "some of the four coincide", transform=features.transAxes, ha="right", va="top")
        marks = {0: ("o", ORANGE), 1: ("s", BLUE)}
        for (a, b), h, target in zip(X, hidden, Y.ravel().astype(int), strict=True):
            marker, color = marks[target]
            for axes, x, y in ((plane, a, b), (features, *h[:2])):
                axes.plot(x, y, marker, color=color, markersize=11, markeredgecolor="black", clip_on=False)
        titles = ("solves it", "... in its features one line does") if found else ("that fails", "... and its features")
        plane.set(title=f"A network with {width} relu units {titles[0]}", ylabel="$x_2$")
        plane.set_xlabel("$x_1$ (square: 1, circle: 0)")
        plane.set(xticks=[0, 1], yticks=[0, 1], aspect="equal")
        features.set(title=titles[1], xlabel="$h_1$", ylabel="$h_2$")
        features.margins(0.25)
        w, b = np.array(best["params"][2]["w"]).ravel(), float(np.array(best["params"][2]["b"]).item())
        if len(w) == 2 and w[1]:
            x = np.array(features.get_xlim())
            y = np.array(features.get_ylim())
            features.plot(x, (0.5 - b - w[0] * x) / w[1], color="black", linewidth=1)
            features.set(xlim=x, ylim=y)
        widths = sorted(numbers["trained"], key=int)
        values = [100 * np.array(numbers["trained"][w]["found"]) for w in widths]
        rates.bar(["linear", *widths], [0, *(v.mean() for v in values)], color=[GRAY, *[BLUE] * len(widths)], width=0.6)
        means, spreads = [v.mean() for v in values], [deviation(v) for v in values]
        rates.errorbar(widths, means, spreads, fmt="none", ecolor="black", capsize=4)
        for place, value in enumerate([0, *(v.mean() for v in values)]):
            rates.text(place, value + 4, f"{value:.0f} %", ha="center")
        rates.set(title="Random starts that find a solution", xlabel="hidden units", ylabel="percent", ylim=(0, 112))


EXPERIMENT = Experiment(
    name="xor",
    claim="No linear model can represent XOR; two hidden relu units can, and more of them are found more easily.",
    source="Goodfellow, Bengio and Courville, Deep Learning (2016), section 6.1",
    options=Config,
    measure=measure,
    judge=judge,
    draw=draw,
    smoke={"seeds": 2, "starts": 5, "steps": 50, "widths": (2, 4)},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return EXPERIMENT.run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
