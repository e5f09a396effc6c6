"""How long a step takes by width, depth, batch and number of runs; what an ensemble costs, in time and in memory.

Relu networks, Adam, random examples. Sizes take turns, compilation is apart, and slopes are those of the upper half of
the sizes. The marks: an ensemble's time and memory grow linearly with its runs, and 128 runs of `fit_many` have 1.5
times the throughput of the same runs by `fit`, one after another.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from experiments.benchmarks import laws, scaling_report
from experiments.benchmarks.blocks import Blocks, options
from experiments.benchmarks.networks import Network
from experiments.benchmarks.trainings import Training, ensemble_bytes, seconds_of, step_seconds
from experiments.benchmarks.workers import take_turns
from experiments.common import measure, record

GRADIENTS = ("autodiff", "backprop")


def network(hidden: Sequence[int], batch: int = 128, examples: int = 1024) -> Network:
    """64 features, ten classes. `fit` is asked nothing here of other libraries."""
    return Network((64, *hidden, 10), batch, examples // batch, 0.0, 0.0)


class Sweep(NamedTuple):
    """A family of networks with one size that changes."""

    label: str  # of that size
    fixed: str  # what does not change, in words
    sizes: tuple[int, ...]
    network: Callable[[int], Network]
    expected: float  # the exponent that the operations of a large step have
    smoke: tuple[int, ...] = (1, 2)


SWEEPS = {
    "width": Sweep(
        "width",
        "3 hidden layers, batch 128",
        (16, 32, 64, 128, 256, 512, 1024, 2048),
        lambda width: network([width] * 3),
        2,
        (16, 32),
    ),
    "depth": Sweep(
        "hidden layers", "of 128 units, batch 128", (1, 2, 4, 8, 16, 32), lambda depth: network([128] * depth), 1
    ),
    "batch": Sweep(
        "batch size",
        "3 hidden layers of 128",
        tuple(2**k for k in range(3, 13)),
        lambda batch: network([128] * 3, batch, 4096),
        1,
        (256, 512),
    ),
}
MEMBER = network([32], 32, 42 * 32)  # of an ensemble
RUNS, SMOKE_RUNS = tuple(2**k for k in range(9)), (1, 2)


@dataclasses.dataclass(frozen=True)
class Config(Blocks):
    """Measures how training time and memory grow, and what an ensemble gains, in one run."""

    rounds: int = 7
    """Trainings of each size; all sizes of a sweep take turns."""
    block_s: float = 0.5
    """Length of a training, about: it is whole epochs, at least three."""
    runs: int = 128
    """Runs of the ensemble that is compared with runs one after another."""
    sample: int = 16
    """How many of these are trained one after another, too, in each round."""
    epochs: int = 100
    """Epochs of each of these."""
    strategy: str = "auto"
    """Of fit_many: "auto", "vmap" or "map"."""

    def check(self) -> None:
        """Raises UsageError for values that no run can have."""
        super().check()
        if self.epochs < 1:
            raise record.UsageError("--epochs is positive")
        if not 1 <= self.sample <= self.runs:
            raise record.UsageError(f"--sample is in 1 .. --runs, got {self.sample} of {self.runs}")
        if self.strategy not in ("auto", "vmap", "map"):
            raise record.UsageError(f"--strategy is auto, vmap or map, got {self.strategy!r}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    config = options(Config, "experiments.benchmarks.scaling", argv)
    if config.smoke:
        config = dataclasses.replace(config, rounds=1, block_s=1e-3, runs=2, sample=2, epochs=3, strategy="vmap")
    console = record.console()
    sweeps = [swept(name, config, console) for name in SWEEPS]
    with console.status("ensembles of 64-32-10"):
        sweeps.append(swept_runs(config))
        memory = memory_of(Training(MEMBER), sweeps[-1]["sizes"])
        gain = throughput(Training(MEMBER), config)
    result = {"sweeps": sweeps, "memory": memory, "throughput": gain}
    console.print(scaling_report.as_table(result))
    console.print(scaling_report.verdict(result), highlight=False)
    path = config.out / "scaling"
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k != "out"}
    about = {
        "command": record.command("experiments.benchmarks.scaling", argv),
        **record.environment(),
        "config": settings,
    }
    record.write(path.with_suffix(".json"), {**about, **result})
    scaling_report.draw(path.with_suffix(".png"), result)
    print(f"Figure and record: {path}.png, {path}.json")
    return 0


def swept(name: str, config: Config, console: Console) -> dict[str, Any]:
    """One sweep of single runs, by both gradients; a smoke run has one."""
    sweep = SWEEPS[name]
    sizes, gradients = (sweep.smoke, GRADIENTS[:1]) if config.smoke else (sweep.sizes, GRADIENTS)
    with console.status(f"{sweep.label}: {', '.join(map(str, sizes))}"):
        runs = {(g, size): Training(sweep.network(size), g).seconds for g in gradients for size in sizes}
        seconds = step_seconds(runs, config.rounds, config.block_s)
    return {
        "sweep": name,
        "label": sweep.label,
        "fixed": sweep.fixed,
        "sizes": sizes,
        "expected": sweep.expected,
        "curves": {g: curve(sizes, [seconds[g, size] for size in sizes]) for g in gradients},
    }


def swept_runs(config: Config) -> dict[str, Any]:
    """A step of all runs of an ensemble, by how many they are."""
    sizes, training = SMOKE_RUNS if config.smoke else RUNS, Training(MEMBER)
    runs = {size: functools.partial(training.ensemble_seconds, size, config.strategy) for size in sizes}
    seconds = step_seconds(runs, config.rounds, config.block_s)
    found = curve(sizes, [seconds[size] for size in sizes])
    return {
        "sweep": "runs",
        "label": "runs of an ensemble",
        "fixed": "64-32-10, batch 32",
        "sizes": sizes,
        "expected": 1,
        "curves": {"autodiff": found},
        "linear": linear(sizes, found["seconds"]),
    }


def curve(sizes: Sequence[int], rounds: list[list[float]]) -> dict[str, Any]:
    """Medians by size, and the slope's quartiles over the rounds; `rounds` holds the seconds by size and round."""
    slopes = [laws.exponent(sizes, seconds) for seconds in zip(*rounds, strict=True)]
    return {
        "seconds": [float(np.median(seconds)) for seconds in rounds],
        "rounds": rounds,
        "slope_from": sizes[laws.upper(sizes)],
        "slope": measure.quartiles(np.array(slopes)),
    }


def linear(sizes: Sequence[int], values: Sequence[float]) -> dict[str, Any]:
    """Whether it grows at most linearly: the exponent, and how well a straight line fits; with both marks."""
    exponent, line = laws.exponent(sizes, values), laws.line(sizes, values)
    met = exponent <= scaling_report.EXPONENT_MARK and line.r2 >= scaling_report.R2_MARK
    return {"exponent": exponent, **line._asdict(), "reached": met}


def memory_of(training: Training, sizes: Sequence[int]) -> dict[str, Any]:
    """What the compiled program of an ensemble plans, by the number of runs."""
    planned = [ensemble_bytes(training, runs) for runs in sizes]
    return {"sizes": sizes, "bytes": planned, "linear": linear(sizes, [found["all"] for found in planned])}


def throughput(training: Training, config: Config) -> dict[str, Any]:
    """An ensemble against a sample of its runs one after another: whole calls, and training alone; and their losses.

    All calls but the first are of compiled programs. What `fit_many` tries at its start counts in its whole calls.
    """
    params = training.varied if config.smoke else training.init

    def together() -> tuple[float, float, Any]:
        began = time.perf_counter()
        ensemble = training.fit_many(config.epochs, params, config.runs, config.strategy)
        return (time.perf_counter() - began) / config.runs, ensemble.seconds / config.runs, ensemble

    def apart() -> tuple[float, float, Any]:
        began = time.perf_counter()
        histories = [training.fit(config.epochs, params, seed) for seed in range(config.sample)]
        whole = time.perf_counter() - began
        return whole / config.sample, sum(seconds_of(h).all for h in histories) / config.sample, histories

    first = {"fit_s": _clocked(lambda: training.fit(1, params)), "fit_many_s": _clocked(together)}
    turns = take_turns({"fit": apart, "fit_many": together}, config.rounds)
    alone, many = np.array([h["loss"] for h in turns["fit"][-1][2]]), turns["fit_many"][-1][2]["loss"]
    found: dict[str, Any] = {
        "runs": config.runs,
        "sample": config.sample,
        "steps": config.epochs * training.network.steps,
        "first_call": first,
        "at_once": [ensemble.at_once for *_, ensemble in turns["fit_many"]],
        "losses": scaling_report.compare_losses(many[: config.sample], alone),
        "mark": scaling_report.GAIN_MARK,
    }
    for i, kind in enumerate(("whole", "inside")):
        seconds = {name: np.array([answer[i] for answer in answers]) for name, answers in turns.items()}
        ratio = measure.quartiles(seconds["fit"] / seconds["fit_many"])
        found[kind] = {
            **{f"{name}_s": measure.quartiles(values) for name, values in seconds.items()},
            "ratio": ratio,
            "reached": ratio["median"] >= scaling_report.GAIN_MARK,
        }
    return found


def _clocked(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    raise SystemExit(main())
