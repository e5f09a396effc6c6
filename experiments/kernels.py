"""A kernel machine's prediction costs more the more examples it has learned from; a network's cost is fixed.

A support vector machine, a linear model on radial basis functions around fixed centres, the same with learned centres,
and a relu network learn from training sets of several sizes: handwritten digits, and points of a plane with noisy
labels, of which there are as many as wanted. Each network's learning rate is the one that is best on held-out examples;
the kernel machine's C and the width of a task's kernels are given, and not tuned.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.svm import SVC

import funcnn as fnn
from experiments.common import measure as timing
from experiments.common import record
from experiments.common.claims import Check, Experiment, Options, deviation, more, spread
from experiments.common.figure import BLUE, GREEN, ORANGE, VERMILION, figure

SVM, NET, LEARNED, FIXED = "kernel machine", "relu network", "RBF, learned centres", "RBF, fixed centres"
TIMED = (SVM, NET, LEARNED)
SIDE, NOISE, TESTS = 4.0, 0.1, 5000  # the plane's square, which share of its labels is wrong, its test examples
DIGITS = 1347  # training examples
FEW = 16  # units, up to which learned centres have to be better than fixed ones
GROWS = {"digits": 3.0, "plane": 10.0}  # at least so many times, from the smallest training set to the largest
LIKE = {"digits": 2.0, "plane": 1.0}  # percentage points of accuracy
CHEAPER = 5.0  # times fewer multiplications
TIME_GROWS, TIME_STAYS = 3.0, 2.0  # times; a busy machine's clock is worth no more


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Trains kernel machines and networks on training sets of several sizes."""

    seeds: int = 5
    """Draws of the training set, and starts."""
    digits: tuple[int, ...] = (75, 200, 500, 1000)
    """Sizes of the training set of digits; of 1,347, of which each seed draws others, at least 100 are held out."""
    plane: tuple[int, ...] = (100, 400, 1600, 6400)
    """Sizes of the training set of the plane."""
    units: int = 64
    """Hidden units of the network, and radial basis functions: at most as many as the smallest training set has
    examples, which are the first centres."""
    few_units: tuple[int, ...] = (4, 16, 64)
    """How many radial basis functions to compare with fixed and with learned centres, on the largest training sets."""
    steps: int = 3000
    """Steps of Adam on batches of 64."""
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
    """Adam's, falling to 0 by a cosine, to choose from for each network and number of units; at least three."""
    c: float = 10.0
    """The kernel machine's price of a margin violation."""
    choosing: int = 2
    """How many seeds, with their largest training sets and held-out examples, choose the learning rates; all where
    there are fewer."""
    rounds: int = 15
    """How many times the predictions are timed; the quickest counts."""

    several: ClassVar = {"digits": 2, "plane": 2, "learning_rates": 3}  # one between two others
    at_least: ClassVar = {"digits": 50, "plane": 50}  # so that there are some of each class
    at_most: ClassVar = {"digits": DIGITS - 100}  # the rest are held out

    def check(self) -> None:
        """Raises UsageError where there are fewer examples than units, whose centres they are."""
        super().check()
        for option, units, sets in (("units", self.units, min), ("few-units", max(self.few_units), max)):
            if units > (least := min(sets(self.digits), sets(self.plane))):
                raise record.UsageError(f"--{option}: there are only {least} examples to be centres, got {units}")
        if min(self.few_units) > FEW:
            raise record.UsageError(f"--few-units are some of at most {FEW}, got {min(self.few_units)} as the smallest")


class Task(NamedTuple):
    """Data in an order drawn by the seed, how many classes, and gamma of the kernel exp(-gamma |x - c|^2)."""

    x: np.ndarray
    y: np.ndarray
    held_out: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    classes: int
    gamma: float


class Learned(NamedTuple):
    """What has learned: from examples (N, D) to class numbers (N,), with so many multiplications for one of them."""

    predict: Callable[[Any], Any]
    multiplications: int


def task(name: str, config: Config, seed: int) -> Task:
    """gamma is scikit-learn's default for the digits, 1 / (D variance), and suits the kernel machine in the plane."""
    rng = np.random.default_rng(seed)
    if name == "plane":
        train, test, held_out = (plane(rng, n) for n in (max(config.plane), TESTS, TESTS))
        return Task(*train, held_out, test, classes=2, gamma=4.0)
    (x, y), test = fnn.data.load_digits().arrays()
    train, held_out = np.split(rng.permutation(len(x)), [max(config.digits)])
    gamma = float(1 / (x.shape[1] * x.var()))
    return Task(x[train], y[train], (x[held_out], y[held_out]), test, classes=10, gamma=gamma)


def plane(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of a square, on two sides of a sine; some labels are wrong, so that the best accuracy is 1 - NOISE."""
    x = rng.uniform(-SIDE / 2, SIDE / 2, (n, 2)).astype(np.float32)
    return x, ((x[:, 1] > np.sin(np.pi * x[:, 0])) ^ (rng.random(n) < NOISE)).astype(np.int32)


def kernel_machine(config: Config, data: Task, n: int, units: int, seed: int) -> Learned:
    """One against one: the kernel at each support vector, times its coefficients against all other classes."""
    settings: dict[str, Any] = {"C": config.c, "gamma": data.gamma}
    svm = SVC(kernel="rbf", **settings).fit(data.x[:n], data.y[:n])
    return Learned(svm.predict, len(svm.support_) * (data.x.shape[1] + data.classes - 1))


def relu_network(config: Config, rate: float, data: Task, n: int, units: int, seed: int) -> Learned:
    """One hidden layer."""
    net = fnn.Serial(fnn.Dense(units), fnn.Relu(), fnn.Dense(data.classes))
    params = net.init(jax.random.key(seed), data.x.shape[1:])
    return learned(net, fit(config, rate, net, params, data.x[:n], data.y[:n], seed), data)


def learned_centres(config: Config, rate: float, data: Task, n: int, units: int, seed: int) -> Learned:
    """Radial basis functions around examples to begin with, which move."""
    net, params = rbf(data, units, seed)
    return learned(net, fit(config, rate, net, params, data.x[:n], data.y[:n], seed), data)


def fixed_centres(config: Config, rate: float, data: Task, n: int, units: int, seed: int) -> Learned:
    """A linear model on radial basis functions that stay where they are."""
    net, (centres, out) = rbf(data, units, seed)
    features = net.layers[0].apply(centres, jnp.asarray(data.x[:n]))
    return learned(net, (centres, fit(config, rate, net.layers[1], out, features, data.y[:n], seed)), data)


NETWORKS: dict[str, Callable[..., Learned]] = {
    NET: relu_network, LEARNED: learned_centres, FIXED: fixed_centres,
}  # fmt: skip


def rbf(data: Task, units: int, seed: int) -> tuple[fnn.Serial, Any]:
    """A network of radial basis functions, and parameters with the first examples as centres: they are in no order."""
    net = fnn.Serial(fnn.Rbf(units, epsilon=data.gamma**0.5), fnn.Dense(data.classes))
    centres = {"c": jnp.asarray(data.x[:units])}
    return net, (centres, net.layers[1].init(jax.random.key(seed), (units,)))


def fit(config: Config, rate: float, net: fnn.Layer, params: Any, x: Any, y: np.ndarray, seed: int) -> Any:
    """The trained parameters."""
    # Repeated to one length, training sets of all sizes take the same steps of one compiled program.
    length = max(*config.digits, *config.plane)
    state, _ = fnn.train.fit(
        fnn.Objective(net, fnn.losses.softmax_cross_entropy), optimizer(config.steps), params,
        (np.resize(x, (length, *x.shape[1:])), np.resize(y, length)), epochs=-(-config.steps // -(-length // 64)),
        batch_size=64, key=jax.random.key(seed), hyper={"learning_rate": rate}, progress=None,
    )  # fmt: skip
    return state.params


@functools.cache  # one value, so that it is compiled once
def optimizer(steps: int) -> Callable[[Any], optax.GradientTransformation]:
    """Adam with a learning rate that falls to 0."""
    return lambda learning_rate: optax.adam(optax.cosine_decay_schedule(learning_rate, steps))


def learned(net: fnn.Serial, params: Any, data: Task) -> Learned:
    """A network's predictions, compiled."""
    return Learned(lambda x: answers(net, params, x), net.multiply_adds(data.x.shape[1:]))


@functools.partial(jax.jit, static_argnames="net")
def answers(net: fnn.Serial, params: Any, x: Any) -> jax.Array:
    """Class numbers (N,)."""
    return net.apply(params, x).argmax(1)


def accuracy(one: Learned, x: np.ndarray, y: np.ndarray) -> float:
    """In percent."""
    return float(100 * np.mean(np.asarray(one.predict(x)) == y))


def choose(
    config: Config, model: str, tasks: list[Task], n: int, units: int
) -> tuple[Callable[..., Learned], list[float]]:
    """The model with the learning rate that is best on held-out examples, and the mean accuracy there with each."""
    by_rate = [
        np.mean([
            accuracy(NETWORKS[model](config, rate, data, n, units, seed), *data.held_out)
            for seed, data in enumerate(tasks[: config.choosing])
        ])
        for rate in config.learning_rates
    ]  # fmt: skip
    return functools.partial(NETWORKS[model], config, config.learning_rates[np.argmax(by_rate)]), np.array(
        by_rate
    ).tolist()


def measure(config: Config) -> dict[str, Any]:
    """Accuracies and multiplications by size and seed, microseconds by size, accuracies by units, and what chose."""
    sizes_of = {"digits": config.digits, "plane": config.plane}
    numbers: dict[str, Any] = {"sizes": sizes_of, "units": config.units, "few units": config.few_units}
    numbers["learning rates"] = config.learning_rates
    numbers |= {part: {} for part in ("accuracy", "multiplications", "microseconds", "by units", "held out")}
    for name, sizes in sizes_of.items():
        tasks = [task(name, config, seed) for seed in range(config.seeds)]
        x, runs = tasks[0].test[0][:500], {}
        for model in (SVM, *NETWORKS):
            key = f"{name}, {model}"
            learners: dict[int, Callable[..., Learned]] = {config.units: functools.partial(kernel_machine, config)}
            several = config.few_units if model in (LEARNED, FIXED) else ()
            for units in dict.fromkeys((config.units, *several)) if model in NETWORKS else ():
                learners[units], by_rate = choose(config, model, tasks, max(sizes), units)
                numbers["held out"][f"{key}, {units} units"] = by_rate
            learn = learners[config.units]
            made = [[learn(data, n, config.units, s) for n in sizes] for s, data in enumerate(tasks)]
            right = [[accuracy(one, *data.test) for one in row] for row, data in zip(made, tasks, strict=True)]
            numbers["accuracy"][key] = right
            numbers["multiplications"][key] = [[one.multiplications for one in row] for row in made]
            if several:
                numbers["by units"][key] = [
                    [accuracy(learners[units](data, max(sizes), units, s), *data.test) for units in several]
                    for s, data in enumerate(tasks)
                ]
            if model in TIMED:
                runs |= {
                    f"{model}, {n}": functools.partial(one.predict, x) for n, one in zip(sizes, made[0], strict=True)
                }
        seconds = timing.interleave(runs, config.rounds, 0.03, alike=False)
        for model in TIMED:
            # The quickest round, not the median: on a busy machine such a short call is mostly waiting.
            times = [1e6 * seconds[f"{model}, {n}"].min() / len(x) for n in sizes]
            numbers["microseconds"][f"{name}, {model}"] = times
    return numbers


def judge(numbers: dict[str, Any]) -> list[Check]:
    """Counts that grow and counts that do not, at like accuracy; measured times; learned features and fixed ones."""
    right, count, us, by_units = (
        {key: np.array(values, float) for key, values in numbers[part].items()}
        for part in ("accuracy", "multiplications", "microseconds", "by units")
    )
    names, units = list(numbers["sizes"]), numbers["few units"]
    largest = {key: values[:, -1] for key, values in right.items()}
    svm, net = ({name: count[f"{name}, {model}"] for name in names} for model in (SVM, NET))
    growth = {name: svm[name][:, -1] / svm[name][:, 0] for name in names}
    fewer = {name: svm[name][:, -1] / net[name][:, -1] for name in names}
    slower = {name: [us[f"{name}, {model}"][-1] / us[f"{name}, {model}"][0] for model in (SVM, NET)] for name in names}
    steady = all(bool(np.all(values == values[0, 0])) for key, values in count.items() if SVM not in key)
    rates = numbers["learning rates"]
    best = {key: int(np.argmax(found)) for key, found in numbers["held out"].items()}
    ends = [key for key, i in best.items() if i in (0, len(rates) - 1)]
    few = [
        (f"{name}, {n} units", *(by_units[f"{name}, {model}"][:, i] for model in (LEARNED, FIXED)))
        for name in names for i, n in enumerate(units) if n <= FEW
    ]  # fmt: skip
    return [
        Check(
            "From the smallest training set to the largest the multiplications for a prediction of the kernel machine "
            f"grow at least {GROWS['digits']:g} times (digits) and {GROWS['plane']:g} times (plane), for each seed",
            "; ".join(f"{name}: {spread(growth[name])} times" for name in names),
            all(bool(np.all(growth[name] >= GROWS[name])) for name in names),
        ),
        Check(
            "Those of the networks are the same for all training sets, and on the largest the relu network's are at "
            f"least {CHEAPER:g} times fewer than the kernel machine's",
            "; ".join(f"{name}: {net[name][0, -1]:.0f}, {spread(v)} times fewer" for name, v in fewer.items()),
            steady and all(bool(np.all(v >= CHEAPER)) for v in fewer.values()),
        ),
        Check(
            f"There the relu network's mean test accuracy is less than {LIKE['digits']:g} points (digits) and "
            f"{LIKE['plane']:g} point (plane) below the kernel machine's",
            "; ".join(f"{name}: {spread(largest[f'{name}, {NET}'])} % and {spread(largest[f'{name}, {SVM}'])} %"
                      for name in names),
            all(bool(np.mean(largest[f"{name}, {SVM}"] - largest[f"{name}, {NET}"]) < LIKE[name]) for name in names),
        ),
        Check(
            f"Measured, the kernel machine's time grows at least {TIME_GROWS:g} times, the relu network's less than "
            f"{TIME_STAYS:g} times",
            "; ".join(f"{name}: {a:.3g} and {b:.3g} times" for name, (a, b) in slower.items()),
            all(bool(a >= TIME_GROWS and b < TIME_STAYS) for a, b in slower.values()),
        ),
        Check(
            f"With up to {FEW} units, learned centres are more accurate than the same ones held fixed, by more than "
            "three standard errors of the seeds' differences",
            "; ".join(f"{name}: {spread(a)} % and {spread(b)} %" for name, a, b in few),
            all(more(a - b, [0.0]) for _, a, b in few),
        ),
        Check(
            f"The learning rate of each network, of {rates[0]:g} to {rates[-1]:g} the one that is best on held-out "
            f"examples, is at no end of these (but with more than {FEW} fixed centres, which nothing here compares)",
            "; ".join(f"{key}: {rates[i]:g}" for key, i in best.items()),
            all(FIXED in key and not any(key.endswith(f", {n} units") for n in units if n <= FEW) for key in ends),
        ),
    ]  # fmt: skip


STYLES = {SVM: ("s-", VERMILION), NET: ("o-", BLUE), LEARNED: ("^-", GREEN), FIXED: ("v--", ORANGE)}


def line(axes: Any, x: Any, values: Any, model: str, label: str = "") -> None:
    """Means and standard deviations of values (seeds, X), or the values (X,)."""
    values, (style, color) = np.atleast_2d(np.array(values, float)), STYLES[model]
    axes.errorbar(x, values.mean(0), deviation(values, 0), fmt=style, color=color, capsize=3, label=label or model)


def draw(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """A row for each task: accuracy, multiplications and time against the training set; accuracy against units."""
    with figure(path, 13, 6.6) as fig:
        grid = fig.subplots(2, 4)
        for (name, sizes), row in zip(numbers["sizes"].items(), grid, strict=True):
            for model in STYLES:
                line(row[0], sizes, numbers["accuracy"][f"{name}, {model}"], model)
            for model in (SVM, NET):
                thousands = np.array(numbers["multiplications"][f"{name}, {model}"]) / 1000
                line(row[1], sizes, thousands, model, "the three networks" if model == NET else model)
            for model in TIMED:
                line(row[2], sizes, numbers["microseconds"][f"{name}, {model}"], model)
            for model in (LEARNED, FIXED):
                line(row[3], numbers["few units"], numbers["by units"][f"{name}, {model}"], model)
            title = f"{name.capitalize()}: "
            row[0].set(title=f"{title}accuracy", xscale="log", ylabel="percent of the test examples")
            row[1].set(title=f"{title}cost of a prediction", ylabel="thousand multiplications")
            row[2].set(title=f"{title}time of a prediction", ylabel="microseconds")
            for axes in row[1:3]:
                axes.set_ylim(bottom=0)
            row[3].set(title=f"{title}fixed or learned centres", xscale="log", ylabel="percent of the test examples")
            for axes, ticks in ((row[0], sizes), (row[3], numbers["few units"])):
                axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
                axes.minorticks_off()
            for axes in row:
                axes.set_xlabel("units" if axes is row[3] else "training examples")
        grid[1, 0].axhline(100 * (1 - NOISE), color="black", linewidth=1, linestyle=":", label="best there can be")
        for axes in (grid[0, 1], grid[0, 2], grid[0, 3], grid[1, 0]):
            axes.legend(fontsize=8)
        fig.suptitle(f"A kernel machine, and three networks of {numbers['units']} units", x=0.01, ha="left")


EXPERIMENT = Experiment(
    name="kernels",
    claim="A kernel machine's prediction costs more the more examples it has learned from; a network's does not.",
    source="Goodfellow, Bengio and Courville, Deep Learning (2016), sections 5.7.2 and 6.1; Broomhead and Lowe (1988)",
    options=Config,
    measure=measure,
    judge=judge,
    draw=draw,
    smoke={
        "seeds": 1, "digits": (50, 100), "plane": (50, 100), "units": 4, "few_units": (4,), "steps": 5, "rounds": 1,
        "learning_rates": (1e-3, 1e-2, 1e-1),
    },
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return EXPERIMENT.run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
