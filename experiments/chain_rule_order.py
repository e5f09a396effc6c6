"""Backpropagation is dynamic programming: from the output back, each delta made once, its cost is linear in depth.

The same gradients are computed in other orders. The product of the layers' Jacobians from the input on needs products
of matrices where from the output back it needs those of a vector. Without reuse, each layer's gradient starts anew from
the output; and where each value is used twice, a derivative without memory visits every path.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

import funcnn as fnn
from experiments.common.claims import Check, Experiment, Options, spread
from experiments.common.figure import BLUE, GREEN, ORANGE, VERMILION, figure

SAME = 1e-12  # float64, over the largest number


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Counts multiplications, and times them, against depth."""

    depths: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    """Of the chain."""
    paths: tuple[int, ...] = (2, 4, 6, 8, 10, 12, 14)
    """Depths at which each value is used twice."""
    width: int = 128
    """Of every layer of the chain."""
    repeats: int = 5
    """Of each measured time, of which the median counts."""

    several: ClassVar = {"depths": 3, "paths": 3}  # the growth is over the deeper half
    at_most: ClassVar = {"paths": 20}  # which takes 2^20 paths


class Counted:
    """Products of arrays, and how many multiplications they took."""

    def __init__(self) -> None:
        self.multiplications = 0

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """a b, of a vector or matrix a with a matrix b."""
        self.multiplications += a.size * b.shape[-1]
        return a @ b


def backward(count: Counted, delta: np.ndarray, jacobians: list[np.ndarray]) -> list[np.ndarray]:
    """The deltas of all layers, from the output back, each made of the one behind it."""
    deltas = [delta]
    for j in reversed(jacobians):
        deltas.append(count.product(deltas[-1], j))
    return deltas[::-1]


def anew(count: Counted, delta: np.ndarray, jacobians: list[np.ndarray]) -> list[np.ndarray]:
    """The deltas of all layers, each from the output again."""
    return [backward(count, delta, jacobians[layer:])[0] for layer in range(len(jacobians))] + [delta]


def forward(count: Counted, delta: np.ndarray, jacobians: list[np.ndarray]) -> list[np.ndarray]:
    """The delta at the input alone: the Jacobians are multiplied from the input on."""
    whole = jacobians[0]
    for j in jacobians[1:]:
        whole = count.product(j, whole)
    return [count.product(delta, whole)]


def without_memory(count: Counted, depth: int, slopes: np.ndarray) -> float:
    """dz_L / dz_0 of z_{k+1} = f(z_k) + g(z_k), with f' and g' in slopes (L, 2): every path by itself."""
    if depth == 0:
        return 1.0
    count.multiplications += 2
    f, g = slopes[depth - 1]
    return f * without_memory(count, depth - 1, slopes) + g * without_memory(count, depth - 1, slopes)


def with_memory(count: Counted, depth: int, slopes: np.ndarray) -> float:
    """The same, each value's derivative once."""
    derivative = 1.0
    for f, g in slopes[:depth]:
        count.multiplications += 2
        derivative = f * derivative + g * derivative
    return derivative


CHAIN: dict[str, Callable[..., Any]] = {"back, reused": backward, "back, anew for each layer": anew, "forward": forward}
PATHS: dict[str, Callable[..., Any]] = {"each path": without_memory, "reused": with_memory}


def measure(config: Config) -> dict[str, Any]:
    """Multiplications and seconds by depth; and whether the deltas are those of the library."""
    numbers: dict[str, Any] = {"depths": config.depths, "paths": config.paths, "width": config.width, "apart": []}
    numbers |= {"count": {}, "seconds": {}}
    for seed in range(config.seeds):
        rng = np.random.default_rng(seed)
        jacobians, delta, deltas = network(config, seed)
        made = [method(Counted(), delta, jacobians)[0] for method in CHAIN.values()]
        numbers["apart"].append(np.max([np.abs(a - deltas).max() / np.abs(deltas).max() for a in made]))
        for name, method in CHAIN.items():
            found = [timed(config, method, delta, jacobians[-depth:]) for depth in config.depths]
            note(numbers, name, found)
        slopes = rng.uniform(0.2, 0.5, (max(config.paths), 2))
        for name, method in PATHS.items():
            note(numbers, name, [timed(config, method, depth, slopes) for depth in config.paths])
    return numbers


def note(numbers: dict[str, Any], name: str, found: list[tuple[int, float]]) -> None:
    """Keeps what one seed gave."""
    counts, seconds = zip(*found, strict=True)
    numbers["count"][name] = counts
    numbers["seconds"].setdefault(name, []).append(seconds)


def network(config: Config, seed: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """The Jacobians of a tanh network's layers at one example, the delta at its output, and that at its input."""
    depth = max(config.depths)
    net = fnn.Serial(*[fnn.Serial(fnn.Dense(config.width), fnn.Tanh())] * depth)
    with jax.enable_x64(True):
        params = net.init(jax.random.key(seed), (config.width,))
        z = jnp.asarray(np.random.default_rng(seed).normal(size=(1, config.width)))
        jacobians = []
        values = z
        for layer, own in zip(net.layers, params, strict=True):
            after = layer.apply(own, values)
            jacobians.append(np.asarray((1 - after[0] ** 2)[:, None] * own[0]["w"].T))
            values = after
        delta = np.random.default_rng(seed + 1).normal(size=config.width)
        _, pullback = fnn.backprop.vjp(net, params, z)
        return jacobians, delta, np.asarray(pullback(jnp.asarray(delta)[None])[1][0])


def timed(config: Config, method: Callable[..., Any], *arguments: Any) -> tuple[int, float]:
    """Multiplications, and the median of the seconds."""
    seconds, count = [], Counted()
    for _ in range(config.repeats):
        count = Counted()
        began = time.perf_counter()
        method(count, *arguments)
        seconds.append(time.perf_counter() - began)
    return count.multiplications, float(np.median(seconds))


def exponent(depths: Any, values: Any) -> float:
    """The slope of log value against log depth, over the deeper half."""
    half = len(depths) // 2
    return float(np.polyfit(np.log(depths[half:]), np.log(values[half:]), 1)[0])


def growth(depths: Any, values: Any) -> float:
    """The factor a layer, over the deeper half."""
    half = len(depths) // 2
    return float(np.exp(np.polyfit(np.array(depths[half:]), np.log(values[half:]), 1)[0]))


def judge(numbers: dict[str, Any]) -> list[Check]:
    """The same deltas; linear, quadratic, exponential; vectors against matrices."""
    depths, paths, width = numbers["depths"], numbers["paths"], numbers["width"]
    count = {name: np.array(values, float) for name, values in numbers["count"].items()}
    order = {name: exponent(depths, count[name]) for name in CHAIN}
    times = {name: [exponent(depths, values) for values in numbers["seconds"][name]] for name in CHAIN}
    paths_growth = [growth(paths, values) for values in numbers["seconds"]["each path"]]
    saved = count["forward"][-1] / count["back, reused"][-1]
    seconds = [
        f[-1] / b[-1] for f, b in zip(numbers["seconds"]["forward"], numbers["seconds"]["back, reused"], strict=True)
    ]
    reused, again = "back, reused", "back, anew for each layer"
    return [
        Check(
            f"All orders give the library's delta at the input, within {SAME:g}",
            f"furthest {np.max(numbers['apart']):.1e}",
            bool(np.max(numbers["apart"]) <= SAME),
        ),
        Check(
            "With each delta made once multiplications grow as depth to the power 1 (0.9 to 1.1), anew for each layer "
            "to the power 2 (1.8 to 2.2); seconds to powers below and above 1.5",
            f"powers {order[reused]:.2f} and {order[again]:.2f}; of seconds {spread(times[reused])} and "
            f"{spread(times[again])}",
            bool(
                abs(order[reused] - 1) <= 0.1
                and abs(order[again] - 2) <= 0.2
                and np.mean(times[reused]) < 1.5 < np.mean(times[again])
            ),
        ),
        Check(
            "Where each value is used twice, every path by itself takes twice the multiplications a layer more (1.8 to "
            "2.2), and 1.8 to 2.5 times the seconds",
            f"multiplications {growth(paths, count['each path']):.2f} times, seconds {spread(paths_growth)} times",
            bool(abs(growth(paths, count["each path"]) - 2) <= 0.2 and 1.8 <= np.mean(paths_growth) <= 2.5),
        ),
        Check(
            f"From the input on the Jacobians take at least {width // 2} times the multiplications, half of the width",
            f"{saved:.0f} times, and {spread(seconds)} times the seconds",
            bool(saved >= width // 2),
        ),
    ]


def draw(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """Multiplications and seconds against depth: of a chain left, of a graph with two ways a layer right."""
    styles = {
        "back, reused": (BLUE, "o"), "back, anew for each layer": (VERMILION, "s"), "forward": (ORANGE, "^"),
        "reused": (BLUE, "o"), "each path": (GREEN, "D"),
    }  # fmt: skip
    labels = {
        "back, reused": "from the output back, each delta once", "forward": "from the input on",
        "back, anew for each layer": "from the output back, anew for each layer",
        "reused": "each derivative once", "each path": "every path by itself",
    }  # fmt: skip
    with figure(path, 10, 7) as fig:
        panels = fig.subplots(2, 2, sharex="col")
        for column, (names, depths) in enumerate(((CHAIN, numbers["depths"]), (PATHS, numbers["paths"]))):
            for name in names:
                color, marker = styles[name]
                seconds = np.median(np.array(numbers["seconds"][name]), axis=0)
                for axes, values in zip(panels[:, column], (numbers["count"][name], 1e3 * seconds), strict=True):
                    axes.plot(depths, values, f"{marker}-", color=color, label=labels[name])
            panels[0, column].set(yscale="log", ylabel="multiplications")
            panels[1, column].set(yscale="log", ylabel="milliseconds", xlabel="depth")
            panels[0, column].legend(fontsize=8)
        panels[0, 0].set(xscale="log", title=f"A chain of layers of width {numbers['width']}")
        panels[1, 0].set_xticks(numbers["depths"], [str(depth) for depth in numbers["depths"]])
        panels[1, 0].minorticks_off()
        panels[0, 1].set_title("Each value is used twice: $z_{k+1} = f(z_k) + g(z_k)$")
        fig.suptitle("The same derivatives in several orders: what they cost", x=0.01, ha="left")


EXPERIMENT = Experiment(
    name="chain_rule_order",
    claim="Backpropagation is dynamic programming: linear in depth, of products with a vector. Without memory the cost "
    "is quadratic or exponential, and from the input on it is of products of matrices.",
    source="Goodfellow, Bengio and Courville, Deep Learning (2016), sections 6.5.2 and 6.5.8",
    options=Config,
    measure=measure,
    judge=judge,
    draw=draw,
    smoke={"seeds": 1, "depths": (2, 4, 8), "paths": (2, 3, 4, 5), "width": 8, "repeats": 2},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return EXPERIMENT.run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
