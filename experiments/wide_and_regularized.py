"""A network that is too large for its data, and regularized, beats every smaller one that is not.

Networks of 1 to 1,000 hidden units are trained to the end on few digits, some of which have a wrong label: as they are,
and with an L2 penalty whose strength other digits choose. Test labels are right.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np
import optax
from matplotlib.ticker import ScalarFormatter

import funcnn as fnn
from experiments.common.claims import Check, Experiment, Options, deviation, more, spread
from experiments.common.figure import BLUE, GRAY, VERMILION, figure

FITS = 1.0  # percent: a training error below this is a fit of the noise too
WORSE = 1.0  # percentage points of test error that count as worse


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Networks of all widths on few digits with wrong labels among them."""

    seeds: int = 5
    """Training sets, wrong labels and starts."""
    examples: int = 300
    """Training digits; as many others choose the strength of the penalty."""
    wrong: float = 0.2
    """The share of them that have the label of another class."""
    widths: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
    """Units of the hidden layer."""
    strengths: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)
    """Of the L2 penalty, to choose from."""
    epochs: int = 300
    """Times to go through the training digits."""
    learning_rate: float = 3e-3
    """Adam's."""

    may_be_zero: ClassVar = ("wrong",)
    below: ClassVar = {"wrong": 1.0}
    at_most: ClassVar = {"examples": 800}  # of 1,797 digits, twice
    several: ClassVar = {"widths": 2}


def measure(config: Config) -> dict[str, Any]:
    """Training and test errors in percent, (seeds,), by width, without a penalty and with the chosen one."""
    data = [draw_data(config, seed) for seed in range(config.seeds)]
    numbers: dict[str, Any] = {"plain": {}, "regularized": {}}
    for width in config.widths:
        found = train(config, width, data)
        for name, by_width in numbers.items():
            by_width[str(width)] = {key: [one[name][key] for one in found] for key in found[0][name]}
    return numbers


def draw_data(config: Config, seed: int) -> dict[str, Any]:
    """Digits to train on, with wrong labels among them, and to choose by, and all others to test on."""
    parts = fnn.data.load_digits().arrays()
    x, y = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in (0, 1))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    train, choose, test = np.split(order, [config.examples, 2 * config.examples])
    noisy = np.concatenate([train, choose])
    wrong = noisy[rng.random(len(noisy)) < config.wrong]
    labels = y.copy()
    labels[wrong] = (y[wrong] + rng.integers(1, 10, len(wrong))) % 10
    return {"train": (x[train], labels[train]), "choose": (x[choose], labels[choose]), "test": (x[test], y[test])}


def train(config: Config, width: int, data: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One network for each training set and strength, 0 among them; the error on other digits chooses the strength."""
    net = fnn.Serial(fnn.Dense(width), fnn.Relu(), fnn.Dense(10))
    strengths = (0.0, *config.strengths)

    def objective(strength: float) -> fnn.Objective:
        return fnn.Objective(net, fnn.losses.softmax_cross_entropy, fnn.penalties.l2(strength))

    def init(key: jax.Array) -> Any:
        return net.init(key, (64,))

    optimizer = optax.adam(config.learning_rate)
    found = []
    for seed, parts in enumerate(data):
        many = fnn.train.fit_many(
            objective, optimizer, init, parts["train"],
            epochs=config.epochs, batch_size=config.examples, seeds=[seed], grid={"strength": strengths},
            strategy="vmap", progress=None,
        )  # fmt: skip
        errors = {name: wrong_percent(net, many.state.params, part) for name, part in parts.items()}
        best = 1 + int(np.argmin(errors["choose"][1:]))
        found.append(
            {
                "plain": {"train": errors["train"][0], "test": errors["test"][0]},
                "regularized": {
                    "train": errors["train"][best], "test": errors["test"][best], "strength": strengths[best],
                },
            }
        )  # fmt: skip
    return found


def wrong_percent(net: fnn.Layer, params: Any, batch: Any) -> np.ndarray:
    """Errors of the networks of all strengths, (strengths,)."""
    logits = jax.vmap(jax.vmap(net.apply, (0, None)), (0, None))(params, batch[0])  # strengths, one seed
    return 100 * np.mean(np.asarray(logits).argmax(axis=-1) != batch[1], axis=-1)[:, 0]


def judge(numbers: dict[str, Any]) -> list[Check]:
    """The largest fits the noise too; with a penalty it beats the best smaller one."""
    plain, regularized = ({int(w): one for w, one in numbers[name].items()} for name in ("plain", "regularized"))
    widest = max(plain)
    smaller = [width for width in plain if width < widest]
    # `argmin` takes a mean that is no number for the least, so that it is not passed over.
    best, best_regularized = (
        smaller[int(np.argmin([np.mean(one[width]["test"]) for width in smaller]))] for one in (plain, regularized)
    )
    fit = np.array(plain[widest]["train"], float)
    test = {name: np.array(one[widest]["test"], float) for name, one in (("plain", plain), ("with", regularized))}
    behind = test["with"] - np.array(regularized[best_regularized]["test"], float)
    return [
        Check(
            f"{widest} units without a penalty fit the wrong labels too: a training error below {FITS:g} %, and a "
            "higher test error than with one, by more than three standard errors",
            f"training {spread(fit)} %; test {spread(test['plain'])} % without, {spread(test['with'])} % with",
            bool(fit.mean() < FITS) and more(test["plain"], test["with"]),
        ),
        Check(
            f"{widest} units with a penalty have a lower test error than any smaller network without one, by more than "
            "three standard errors of the mean difference on the same digits",
            f"{spread(test['with'])} %; the best of the others, {best} units: {spread(plain[best]['test'])} %",
            more(np.array(plain[best]["test"], float) - test["with"], [0.0]),
        ),
        Check(
            f"Than a smaller network with one they have at most {WORSE:g} point more, on average",
            f"{spread(behind, 2)} points more than the best of the others, {best_regularized} units",
            bool(behind.mean() <= WORSE),
        ),
    ]


def draw(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """Training and test error against width."""
    with figure(path, 9, 4) as fig:
        panels = fig.subplots(1, 2, sharey=True)
        kinds = (("plain", "without a penalty", VERMILION, "s"), ("regularized", "with an L2 penalty", BLUE, "o"))
        for axes, part, title in zip(
            panels, ("train", "test"), ("Training error (labels with noise)", "Test error (right labels)"), strict=True
        ):
            for name, label, color, marker in kinds:
                widths = [int(width) for width in numbers[name]]
                values = np.array([one[part] for one in numbers[name].values()])
                axes.errorbar(widths, values.mean(axis=1), deviation(values), fmt=f"{marker}-", color=color,
                              label=label, capsize=3)  # fmt: skip
            axes.set(xscale="log", title=title, xlabel="hidden units")
            axes.xaxis.set_major_formatter(ScalarFormatter())
        panels[0].set_ylabel("percent")
        best = min(np.mean(one["test"]) for one in numbers["plain"].values())
        panels[1].axhline(best, color=GRAY, linestyle="--", label="the best without a penalty")
        panels[1].legend()


EXPERIMENT = Experiment(
    name="wide_and_regularized",
    claim="A network too large for its data, if it is regularized, beats every smaller one that is not, and keeps up "
    "with those that are.",
    source="Goodfellow, Bengio and Courville, Deep Learning (2016), chapter 7",
    options=Config,
    measure=measure,
    judge=judge,
    draw=draw,
    smoke={"seeds": 2, "widths": (2, 32), "strengths": (0.01,), "epochs": 2},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return EXPERIMENT.run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
