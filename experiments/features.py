"""Hidden layers learn features: digits come apart layer by layer, where a linear model has one template a class.

A deep relu network and a linear classifier are trained on handwritten digits. Of each layer: how much of the variance
is between the classes, and how well the two first principal components tell the digits apart. Of the units: which
images they respond to most. Of the weights: how much they are like the average digits.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcnn as fnn
from experiments.common import record
from experiments.common.claims import Check, Experiment, Options, deviation, more, spread
from experiments.common.figure import BLUE, VERMILION, figure

FAVOURITES = 9  # images that a unit responds to most
SHOWN = 10  # units in the figure
DECAYED, PLAIN = "linear, weight decay", "linear, no weight decay"
UNTRAINED = 0.1  # of the gain after training, at most this much may be there before it
CLASSES = 10
# Ten colours, of which neighbours among the digits differ in lightness too; the marks are the digits themselves.
COLORS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7A5195", "#56B4E9", "#8C564B", "#666666")


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Trains a deep network and a linear model on scikit-learn's digits, and looks into them."""

    depth: int = 4
    """Hidden layers."""
    width: int = 32
    """Units in each of them."""
    epochs: int = 100
    """Times that the network goes through the training examples."""
    linear_epochs: int = 1000
    """The same of the linear models: without weight decay their weights change for long."""
    learning_rate: float = 0.003
    """Adam's, falling to 0 by a cosine."""
    l2: float = 1e-3
    """Weight decay, of the network and of one of the two linear models; the other has none."""

    at_least: ClassVar = {"width": 2}  # to draw a plane of
    at_most: ClassVar = {"width": 10_000, "depth": 100}


def network(depth: int, width: int) -> fnn.Serial:
    """Dense and relu layers in turn, and a dense one of logits."""
    hidden = [layer for _ in range(depth) for layer in (fnn.Dense(width), fnn.Relu())]
    return fnn.Serial(*hidden, fnn.Dense(CLASSES))


def measure(config: Config) -> dict[str, Any]:
    """Of each seed by layer: shares of variance, accuracies in the plane, favourites; and likeness to averages."""
    (x, y), test = fnn.data.load_digits().arrays()
    net, line = network(config.depth, config.width), fnn.Dense(CLASSES)
    deep = train(config, net, (config.l2,), config.epochs)
    linear = train(config, line, (0.0, config.l2), config.linear_epochs)
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((deep.state.params, linear.state.params))):
        raise record.UsageError(
            f"--learning-rate {config.learning_rate:g} or --l2 is too large: not all weights are finite"
        )
    averages = np.stack([x[y == k].mean(0) for k in range(CLASSES)]) - x.mean(0)
    numbers: dict[str, Any] = {
        "accuracy": {"network": 100 * deep["valid accuracy"][0, :, -1]},
        "between": [], "in the plane": [], "purity": [], "before training": {"between": [], "purity": []},
        "likeness": {"hidden units": []}, "own average": {},
    }  # fmt: skip
    for seed in range(config.seeds):
        params = jax.tree.map(lambda leaf, i=seed: leaf[0, i], deep.state.params)
        train_layers, test_layers = layers_of(net, params, x), layers_of(net, params, test[0])
        planes = [plane(a, y, b, test[1]) for a, b in zip(train_layers, test_layers, strict=True)]
        favourites = [favourites_of(layer) for layer in train_layers[1:]]
        numbers["between"].append([between(layer, test[1]) for layer in test_layers])
        numbers["in the plane"].append([accuracy for accuracy, _ in planes])
        numbers["purity"].append([purity(y[favourite]) for favourite in favourites])
        w = np.asarray(params[0]["w"].T)[alive(train_layers[1])]
        numbers["likeness"]["hidden units"].append(np.abs(correlation(w, averages)).max(1).mean())
        start = net.init(jax.random.split(jax.random.key(seed))[0], x.shape[1:])  # as `fit_many` draws it
        numbers["before training"]["between"].append(
            [between(layer, test[1]) for layer in layers_of(net, start, test[0])]
        )
        numbers["before training"]["purity"].append(
            [purity(y[favourites_of(layer)]) for layer in layers_of(net, start, x)[1:]]
        )
        if seed == 0:
            numbers["seen"] = {
                "points": aligned([points for _, points in planes]), "averages": averages,
                "w": w[:SHOWN], "favourites": favourites[0][:SHOWN],
            }  # fmt: skip
    for i, l2 in enumerate(linear.axes["l2"]):
        name = DECAYED if l2 > 0 else PLAIN
        w = np.asarray(linear.state.params["w"][i]).swapaxes(1, 2)  # (seeds, classes, pixels)
        w = w - w.mean(1, keepdims=True)  # which no probability depends on
        likeness = np.stack([correlation(one, averages) for one in w])
        numbers["accuracy"][name] = 100 * linear["valid accuracy"][i, :, -1]
        numbers["likeness"][name] = np.diagonal(likeness, axis1=1, axis2=2).mean(1)
        numbers["own average"][name] = (likeness.argmax(2) == np.arange(CLASSES)).sum(1)
        numbers["seen"][name] = w[0]
    return numbers


def train(config: Config, net: fnn.Layer, penalties: tuple[float, ...], epochs: int) -> fnn.train.Ensemble:
    """For each penalty and seed."""
    data, test = fnn.data.load_digits().arrays()
    schedule = optax.cosine_decay_schedule(config.learning_rate, epochs * -(-len(data[0]) // 64))
    return fnn.train.fit_many(
        lambda l2: fnn.Objective(net, fnn.losses.softmax_cross_entropy, fnn.penalties.l2(l2)), optax.adam(schedule),
        lambda key: net.init(key, data[0].shape[1:]), data, epochs=epochs, batch_size=64, seeds=config.seeds,
        grid={"l2": penalties}, valid=test, valid_every=epochs, metrics={"accuracy": fnn.train.accuracy},
        strategy="vmap", progress=None,
    )  # fmt: skip


def layers_of(net: fnn.Serial, params: Any, x: Any) -> list[np.ndarray]:
    """The pixels, and the units of each hidden layer, (N, D) each."""
    ends = range(0, len(net.layers), 2)
    return [
        np.asarray(fnn.Serial(*net.layers[:i]).apply(params[:i], jnp.asarray(x))) if i else np.asarray(x) for i in ends
    ]


def between(h: np.ndarray, y: np.ndarray) -> float:
    """Of the variance of h, summed over its coordinates, the share that is between the classes' means."""
    within = sum(np.square(h[y == k] - h[y == k].mean(0)).sum() for k in range(CLASSES))
    return float(1 - within / np.square(h - h.mean(0)).sum())


def plane(h: np.ndarray, y: np.ndarray, h_test: np.ndarray, y_test: np.ndarray) -> tuple[float, np.ndarray]:
    """How many percent of the test examples are nearest to their class's mean in the plane of two principal components.

    Plane and means are of the training examples. Also the test examples there, (M, 2).
    """
    mean = h.mean(0)
    axes = np.linalg.svd(h - mean, full_matrices=False)[2][:2].T
    points, points_test = (h - mean) @ axes, (h_test - mean) @ axes
    means = np.stack([points[y == k].mean(0) for k in range(CLASSES)])
    nearest = np.square(points_test[:, None] - means).sum(-1).argmin(1)
    return float(100 * np.mean(nearest == y_test)), points_test


def aligned(planes: list[np.ndarray]) -> list[np.ndarray]:
    """Each plane's points rotated or mirrored to fit those of the plane before: principal components have no sign."""
    made = planes[:1]
    for points in planes[1:]:
        u, _, v = np.linalg.svd(points.T @ made[-1])
        made.append((points @ u @ v).round(3))
    return made


def alive(h: np.ndarray) -> np.ndarray:
    """Which units respond to enough examples to have favourites (units,): weight decay lets some relu units die."""
    return (h > 0).sum(0) >= FAVOURITES


def favourites_of(h: np.ndarray) -> np.ndarray:
    """The examples that each unit responds to most, the most first, (units, 9), of units that are alive."""
    return np.argsort(-h[:, alive(h)], axis=0)[:FAVOURITES].T


def purity(labels: np.ndarray) -> float:
    """The share of the commonest class among each unit's favourites (units, 9), in percent, on average."""
    return float(100 * np.mean([np.bincount(row).max() / len(row) for row in labels]))


def correlation(a: Any, b: Any) -> np.ndarray:
    """Over the pixels, of each row of a with each of b."""
    a, b = (np.asarray(v) - np.asarray(v).mean(1, keepdims=True) for v in (a, b))
    return a @ b.T / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))


def judge(numbers: dict[str, Any]) -> list[Check]:
    """Classes come apart with depth, by training; units have favourite classes; the linear model has templates."""
    shares, before = np.array(numbers["between"], float), np.array(numbers["before training"]["between"], float)
    gain, gain_before = shares[:, -1] - shares[:, 0], before[:, -1] - before[:, 0]
    flat = np.array(numbers["in the plane"], float)
    pure, pure_before = np.array(numbers["purity"], float), np.array(numbers["before training"]["purity"], float)
    likeness = numbers["likeness"]
    own = {name: np.array(values) for name, values in numbers["own average"].items()}
    return [
        Check(
            "Of held-out digits the share of the variance that is between classes grows at every hidden layer, by more "
            "than three standard errors",
            "; ".join(spread(layer) for layer in shares.T) + ", from the pixels to the last layer",
            all(more(b - a, [0.0]) for a, b in itertools.pairwise(shares.T)),
        ),
        Check(
            f"Training does that: before it, at most {UNTRAINED:g} of this gain is there",
            f"{spread(gain_before)} before, {spread(gain)} after training, from the pixels to the last layer",
            bool(gain_before.mean() <= UNTRAINED * gain.mean()),
        ),
        Check(
            "In the plane of the first two principal components more held-out digits are nearest to their class's mean "
            "in the last hidden layer than in the pixels, by more than three standard errors",
            f"{spread(flat[:, 0])} % in the pixels, {spread(flat[:, -1])} % in the last layer",
            more(flat[:, -1], flat[:, 0]),
        ),
        Check(
            f"Of the {FAVOURITES} training images that a unit responds to most, more are of one class than before "
            "training, in each layer by more than three standard errors",
            "; ".join(f"layer {i}: {spread(a)} % ({b.mean():.3g} % before)" for i, (a, b) in
                      enumerate(zip(pure.T, pure_before.T, strict=True), 1)),
            all(more(a, b) for a, b in zip(pure.T, pure_before.T, strict=True)),
        ),
        Check(
            "Each class's weights in a linear model are more like its own average digit than like any other's, in each "
            "seed, with weight decay and without",
            "; ".join(f"{np.sum(v)} of {CLASSES * len(v)} ({name})" for name, v in own.items()),
            all(bool(np.all(v == CLASSES)) for v in own.values()),
        ),
        Check(
            "With weight decay in both, they are more like it than a hidden unit's weights are like the average that "
            "they are most like (absolute correlations over the pixels), by more than three standard errors",
            f"{spread(likeness[DECAYED])}; units of the first hidden layer: {spread(likeness['hidden units'])} (linear "
            f"model without weight decay: {spread(likeness[PLAIN])})",
            more(likeness[DECAYED], likeness["hidden units"]),
        ),
    ]  # fmt: skip


def montage(images: Any, columns: int, gap: int = 1) -> np.ndarray:
    """Images (N, height, width) in rows, with a gap of some pixels, as one."""
    images = np.asarray(images, float)
    rows = -(-len(images) // columns)
    padded = np.pad(images, ((0, rows * columns - len(images)), (0, gap), (0, gap)), constant_values=np.nan)
    _, height, width = padded.shape
    whole = padded.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
    return whole[:-gap, :-gap]


def draw(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """Weights as images, with averages and favourites, and shares of variance; below, the digits in the plane."""
    dataset = fnn.data.load_digits()
    seen, likeness, shares = numbers["seen"], numbers["likeness"], 100 * np.array(numbers["between"])
    r = {name: np.mean(likeness[name]) for name in (DECAYED, "hidden units")}
    with figure(path, 13, 8.2) as fig:
        halves: Any = fig.subfigures(2, 1, height_ratios=(1.3, 1))
        above, below = halves
        panels = above.subplot_mosaic(
            [["averages", "units", "shares"], ["linear", "favourites", "shares"]], width_ratios=(1, 1, 0.75)
        )
        for name, images, title in (
            ("averages", seen["averages"], "Average digits, less the mean of all"),
            ("linear", seen[DECAYED], f"Linear model's weights: correlation {r[DECAYED]:.2f} with the average"),
            (
                "units",
                seen["w"],
                f"First-layer units' weights: correlation {r['hidden units']:.2f} with closest average",
            ),
        ):
            scaled = [np.reshape(one, (8, 8)) / np.abs(one).max() for one in images]
            panels[name].imshow(montage(scaled, SHOWN // 2), cmap="gray", vmin=-1, vmax=1)
            panels[name].set_title(title, fontsize=10)
        favourites = [montage(dataset.x_train[np.array(unit)], 3) for unit in seen["favourites"]]
        panels["favourites"].imshow(montage(favourites, SHOWN // 2, gap=4), cmap="gray")
        title = f"The {FAVOURITES} training images that excite each of these units most"
        panels["favourites"].set_title(title, fontsize=10)
        for name in ("averages", "linear", "units", "favourites"):
            panels[name].set_axis_off()
        layers, axes = np.arange(shares.shape[1]), panels["shares"]
        before = 100 * np.array(numbers["before training"]["between"])
        for values, color, style, label in (
            (shares, BLUE, "o-", "after training"), (before, VERMILION, "s--", "before training"),
        ):  # fmt: skip
            axes.errorbar(layers, values.mean(0), deviation(values, 0), fmt=style, color=color, capsize=4, label=label)
        axes.set(xlabel="hidden layer (0: pixels)", ylabel="percent of the variance", ylim=(0, 100), xticks=layers)
        axes.set_title("How much of the variance\nis between classes", fontsize=10)
        axes.legend(loc="lower left")
        for i, (axes, points) in enumerate(zip(below.subplots(1, len(layers)), seen["points"], strict=True)):
            for k, color in enumerate(COLORS):
                at = np.array(points)[dataset.y_test == k]
                axes.scatter(at[:, 0], at[:, 1], s=22, marker=f"${k}$", color=color, linewidths=0.2)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{f'hidden layer {i}' if i else 'pixels'}: {shares[0, i]:.0f} %", fontsize=10)
        below.suptitle(
            "Held-out digits in the plane of each layer's first two principal components, and how much of the layer's "
            "variance is between classes", x=0.01, ha="left", fontsize=11,
        )  # fmt: skip


EXPERIMENT = Experiment(
    name="features",
    claim="Hidden layers learn features that take digits apart layer by layer; a linear model has a template a class.",
    source="Goodfellow, Bengio and Courville, Deep Learning (2016), chapters 1 and 6",
    options=Config,
    measure=measure,
    judge=judge,
    draw=draw,
    smoke={"seeds": 1, "depth": 2, "width": 16, "epochs": 2, "linear_epochs": 2},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return EXPERIMENT.run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
