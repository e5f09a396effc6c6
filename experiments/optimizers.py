"""Stochastic gradients reach an error at a cost that hardly grows with the data; full-batch cost grows in proportion.

Six optimizers train one network on digits, each with a tuned learning rate: loss against steps and seconds. Then
gradient descent with the full batch and SGD train on ever more examples, turned digits, until a test error is reached.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcnn as fnn
from experiments.common import record
from experiments.common.claims import Check, Experiment, Options, deviation, more, spread
from experiments.common.figure import BLUE, GRAY, GREEN, ORANGE, VERMILION, figure

HALF_DECADES = tuple(float(f"{10 ** (k / 2):.2g}") for k in range(-9, 4))
OPTIMIZERS: dict[str, tuple[Callable[..., Any], slice]] = {  # with its grid of learning rates
    "gradient descent": (optax.sgd, slice(7, 10)),
    "SGD": (optax.sgd, slice(6, 11)),
    "momentum": (functools.partial(optax.sgd, momentum=0.9), slice(5, 10)),
    "Adagrad": (optax.adagrad, slice(6, 11)),
    "RMSProp": (optax.rmsprop, slice(3, 8)),
    "Adam": (optax.adam, slice(3, 8)),
}
FULL, PLAIN = "gradient descent", "SGD"
BATCH = 32
LOSS = 0.05  # of all training examples: what the steps are counted to
ERROR = 15.0  # percent of the test examples: what the cost is counted to
ROUNDS = 5  # of timings
LOOK = 10  # steps of SGD between two looks at the test error
PROPORTIONAL, HARDLY = 0.75, 0.25  # exponents of the cost as a power of the number of examples


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Optimizers on scikit-learn's digits, and full batches against small ones on ever more examples."""

    seeds: int = 10
    """Starts and orders of the examples on the plain digits, for each optimizer and learning rate."""
    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)
    """Those to compare on the plain digits; SGD has to be among them."""
    steps: int = 860
    """Of each optimizer, on the plain digits."""
    draws: int = 5
    """Draws of turned digits, starts and orders, for each number of these."""
    examples: tuple[int, ...] = (512, 2048, 8192, 32768)
    """Numbers of turned digits."""
    full_steps: int = 100
    """Of gradient descent on these."""
    small_steps: int = 600
    """Of SGD on these."""
    rates: tuple[float, ...] = (0.1, 0.3, 1.0)
    """Learning rates of both on these; of each that one counts which gets to the test error first."""

    several: ClassVar = {"examples": 2, "optimizers": 2}

    def check(self) -> None:
        """Raises UsageError for what is no optimizer, for none to compare, and for fewer steps than an epoch has."""
        super().check()
        if unknown := [name for name in self.optimizers if name not in OPTIMIZERS]:
            raise record.UsageError(f"--optimizers takes names of {', '.join(OPTIMIZERS)}, got {unknown[0]!r}")
        if not set(self.optimizers) - {FULL, PLAIN} or PLAIN not in self.optimizers:
            raise record.UsageError(f"--optimizers takes {PLAIN} and others but {FULL} alone to compare with it")
        if self.steps < (epoch := -(-len(fnn.data.load_digits().x_train) // BATCH)):
            raise record.UsageError(f"--steps is at least {epoch}, an epoch, got {self.steps}")


NET = fnn.Serial(fnn.Dense(32), fnn.Relu(), fnn.Dense(32), fnn.Relu(), fnn.Dense(10))
OBJECTIVE = fnn.Objective(NET, fnn.losses.softmax_cross_entropy)


def begin(key: jax.Array) -> Any:
    """Parameters of the network."""
    return NET.init(key, (64,))


def measure(config: Config) -> dict[str, Any]:
    """Loss curves, steps and seconds to a loss; examples and seconds to a test error by number of examples."""
    digits = fnn.data.load_digits().arrays()
    curves = {name: curve(config, name, digits[0]) for name in config.optimizers}
    found = cost(config, *digits)
    timed = {name: (OPTIMIZERS[name][0](one["learning rates"][one["best"]]), digits[0]) for name, one in curves.items()}
    for n in config.examples:
        data = enlarged(jax.random.key(1), digits[0], n)
        timed |= {f"{name}, {n}": (optax.sgd(config.rates[found[name][str(n)]["best"]]), data) for name in found}
    seconds = seconds_a_step(timed)
    for name, one in curves.items():
        one["seconds a step"] = seconds[name]
    for name, by_size in found.items():
        for n, one in by_size.items():
            one["seconds"] = seconds[f"{name}, {n}"] * one["steps"]
    return {"curves": curves, "examples": config.examples, "cost": found}


def batch_of(name: str, data: Any) -> int:
    """Examples a step."""
    return len(data[0]) if name.startswith(FULL) else BATCH


def curve(config: Config, name: str, data: Any) -> dict[str, Any]:
    """One optimizer with each learning rate in one program; the rate that needs the fewest steps counts."""
    optimizer, grid = OPTIMIZERS[name]
    rates = HALF_DECADES[grid]
    batch = batch_of(name, data)
    per_epoch = -(-len(data[0]) // batch)
    every = 43 // per_epoch
    many = fnn.train.fit_many(
        OBJECTIVE, optimizer, begin, data, epochs=config.steps // per_epoch, batch_size=batch, seeds=config.seeds,
        grid={"learning_rate": rates}, valid=data, valid_every=every, valid_batch_size=len(data[0]), strategy="map",
        progress=None,
    )  # fmt: skip
    steps, losses = many["step"][0, 0, every - 1 :: every], many["valid loss"][..., every - 1 :: every]
    needed = np.array([[first_below(steps, loss, LOSS) for loss in one] for one in losses])  # (rates, seeds)
    best = choose(needed, losses[..., -1])
    return {
        "learning rates": rates, "best": best, "step": steps, "loss": losses[best], "needed": needed[best],
    }  # fmt: skip


def first_below(steps: np.ndarray, values: np.ndarray, mark: float) -> float:
    """The step at which values fall to a mark, between two looks by a straight line; infinity if they do not."""
    reached = np.flatnonzero(values <= mark)
    if not len(reached):
        return np.inf
    at = reached[0]
    return float(np.interp(-mark, -values[at - 1 : at + 1], steps[at - 1 : at + 1]) if at else steps[0])


def choose(needed: np.ndarray, last: np.ndarray) -> int:
    """The rate with the fewest steps in the mean over the seeds; by the last values, if none gets there."""
    means = needed.mean(axis=1)
    return int(np.argmin(means if np.isfinite(means).any() else np.nan_to_num(last, nan=np.inf).mean(axis=1)))


def seconds_a_step(runs: dict[str, tuple[Any, Any]]) -> dict[str, float]:
    """Medians of rounds in which optimizers and their data take turns, so that a busy machine strikes all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, (optimizer, data) in runs.items():
            batch = batch_of(name, data)
            _, history = fnn.train.fit(
                OBJECTIVE, optimizer, begin, data, epochs=16 if batch > BATCH else max(1, 1024 * BATCH // len(data[0])),
                batch_size=batch, key=jax.random.key(0), shuffle=batch == BATCH, progress=None,
            )  # fmt: skip
            times[name].append(history["seconds"][-1] / history["step"][-1])
    return {name: float(np.median(values)) for name, values in times.items()}


def cost(config: Config, train: Any, test: Any) -> dict[str, Any]:
    """By method and number of examples, (draws,): steps and gradients of single examples to the test error."""
    test = enlarged(jax.random.key(0), test, 2048)
    watches = {every: fnn.train.Watch(functools.partial(test_error, test), every=every) for every in (1, LOOK)}
    found: dict[str, Any] = {FULL: {}, PLAIN: {}}
    for n in config.examples:
        draws = [enlarged(jax.random.key(seed + 1), train, n) for seed in range(config.draws)]
        for name, by_size in found.items():
            batch, steps, every = (n, config.full_steps, 1) if name == FULL else (BATCH, config.small_steps, LOOK)
            needed = np.empty((len(config.rates), config.draws))
            last = np.empty_like(needed)
            for (i, rate), (seed, data) in itertools.product(enumerate(config.rates), enumerate(draws)):
                _, history = fnn.train.fit(
                    OBJECTIVE, optax.sgd, begin, data, epochs=-(-steps * batch // n), batch_size=batch,
                    key=jax.random.key(seed), hyper={"learning_rate": rate}, watch=watches[every], progress=None,
                    shuffle=name != FULL,
                )  # fmt: skip
                needed[i, seed] = first_below(history.watched["step"], history.watched["error"], ERROR)
                last[i, seed] = history.watched["error"][-1]
            best = choose(needed, last)
            by_size[str(n)] = {
                "learning rates": config.rates, "best": best, "steps": needed[best], "examples": batch * needed[best],
                "last error": last[best],
            }  # fmt: skip
    return found


def enlarged(key: jax.Array, digits: Any, n: int) -> tuple[jax.Array, jax.Array]:
    """n of the digits, drawn with replacement, each turned by up to 20 degrees."""
    draw_key, turn_key = jax.random.split(key)
    x, y = map(jnp.asarray, digits)
    drawn = jax.random.randint(draw_key, (n,), 0, len(x))
    turned = fnn.data.augment.Rotate(20, shape=(8, 8))(turn_key, (x[drawn], y[drawn]))
    return turned[0], turned[1]


def test_error(test: Any, objective: Any, params: Any, batch: Any, *, key: Any, train: bool) -> dict[str, jax.Array]:
    """In percent; a watch's function."""
    del objective, batch, key, train
    return {"error": 100 * jnp.mean(NET.apply(params, test[0]).argmax(axis=-1) != test[1])}


def reached(values: Any) -> np.ndarray:
    """As an array, with NaN for what was not reached."""
    values = np.array(values, float)
    return np.where(np.isfinite(values), values, np.nan)


def exponents(numbers: dict[str, Any], name: str, what: str) -> np.ndarray:
    """Of each seed: the slope of log(cost) against log(number of examples)."""
    sizes = np.log(np.array(numbers["examples"], float))
    costs = reached([numbers["cost"][name][str(n)][what] for n in numbers["examples"]])
    if not (np.isfinite(costs).all() and len(sizes) > 1):
        return np.full(costs.shape[1], np.nan)
    return np.polyfit(sizes, np.log(costs), 1)[0]


def judge(numbers: dict[str, Any]) -> list[Check]:
    """Cost against the number of examples; steps of the optimizers; whether the rates are tuned."""
    checks = []
    for what, word in (("examples", "Gradients of single examples"), ("seconds", "Seconds")):
        full, small = exponents(numbers, FULL, what), exponents(numbers, PLAIN, what)
        checks.append(
            Check(
                f"{word} to a test error of {ERROR:g} %, as a power of the number of examples: an exponent of at "
                f"least {PROPORTIONAL:g} for full batches, at most {HARDLY:g} for SGD",
                f"{spread(full)} and {spread(small)}",
                bool(full.mean() >= PROPORTIONAL and small.mean() <= HARDLY),
            )
        )
    needed = {name: reached(one["needed"]) for name, one in numbers["curves"].items()}
    faster = {name: more(needed[PLAIN], needed[name]) for name in needed if name not in (FULL, PLAIN)}
    tuned = [(one["best"], len(one["learning rates"]), name) for name, one in numbers["curves"].items()]
    tuned += [
        (one["best"], len(one["learning rates"]), f"{name}, {n} examples")
        for name, by_size in numbers["cost"].items()
        for n, one in by_size.items()
    ]
    border = [name for best, count, name in tuned if not 0 < best < count - 1]
    checks.append(
        Check(
            f"Momentum, Adagrad, RMSProp and Adam take fewer steps than SGD to a training loss of {LOSS:g}, by more "
            "than three standard errors",
            ", ".join(f"{name} {spread(values)}" for name, values in needed.items() if name != FULL)
            + f"; not by so much: {', '.join(name for name, is_so in faster.items() if not is_so) or 'none'}",
            all(faster.values()),
        )
    )
    checks.append(
        Check(
            "No tuned learning rate is at the border of its grid",
            f"{len(tuned)} rates; at the border: {', '.join(border) or 'none'}",
            not border,
        )
    )
    return checks


def draw(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """Loss against steps and seconds; cost against the number of examples."""
    styles = dict(
        zip(OPTIMIZERS, zip((GRAY, "black", BLUE, GREEN, ORANGE, VERMILION), "xos^vD", strict=True), strict=True)
    )
    with figure(path, 11, 7.4) as fig:
        panels = fig.subplots(2, 2)
        for name, one in numbers["curves"].items():
            color, marker = styles[name]
            loss = np.exp(np.log(np.array(one["loss"], float)).mean(axis=0))
            for axes, unit in zip(panels[0], (1.0, one["seconds a step"]), strict=True):
                label = f"{name}, rate {one['learning rates'][one['best']]:.2g}"
                axes.plot(unit * np.array(one["step"], float), loss, f"{marker}-", color=color, label=label,
                          markevery=2, markersize=5)  # fmt: skip
        for axes, unit in zip(panels[0], ("steps", "seconds"), strict=True):
            axes.axhline(LOSS, color=GRAY, linestyle=":", label=f"{LOSS:g}: steps are counted to it")
            axes.set(
                ylim=(1e-3, 60),
                xscale="log" if unit == "seconds" else "linear",
                yscale="log",
                xlabel=unit,
                ylabel="training loss",
                title=f"Loss against {unit} (batches of {BATCH}; gradient descent: all)",
            )
        panels[0, 0].legend(fontsize=8, ncols=2, loc="upper right")
        sizes = np.array(numbers["examples"], float)
        for axes, what, label in zip(panels[1], ("examples", "seconds"), ("gradients of single examples", "seconds"),
                                     strict=True):  # fmt: skip
            for name, color, marker in ((FULL, VERMILION, "s--"), (PLAIN, BLUE, "o-")):
                values = reached([numbers["cost"][name][str(n)][what] for n in numbers["examples"]])
                power = exponents(numbers, name, what).mean()
                text = f"{name}: as N to the power {power:.2f}"
                axes.errorbar(sizes, values.mean(axis=1), deviation(values), fmt=marker, color=color, label=text)
            axes.set(yscale="log", xlabel="training examples N", ylabel=label)
            axes.set_title(f"Cost of a test error of {ERROR:g} %, in {what}")
            axes.set_xlim(sizes.min() / 1.5, sizes.max() * 1.5)
            if all(np.isnan(exponents(numbers, name, what)).all() for name in (FULL, PLAIN)):  # nothing to scale to
                axes.set_ylim(1e-3, 1)
            axes.set_xscale("log", base=2)
            axes.legend(fontsize=8)


EXPERIMENT = Experiment(
    name="optimizers",
    claim="Stochastic gradients reach an error at a cost that hardly grows with the data, where full-batch cost grows "
    "in proportion; momentum and adaptive rates take fewer steps than plain SGD.",
    source="Goodfellow, Bengio and Courville, Deep Learning (2016), sections 5.9, 8.1.3, 8.3 and 8.5",
    options=Config,
    measure=measure,
    judge=judge,
    draw=draw,
    smoke={"seeds": 1, "optimizers": (PLAIN,), "draws": 1, "steps": 86, "examples": (64,), "full_steps": 2,
           "small_steps": 20, "rates": (0.3,)},
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return EXPERIMENT.run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
