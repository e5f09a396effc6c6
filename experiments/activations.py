"""Every activation's derivative is written by hand, and is that of autodiff, on both sides of each kink and at it."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcnn as fnn
from experiments.common.claims import Check, Experiment, Options
from experiments.common.figure import BLUE, GRAY, VERMILION, figure

ACTIVATIONS: dict[str, tuple[fnn.Layer, tuple[float, ...]]] = {  # and where they have kinks
    "step": (fnn.Step(), (0.0,)),
    "sigmoid": (fnn.Sigmoid(), ()),
    "tanh": (fnn.Tanh(), ()),
    "relu": (fnn.Relu(), (0.0,)),
    "leaky relu": (fnn.LeakyRelu(0.1), (0.0,)),
    "prelu, slope 0.25": (fnn.Prelu(), (0.0,)),
    "absolute value": (fnn.Absolute(), (0.0,)),
    "swish": (fnn.Swish(1.5), ()),
    "hard swish": (fnn.HardSwish(), (-3.0, 3.0)),
    "softplus": (fnn.Softplus(), ()),
}
TARGETS = {"maxout learns $x^2 / 4$": lambda x: x**2 / 4, "maxout learns $|x|$": jnp.abs}
MARK = 1e-14  # float64: the same formulas in another order
EDGE = 4.0


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Compares the derivatives, and lets a maxout unit learn its own shape."""

    points: int = 10000
    """Random places at which derivatives are compared, for each seed; kinks are added."""
    pieces: int = 5
    """Of the maxout unit."""
    steps: int = 2000
    """Steps of Adam for it."""


def measure(config: Config) -> dict[str, Any]:
    """Differences at random places and at kinks, curves, and learned shapes."""
    numbers: dict[str, Any] = {"difference": {}, "curves": {}, "kinks": {}, "maxout": {}}
    grid = np.linspace(-EDGE, EDGE, 201)
    with jax.enable_x64(True):
        for name, (layer, kinks) in ACTIVATIONS.items():
            draws = [np.random.default_rng(seed).uniform(-EDGE, EDGE, config.points) for seed in range(config.seeds)]
            numbers["difference"][name] = [
                furthest(layer, layer.init(jax.random.key(0), (1,)), np.append(x, kinks)) for x in draws
            ]
            numbers["kinks"][name] = kinks
            numbers["curves"][name] = curves(layer, layer.init(jax.random.key(0), (1,)), grid)
    numbers["grid"] = grid
    for name, target in TARGETS.items():
        numbers["maxout"][name] = learned(config, target, grid)
    return numbers


def curves(layer: fnn.Layer, params: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """f(x) and f'(x) by the rule and by autodiff (P,)."""
    a = jnp.asarray(x)[:, None]
    y, pullback = fnn.backprop.vjp(layer, params, a)
    _, by_rule = pullback(jnp.ones_like(y))
    by_autodiff = jax.grad(lambda a: jnp.sum(layer.apply(params, a)))(a)
    return {name: np.ravel(one) for name, one in (("y", y), ("by rule", by_rule), ("by autodiff", by_autodiff))}


def furthest(layer: fnn.Layer, params: Any, x: np.ndarray) -> float:
    """The largest difference between the two derivatives."""
    found = curves(layer, params, x)
    return float(np.abs(found["by rule"] - found["by autodiff"]).max())


def learned(config: Config, target: Any, grid: np.ndarray) -> dict[str, Any]:
    """What a maxout unit that was trained to be `target` is: curves, affine pieces, kinks, of the best of the seeds."""
    net = fnn.Maxout(1, pieces=config.pieces)
    x = np.linspace(-EDGE, EDGE, 256, dtype=np.float32)[:, None]
    many = fnn.train.fit_many(
        fnn.Objective(net, fnn.losses.squared_error), optax.adam(0.02), lambda key: net.init(key, (1,)),
        (x, np.asarray(target(x))), epochs=config.steps, batch_size=256, seeds=config.seeds, strategy="vmap",
        progress=None,
    )  # fmt: skip
    errors = many["loss"][:, -1]
    params = jax.tree.map(lambda leaf: leaf[int(np.argmin(errors))], many.state.params)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: np.asarray(leaf, float), params)
        pieces = params["w"][:, :, 0].T * grid + params["b"][:, :1]  # (pieces, P)
        ends = np.flatnonzero(np.diff(pieces.argmax(axis=0)))  # where another piece is the largest from the next point
        rng = np.random.default_rng(0)
        return {
            "errors": errors, "pieces": pieces, "kinks": (grid[ends] + grid[ends + 1]) / 2,
            "curves": curves(net, params, grid),
            "difference": [furthest(net, params, rng.uniform(-EDGE, EDGE, config.points))],
        }  # fmt: skip


def judge(numbers: dict[str, Any]) -> list[Check]:
    """No derivative differs; maxout's learned shapes are right."""
    shapes = numbers["maxout"]
    differences = numbers["difference"] | {name: one["difference"] for name, one in shapes.items()}
    worst = {name: np.max(values) for name, values in differences.items()}
    name = max(worst, key=lambda key: np.nan_to_num(worst[key], nan=np.inf))
    error = {name: np.min(one["errors"]) for name, one in shapes.items()}
    return [
        Check(
            f"Derivatives by rule and by autodiff differ by at most {MARK:g} in float64, kinks included",
            f"of {len(worst)}, two learned ones among them, {name} differs most, by {worst[name]:.1e}",
            all(bool(value <= MARK) for value in worst.values()),
        ),
        Check(
            "A maxout unit learns convex shapes from data: a mean squared error below 0.02 where targets reach 4",
            ", ".join(f"{value:.4f} ({name.removeprefix('maxout learns ')})" for name, value in error.items()),
            all(bool(value < 0.02) for value in error.values()),
        ),
    ]


def draw(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """Each activation with its derivative, and below the shapes that maxout has learned."""
    x = np.array(numbers["grid"])
    shown = {name: {"curves": curve, "kinks": numbers["kinks"][name]} for name, curve in numbers["curves"].items()}
    named: dict[str, Any] = {}
    with figure(path, 11, 8) as fig:
        panels = fig.subplots(3, 4, sharex=True).ravel()
        for axes, (name, one) in zip(panels, (shown | numbers["maxout"]).items(), strict=True):
            for kink in one["kinks"]:
                axes.axvline(kink, color=GRAY, linewidth=0.8, linestyle=":", label="kink")
            for piece in one.get("pieces", ()):
                axes.plot(x, piece, color=GRAY, linewidth=0.8, label="its affine pieces")
            jump = 0.1 if "pieces" in one else 0.4
            axes.plot(x, broken(one["curves"]["y"], name), color="black", label="f(x)")
            axes.plot(x, broken(one["curves"]["by rule"], name, jump), color=BLUE, label="f'(x), by rule")
            axes.plot(x[::10], np.array(one["curves"]["by autodiff"])[::10], "o", color=VERMILION, markersize=3,
                      fillstyle="none", label="f'(x), by autodiff")  # fmt: skip
            axes.set(title=name, ylim=(-1.9, 3.2))
            named |= {name: handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
        fig.legend(named.values(), named.keys(), loc="outside lower center", ncols=5)
        fig.suptitle("Activations and their derivatives, written by hand and by autodiff", x=0.01, ha="left")


def broken(values: Any, name: str, jump: float = 0.9) -> np.ndarray:
    """With a gap where a function jumps, in the place of a steep line."""
    values = np.array(values, float)
    if name in TARGETS or ACTIVATIONS[name][1]:
        values[1:][np.abs(np.diff(values)) > jump] = np.nan
    return values


EXPERIMENT = Experiment(
    name="activations",
    claim="The derivative of every activation is written by hand, and is that of autodiff, at kinks too.",
    source="Goodfellow, Bengio and Courville, Deep Learning (2016), section 6.3; Ramachandran, Zoph and Le (2017)",
    options=Config,
    measure=measure,
    judge=judge,
    draw=draw,
    smoke={"seeds": 2, "points": 50, "steps": 20},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return EXPERIMENT.run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
