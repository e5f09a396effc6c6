"""Depth folds space: a second layer draws its lines once in every fold of the first, so that regions multiply.

The linear regions of networks of absolute values and relus are counted exactly, with fractions in the place of floating
numbers: the plane is cut, layer by layer, along the line where each unit has its kink.
"""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from matplotlib.collections import PolyCollection

import funcnn as fnn
from experiments.common.claims import Check, Experiment, Options
from experiments.common.figure import BLUE, GRAY, GREEN, SKY, VERMILION, figure

BOX = 10**10  # the plane, as far as it is looked at: all lines of such integers as are drawn here meet within
SAME = 1e-5  # float32: network and affine pieces, over the largest output
Point = tuple[Fraction, ...]


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Counts linear regions of networks on the line and in the plane."""

    folds: int = 8
    """Layers of the network that folds the line."""
    plane_folds: int = 4
    """Layers of the network that folds the plane, which has four times the regions with each."""

    at_most: ClassVar = {"folds": 12, "plane_folds": 6}  # 4,096 regions each, in exact arithmetic


@dataclasses.dataclass(frozen=True)
class Piece:
    """A convex polygon, or an interval, on which the network is affine so far: y = a x + b, a (K, D), b (K,)."""

    corners: list[Point]
    a: np.ndarray
    b: np.ndarray


def pieces(layers: Sequence[tuple[Any, Any, str]], dimension: int) -> list[Piece]:
    """The linear regions of a network: layers are (w (D, K), b (K,), "relu" or "absolute")."""
    ends = (Fraction(-BOX), Fraction(BOX))
    corners = (
        [(e,) for e in ends] if dimension == 1 else [(ends[i], ends[j]) for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))]
    )
    exact = np.array([[Fraction(int(i == j)) for j in range(dimension)] for i in range(dimension)], dtype=object)
    found = [Piece(corners, exact, np.array([Fraction(0)] * dimension, dtype=object))]
    for *arrays, activation in layers:
        w, b = (np.vectorize(Fraction, otypes=[object])(array) for array in arrays)
        found = [
            cell for piece in found for cell in cut(Piece(piece.corners, w.T @ piece.a, w.T @ piece.b + b), activation)
        ]
    return found


def cut(piece: Piece, activation: str) -> list[Piece]:
    """The piece along the kink of each unit, with the activation applied to what each part has."""
    parts = [(piece.corners, [])]
    for row, offset in zip(piece.a, piece.b, strict=True):
        after = []
        for corners, signs in parts:
            values = [sum(r * x for r, x in zip(row, corner, strict=True)) + offset for corner in corners]
            for side in (1, -1):
                kept = side_of(corners, [side * value for value in values])
                if kept:
                    after.append((kept, [*signs, side]))
        parts = after
    low = Fraction(0) if activation == "relu" else Fraction(-1)
    made = []
    for corners, signs in parts:
        slopes = np.array([Fraction(1) if sign > 0 else low for sign in signs], dtype=object)
        made.append(Piece(corners, slopes[:, None] * piece.a, slopes * piece.b))
    return made


def side_of(corners: list[Point], values: list[Fraction]) -> list[Point]:
    """The part of a convex polygon or interval where a linear function, given at the corners, is positive."""
    if max(values) <= 0:
        return []
    kept: list[Point] = []
    pairs = range(len(corners)) if len(corners) > 2 else range(1)
    for i in pairs:
        j = (i + 1) % len(corners)
        (p, u), (q, v) = (corners[i], values[i]), (corners[j], values[j])
        ends = [p] if len(corners) > 2 else [p, q]
        kept += [end for end, value in zip(ends, (u, v), strict=False) if value >= 0]
        if u * v < 0:
            t = u / (u - v)
            kept.append(tuple(x + t * (y - x) for x, y in zip(p, q, strict=True)))
    return kept if len(corners) > 2 else sorted(set(kept))


def random_layer(seed: int, units: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Lines of random integers, in general position with near certainty."""
    rng = np.random.default_rng(seed)
    return rng.integers(-9999, 10000, (2, units)), rng.integers(-9999, 10000, units), "relu"


def folded(seed: int) -> list[tuple[Any, Any, str]]:
    """Two layers of 4 relu units: |x_1| and |x_2| from two units each, then 4 lines that cut the positive quadrant."""
    first = np.array([[1, -1, 0, 0], [0, 0, 1, -1]])
    rng = np.random.default_rng(seed)
    while True:  # until the 6 crossings of the lines are all inside
        slopes = rng.integers(1, 10, (2, 4))
        offsets = -rng.integers(20, 99, 4)
        if crossings_inside(slopes, offsets):
            return [(first, np.zeros(4, int), "relu"), (np.repeat(slopes, 2, axis=0), offsets, "relu")]


def crossings_inside(w: np.ndarray, b: np.ndarray) -> bool:
    """Whether each pair of lines w_k x + b_k = 0 crosses once, at another place, in the open positive quadrant."""
    points = set()
    for i in range(len(b)):
        for j in range(i):
            det = int(w[0, i] * w[1, j] - w[0, j] * w[1, i])
            if det == 0:
                return False
            x = Fraction(int(-b[i] * w[1, j] + b[j] * w[1, i]), det)
            y = Fraction(int(-w[0, i] * b[j] + w[0, j] * b[i]), det)
            if x <= 0 or y <= 0:
                return False
            points.add((x, y))
    return len(points) == len(b) * (len(b) - 1) // 2


def tent(layers: int, dimension: int = 1) -> list[tuple[Any, Any, str]]:
    """z <- | 2 z - 1 |, one absolute value a layer and dimension: each layer folds [0, 1]^D upon itself."""
    return [(2 * np.eye(dimension, dtype=int), -np.ones(dimension, int), "absolute")] * layers


def as_many_parameters(layers: int) -> int:
    """The units of one layer in the plane, of 3 parameters each, for those of so many layers of two, of 6 each."""
    return 6 * layers // 3


def most(units: int, dimension: int) -> int:
    """The most regions of one layer: sum_j binomial(units, j), j = 0..dimension."""
    return sum(math.comb(units, j) for j in range(dimension + 1))


def measure(config: Config) -> dict[str, Any]:
    """Counts by seed, and the polygons of one network of each kind."""
    numbers: dict[str, Any] = {"one layer of 10": [], "one layer of 8": [], "two layers of 4": [], "apart": []}
    for seed in range(config.seeds):
        networks = {
            "one layer of 10": [random_layer(seed, 10)], "one layer of 8": [random_layer(seed, 8)],
            "two layers of 4": folded(seed),
        }  # fmt: skip
        for name, layers in networks.items():
            found = pieces(layers, 2)
            numbers[name].append(len(found))
            numbers["apart"].append(apart(layers, found))
    numbers["polygons"] = {
        "one layer of 8": polygons(pieces([random_layer(0, 8)], 2)), "two layers of 4": polygons(pieces(folded(0), 2))
    }  # fmt: skip
    depths = range(1, config.folds + 1)
    numbers["folds"] = {str(depth): len(pieces(tent(depth), 1)) for depth in depths}
    numbers["one layer on the line"] = {str(depth): most(depth, 1) for depth in depths}
    plane = range(1, config.plane_folds + 1)
    numbers["folds of the plane"] = {str(depth): len(pieces(tent(depth, 2), 2)) for depth in plane}
    numbers["one layer in the plane"] = {str(depth): most(as_many_parameters(depth), 2) for depth in plane}
    x = np.linspace(0, 1, 1025)
    numbers["curves"] = {str(depth): evaluated(tent(depth), x[:, None]).ravel() for depth in (1, 2, 3)}
    return numbers


def evaluated(layers: Sequence[tuple[Any, Any, str]], x: np.ndarray) -> np.ndarray:
    """By the library's own layers (N, K)."""
    net: list[fnn.Layer] = []
    params: list[Any] = []
    for w, b, activation in layers:
        net += [fnn.Dense(w.shape[1]), fnn.Relu() if activation == "relu" else fnn.Absolute()]
        params += [{"w": jnp.asarray(w, jnp.float32), "b": jnp.asarray(b, jnp.float32)}, ()]
    return np.asarray(fnn.Serial(*net).apply(tuple(params), jnp.asarray(x, jnp.float32)))


def apart(layers: Any, found: list[Piece]) -> float:
    """The largest difference between the library's outputs and the affine pieces at their middles, over the largest."""
    middles = [[float(sum(xs) / len(xs)) for xs in zip(*piece.corners, strict=True)] for piece in found]
    exact = [
        piece.a.astype(float) @ np.array(middle) + piece.b.astype(float)
        for piece, middle in zip(found, middles, strict=True)
    ]
    outputs = evaluated(layers, np.array(middles))
    return float(np.abs(outputs - np.array(exact)).max() / np.abs(exact).max())


def polygons(found: list[Piece]) -> list[list[list[float]]]:
    """Corners as floating numbers."""
    return [[[float(x) for x in corner] for corner in piece.corners] for piece in found]


def judge(numbers: dict[str, Any]) -> list[Check]:
    """The formulas, and depth against width."""
    one, eight, two = (numbers[f"{name}"] for name in ("one layer of 10", "one layer of 8", "two layers of 4"))
    folds = {int(depth): count for depth, count in numbers["folds"].items()}
    deepest, plane = max(folds), numbers["folds of the plane"]
    return [
        Check(
            f"For every seed one layer of 10 units cuts the plane into {most(10, 2)} regions, of 8 units into "
            f"{most(8, 2)}, as the formula says",
            f"{seen(one)} and {seen(eight)}",
            set(one) == {most(10, 2)} and set(eight) == {most(8, 2)},
        ),
        Check(
            f"Two layers of 4 units make at least 44, more than the {most(8, 2)} of any one layer of as many units",
            seen(two),
            min(two) >= 44,
        ),
        Check(
            "On the line each layer of one absolute value doubles the regions: 2^L; one layer of L units has L + 1",
            f"{folds[deepest]} with {deepest} layers, against {most(deepest, 1)}",
            all(count == 2**depth for depth, count in folds.items()),
        ),
        Check(
            "In the plane L layers of two absolute values make 4^L, for L > 1 more than one layer of as many "
            "parameters",
            "; ".join(f"{deep} against {numbers['one layer in the plane'][depth]}" for depth, deep in plane.items()),
            all(count == 4 ** int(depth) for depth, count in plane.items())
            and all(plane[d] > numbers["one layer in the plane"][d] for d in plane if d != "1"),
        ),
        Check(
            f"The regions are those of the library's networks: affine on each, within {SAME:g}",
            f"furthest {np.max(numbers['apart']):.1e}",
            bool(np.max(numbers["apart"]) <= SAME),
        ),
    ]


def seen(counts: Sequence[int]) -> str:
    """The counts of all seeds."""
    return " or ".join(str(count) for count in sorted(set(counts))) + f" in {len(counts)} seeds"


def draw(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """The folded line, its count, and the plane in regions."""
    with figure(path, 10, 8) as fig:
        panels = fig.subplots(2, 2)
        x = np.linspace(0, 1, len(numbers["curves"]["1"]))
        for (depth, curve), style in zip(numbers["curves"].items(), ("-", "--", ":"), strict=True):
            panels[0, 0].plot(x, curve, style, label=f"{depth} layer{'s' if depth != '1' else ''}")
        panels[0, 0].set(
            title="Each layer folds the line: z <- |2 z - 1|", xlabel="x", ylabel="output", ylim=(-0.02, 1.35)
        )
        panels[0, 0].legend(ncols=3, loc="upper center")
        for name, label, style, color in (
            ("folds of the plane", "plane: L layers of two units", "^-", GREEN),
            ("folds", "line: L layers of one unit", "o-", BLUE),
            ("one layer in the plane", "plane: one layer, as many parameters", "^--", GRAY),
            ("one layer on the line", "line: one layer of L units, as many parameters", "s--", VERMILION),
        ):
            panels[0, 1].plot([int(d) for d in numbers[name]], numbers[name].values(), style, color=color, label=label)
        panels[0, 1].set(title="Regions, counted exactly (absolute values)", xlabel="layers L", ylabel="regions")
        panels[0, 1].set_yscale("log", base=2)
        panels[0, 1].set_ylim(1.6, 3000)
        panels[0, 1].legend(fontsize=8, loc="upper left")
        for axes, (name, shapes) in zip(panels[1], numbers["polygons"].items(), strict=True):
            inner = np.array([corner for shape in shapes for corner in shape if max(map(abs, corner)) < BOX])
            low, high = inner.min(0), inner.max(0)
            margin = 0.15 * (high - low)
            colors = [(SKY, "#FFFFFF", "#DDDDDD", "#F6E3BF", "#CFE9DF")[i % 5] for i in range(len(shapes))]
            axes.add_collection(PolyCollection(shapes, facecolors=colors, edgecolors=GRAY, linewidths=0.8))
            axes.set(xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1]))
            axes.set(title=f"{name} units: {len(shapes)} regions", xlabel="$x_1$", ylabel="$x_2$")
            axes.grid(visible=False)
        panels[1, 1].axhline(0, color=GREEN, linewidth=1.6)
        panels[1, 1].axvline(0, color=GREEN, linewidth=1.6)
        panels[1, 1].set_title(f"{panels[1, 1].get_title(loc='left')} (green: the folds)")


EXPERIMENT = Experiment(
    name="depth_folds_space",
    claim="Depth folds space: a second layer repeats its regions in every fold of the first.",
    source="Montufar, Pascanu, Cho and Bengio, On the Number of Linear Regions of Deep Neural Networks (2014)",
    options=Config,
    measure=measure,
    judge=judge,
    draw=draw,
    smoke={"seeds": 1, "folds": 4, "plane_folds": 2},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return EXPERIMENT.run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
