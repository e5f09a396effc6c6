"""Every regularizer lowers the test error where examples are few, and hardly where there are many.

A network is trained on few and on all of MNIST's training images: as it is, and with each regularizer, whose strength
is chosen by the error on training images that are held out.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
import optax

import funcnn as fnn
from experiments.common import networks, record
from experiments.common.claims import Check, Experiment, MnistOptions, more, spread
from experiments.common.figure import BLUE, GRAY, ORANGE, figure
from experiments.common.training import fit_images
from funcnn.data import augment

SETS = ("small", "full")
PART = 500  # images at a time


OF_IMAGES = ("shifts", "rotations")
ALWAYS = ("none", *OF_IMAGES)


@dataclasses.dataclass(frozen=True)
class Config(MnistOptions):
    """One network with each regularizer, on few and on all training images of MNIST."""

    seeds: int = 5
    """Trainings on few images, each on others."""
    full_seeds: int = 2
    """Trainings on all images."""
    examples: int = 1000
    """Training images of the small set; as many others choose the strengths."""
    held_out: int = 10_000
    """Images of the full set that choose the strengths."""
    width: int = 256
    """Units in each of two hidden layers."""
    epochs: int = 60
    """Times to go through the small set, in batches of 50."""
    full_epochs: int = 6
    """Times to go through the full set, in batches of 128."""
    learning_rate: float = 1e-3
    """Adam's, falling to 0 by a cosine."""
    strengths: int = 4
    """Of each regularizer, to choose from, from the weakest on: 1 to 4."""
    only: tuple[str, ...] = ()
    """Regularizers to look at, beside none, shifts and rotations; all unless given."""

    at_most: ClassVar = {"strengths": 4, "examples": 30_000, "held_out": 10_000}  # of 60,000 images

    def check(self) -> None:
        """Raises UsageError for what is no regularizer, or none to look at, too."""
        super().check()
        known = methods(self, fnn.data.load_digits())
        if unknown := [name for name in self.only if name not in known]:
            raise record.UsageError(f"--only takes names of {', '.join(map(repr, known))}, got {unknown[0]!r}")
        if self.only and not set(self.only) - set(ALWAYS):
            raise record.UsageError(f"--only takes a name besides {', '.join(ALWAYS)}, which are looked at anyway")


@dataclasses.dataclass(frozen=True)
class Regularized:
    """How a network is trained, but for the data and the optimizer.

    Attributes:
        net: the network, perhaps with noise.
        loss: of outputs and targets.
        penalty: on the weights.
        augment: random changes to images or labels.
        stops: whether the parameters of the lowest error on held-out images are kept.
    """

    net: fnn.Layer
    loss: fnn.losses.Loss = fnn.losses.softmax_cross_entropy
    penalty: fnn.penalties.Penalty | None = None
    augment: tuple[Any, ...] = ()
    stops: bool = False


Method = Callable[[float], Regularized]


def methods(config: Config, data: fnn.data.Dataset) -> dict[str, tuple[Method, tuple[float, ...]]]:
    """Each regularizer by name, and its strengths to choose from."""
    hidden, classes = [config.width] * 2, data.classes
    plain = networks.mlp(hidden, fnn.Relu(), classes)
    side = data.x_train.shape[1:]

    def noise(std: float) -> fnn.Layer:
        pairs = [(fnn.Dense(width), fnn.Relu(), fnn.GaussianNoise(std)) for width in hidden]
        return fnn.Serial(*(layer for pair in pairs for layer in pair), fnn.Dense(classes))

    def dropout(rate: float) -> fnn.Layer:
        return networks.mlp(hidden, fnn.Relu(), classes, rate)

    smoothed = fnn.losses.softmax_cross_entropy
    return {
        "none": (lambda _: Regularized(plain), (0.0,)),
        "L1": (lambda s: Regularized(plain, penalty=fnn.penalties.l1(s)), (1e-6, 1e-5, 1e-4, 1e-3)),
        "L2": (lambda s: Regularized(plain, penalty=fnn.penalties.l2(s)), (1e-5, 1e-4, 1e-3, 1e-2)),
        "dropout": (lambda s: Regularized(dropout(s)), (0.1, 0.2, 0.5, 0.7)),
        "noise on inputs": (lambda s: Regularized(plain, augment=(augment.InputNoise(s),)), (0.03, 0.1, 0.3, 0.6)),
        "noise on hidden units": (lambda s: Regularized(noise(s)), (0.03, 0.1, 0.3, 1.0)),
        "noise on weights": (lambda s: Regularized(fnn.WeightNoise(plain, s)), (0.01, 0.02, 0.05, 0.1)),
        "label smoothing": (lambda s: Regularized(plain, smoothed(label_smoothing=s)), (0.03, 0.1, 0.3, 0.6)),
        "flipped labels": (
            lambda s: Regularized(plain, augment=(augment.FlipLabels(s, classes),)),
            (0.02, 0.05, 0.2, 0.4),
        ),
        "shifts": (lambda s: Regularized(plain, augment=(augment.Shift(int(s), side),)), (1, 2, 3, 4)),
        "rotations": (lambda s: Regularized(plain, augment=(augment.Rotate(s, side),)), (5, 10, 20, 40)),
        "early stopping": (lambda _: Regularized(plain, stops=True), (0.0,)),
    }


def measure(config: Config) -> dict[str, Any]:
    """By set and regularizer: the strength, and test and training errors in percent, (seeds,)."""
    data = config.dataset()
    numbers: dict[str, Any] = {name: {} for name in SETS}
    for name, (method, strengths) in methods(config, data).items():
        if config.only and name not in (*config.only, *ALWAYS):
            continue
        numbers["small"][name] = on_few(config, data, method, strengths[: config.strengths])
        numbers["full"][name] = on_all(config, data, method, strengths[: config.strengths])
    return numbers


def on_few(config: Config, data: fnn.data.Dataset, method: Method, strengths: Sequence[float]) -> dict[str, Any]:
    """With the strength that has the lowest mean error on the held-out images of all seeds."""
    optimizer = adam(config, config.examples, 50, config.epochs)
    tried = []
    for strength in strengths:
        runs = []
        for seed in range(config.seeds):
            order = np.random.default_rng(seed).permutation(len(data.x_train))
            train, held_out = order[: config.examples], order[config.examples : 2 * config.examples]
            runs.append(fit(method(strength), optimizer, data, train, held_out, 50, config.epochs, seed))
        tried.append({"strength": strength} | {key: [run[key] for run in runs] for key in runs[0]})
    by_strength = {one["strength"]: float(np.mean(one["held out"])) for one in tried}
    return min(tried, key=lambda one: by_strength[one["strength"]]) | {"held out by strength": by_strength}


def on_all(config: Config, data: fnn.data.Dataset, method: Method, strengths: Sequence[float]) -> dict[str, Any]:
    """With the strength that has the lowest error on held-out images; then on all images, unless early stopping."""
    n, held_out = len(data.x_train), min(config.held_out, len(data.x_train) // 6)
    split = np.split(np.arange(n), [n - held_out])
    optimizer = adam(config, n - held_out, 128, config.full_epochs)

    tried = {
        strength: fit(method(strength), optimizer, data, split[0], split[1], 128, config.full_epochs, 0)["held out"]
        for strength in strengths
    }
    best = min(tried, key=lambda strength: tried[strength])
    how = method(best)
    train, rest = split if how.stops else (np.arange(n), split[1])
    optimizer = adam(config, len(train), 128, config.full_epochs)
    runs = [fit(how, optimizer, data, train, rest, 128, config.full_epochs, i) for i in range(config.full_seeds)]
    return {"strength": best, "held out by strength": tried} | {
        key: [run[key] for run in runs] for key in ("test", "training")
    }


def adam(config: Config, examples: int, batch_size: int, epochs: int) -> optax.GradientTransformation:
    """One value for all trainings on so many examples, so that they share a compiled program."""
    return optax.adam(optax.cosine_decay_schedule(config.learning_rate, epochs * -(-examples // batch_size)))


def fit(
    how: Regularized, optimizer: Any, data: fnn.data.Dataset, train: Any, held_out: Any, batch_size: int, epochs: int,
    seed: int,
) -> dict[str, float]:  # fmt: skip
    """Errors in percent after one training, without noise."""
    few = dataclasses.replace(
        data, x_train=data.x_train[train], y_train=data.y_train[train],
        x_test=data.x_train[held_out], y_test=data.y_train[held_out],
    )  # fmt: skip
    options: dict[str, Any] = {"augment": how.augment, "valid_every": 1 if how.stops else epochs}
    if how.stops:
        options["early_stopping"] = fnn.train.EarlyStopping(epochs, monitor="valid accuracy", maximize=True)
    objective = fnn.Objective(how.net, how.loss, how.penalty)
    state, _ = fit_images(objective, optimizer, few, epochs=epochs, batch_size=batch_size, seed=seed, **options)
    parts = {
        "held out": (few.x_test, few.y_test), "training": (few.x_train, few.y_train), "test": (data.x_test, data.y_test)
    }  # fmt: skip
    return {name: wrong(how.net, state.params, *part, data.x_max) for name, part in parts.items()}


def wrong(net: fnn.Layer, params: Any, x: np.ndarray, y: np.ndarray, x_max: int) -> float:
    """The error in percent, by parts of one length, for which one compiled program does."""
    starts = range(0, len(x), PART)
    parts = [np.pad(x[i : i + PART], ((0, max(0, i + PART - len(x))), (0, 0), (0, 0))) for i in starts]
    classes = np.concatenate([predict(net, params, part, x_max) for part in parts])
    return float(100 * np.mean(classes[: len(x)] != y))


@functools.partial(jax.jit, static_argnames=("net", "x_max"))
def predict(net: fnn.Layer, params: Any, x: jax.Array, x_max: int) -> jax.Array:
    """The class of each image."""
    return net.apply(params, fnn.data.Pixels(x_max)((x, None))[0]).argmax(axis=-1)


def gains(numbers: dict[str, Any], name: str) -> dict[str, np.ndarray]:
    """By how many points each regularizer lowers the test error of a set, (seeds,): on the same images and starts."""
    none = np.array(numbers[name]["none"]["test"], float)
    return {key: none - np.array(one["test"], float) for key, one in numbers[name].items() if key != "none"}


def chosen(one: dict[str, Any]) -> str:
    """In words, which of the strengths; nothing of a regularizer that has none."""
    tried = sorted(map(float, one["held out by strength"]))
    if len(tried) < 2:
        return ""
    ends = {tried[0]: "weakest", tried[-1]: "strongest"}
    place = f"the {ends[one['strength']]}" if one["strength"] in ends else "one"
    return f", at {one['strength']:g}, {place} of {len(tried)}"


def judge(numbers: dict[str, Any]) -> list[Check]:
    """Gains on the small set, one by one; and their mean on the full set beside it."""
    few, all_ = gains(numbers, "small"), gains(numbers, "full")
    useful = [name for name, gain in few.items() if more(gain, [0.0])]
    useless = [
        f"{name} ({spread(gain)}{chosen(numbers['small'][name])})" for name, gain in few.items() if name not in useful
    ]
    best = max(few, key=lambda name: np.nan_to_num(few[name], nan=-np.inf).mean())
    of_images = {name: few[name] for name in OF_IMAGES}
    others = {name: np.nan_to_num(gain.mean(), nan=np.inf) for name, gain in few.items() if name not in of_images}
    shares = {
        name: 100 * np.mean([gain.mean() for gain in found.values()]) / np.mean(numbers[name]["none"]["test"])
        for name, found in (("small", few), ("full", all_))
    }
    best_of_all = max(all_, key=lambda name: np.nan_to_num(all_[name], nan=-np.inf).mean())
    return [
        Check(
            "On the small set each of them, with the strength of those tried that is best on held-out images, lowers "
            "the test error, by more than three standard errors",
            f"{len(useful)} of {len(few)} do: {', '.join(useful) or 'none'}; {best} most, by {spread(few[best])} points"
            + (f"; not {', '.join(useless)}" if useless else ""),
            not useless,
        ),
        Check(
            "Changes to the images that keep their meaning, shifts and rotations, gain more there than any other",
            "; ".join(f"{name}: {spread(gain)} points" for name, gain in of_images.items())
            + f"; of the others {max(others, key=lambda name: others[name])} most, {max(others.values()):.3g}",
            bool(np.min([gain.mean() for gain in of_images.values()]) > max(others.values())),
        ),
        Check(
            "On the full set the mean gain of all, as a share of the error without, is less than a quarter of that on "
            "the small one",
            f"{shares['full']:.2g} % and {shares['small']:.3g} % of the error; {best_of_all} most on the full set, by "
            f"{spread(all_[best_of_all])} points",
            bool(shares["small"] > 0 and shares["full"] < shares["small"] / 4),
        ),
    ]


def draw(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """Test errors of all regularizers on both sets."""
    with figure(path, 10, 4.6) as fig:
        panels = fig.subplots(1, 2)
        names = list(numbers["small"])
        names = ["none", *sorted(names[1:], key=lambda name: np.mean(numbers["small"][name]["test"]))]
        for axes, key, color, title in zip(panels, SETS, (ORANGE, BLUE), ("few", "all"), strict=True):
            for place, name in enumerate(names):
                one = numbers[key][name]
                values = np.array(one["test"], float)
                axes.plot(values, [place] * len(values), "o", color=color, fillstyle="none")
                axes.plot(values.mean(), place, "|", color=color, markersize=18, markeredgewidth=3)
            axes.axvline(np.mean(numbers[key]["none"]["test"]), color=GRAY, linestyle="--")
            labels = [f"{n} ({numbers[key][n]['strength']:g})" if numbers[key][n]["strength"] else n for n in names]
            axes.set_yticks(range(len(names)), labels)
            axes.invert_yaxis()
            axes.set(title=f"{title[0].upper()}{title[1:]} training images", xlabel="test error in percent (bar: mean)")
        panels[0].set_ylabel("regularizer (its strength)")


EXPERIMENT = Experiment(
    name="regularizers",
    claim="Every regularizer lowers the test error where examples are few, and hardly where there are many.",
    source="Goodfellow, Bengio and Courville, Deep Learning (2016), chapter 7",
    options=Config,
    measure=measure,
    judge=judge,
    draw=draw,
    smoke={
        "seeds": 1, "full_seeds": 1, "examples": 50, "held_out": 50, "width": 8, "epochs": 1, "full_epochs": 1,
        "strengths": 1, "only": ("L2",),
    },
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return EXPERIMENT.run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
