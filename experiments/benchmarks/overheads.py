"""What stands around the steps costs little: importing, progress, a log, looks at the network, a random order.

The marks: `import funcnn` adds at most 0.15 s to `import jax, optax`; progress takes at most 1 % of the time; a
diagnosis at every 50th step less than 5 %.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
from rich.table import Table

import funcnn as fnn
from experiments.benchmarks.blocks import Blocks, options
from experiments.benchmarks.networks import NETWORKS
from experiments.common import measure, networks, record
from funcnn.train.shuffle import permutation

IMPORT_MARK, PROGRESS_MARK, WATCH_MARK = 0.15, 0.01, 0.05
WATCHED = {"no looks": None, "looks": fnn.train.Watch(every=50)}
IMPORTS = (
    "import time; a = time.perf_counter(); import jax, optax; b = time.perf_counter(); import funcnn; "
    "print(b - a, time.perf_counter() - b)"
)
KINDS = ("silence", "bar", "lines", "bar and log")
ORDERED = (1_344, 60_000)  # examples: of the digits' and of MNIST's size


@dataclasses.dataclass(frozen=True)
class Config(Blocks):
    """Measures the time that imports, progress, logs and random orders take."""

    rounds: int = 15
    """Processes that import; trainings of each kind, which take turns."""
    block_s: float = 3.0
    """About how long one training lasts."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    config = options(Config, "experiments.benchmarks.overheads", argv)
    if config.smoke:
        config = dataclasses.replace(config, rounds=1, block_s=0.2)
    console = record.console()
    with console.status("imports"):
        imports = import_seconds(config.rounds)
    with console.status("progress"):
        training = training_seconds(config)
    with console.status("looks at the network"):
        watched = watch_seconds(config)
    with console.status("orders"):
        orders = {n: order_seconds(n, config) for n in ORDERED}
    found = {
        "import": {name: measure.quartiles(values) for name, values in imports.items()},
        "progress": {
            kind: measure.quartiles(training[kind] / training["silence"] - 1) for kind in KINDS if kind != "silence"
        },
        "training_s": {kind: measure.quartiles(values) for kind, values in training.items()},
        "watch": measure.quartiles(watched["looks"] / watched["no looks"] - 1),
        "watched_s": {kind: measure.quartiles(values) for kind, values in watched.items()},
        "order": {
            str(n): {
                **{f"{name}_s": measure.quartiles(values) for name, values in seconds.items()},
                "ratio": measure.quartiles(seconds["jax"] / seconds["funcnn"]),
            }
            for n, seconds in orders.items()
        },
    }
    console.print(as_table(found))
    path = config.out / "overheads.json"
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k != "out"}
    about = {"command": record.command("experiments.benchmarks.overheads", argv), **record.environment()}
    marks = {"import_s": IMPORT_MARK, "progress": PROGRESS_MARK, "watch": WATCH_MARK}
    record.write(path, {**about, "config": settings, "marks": marks, **found})
    print(f"Record: {path}")
    return 0


def import_seconds(rounds: int) -> dict[str, np.ndarray]:
    """Seconds of both imports in fresh processes, after one that leaves the compiled bytecode behind."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:
        environment["PYTHONPYCACHEPREFIX"] = folder
        seconds = [
            [float(word) for word in subprocess.check_output([sys.executable, "-c", IMPORTS], env=environment).split()]
            for _ in range(rounds + 1)
        ]
    return dict(zip(("jax, optax", "funcnn"), np.array(seconds[1:]).T, strict=True))


def training_seconds(config: Config) -> dict[str, np.ndarray]:
    """Seconds of whole calls of `fit`, by what they tell; on a pretended terminal, whose text goes nowhere."""
    x = jax.random.normal(jax.random.key(0), (1344, 64))
    y = jax.random.randint(jax.random.key(1), (1344,), 0, 10)
    objective = fnn.Objective(networks.mlp([32], fnn.Relu()), fnn.losses.softmax_cross_entropy)
    params, optimizer = objective.net.init(jax.random.key(2), (64,)), optax.adam(1e-3)

    def train(epochs: int, kind: str, folder: pathlib.Path) -> float:
        progress = {"silence": None, "lines": "lines"}.get(kind, "bar")
        log = folder / "log.jsonl" if "log" in kind else None
        began = time.perf_counter()
        fnn.train.fit(
            objective, optimizer, params, (x, y), epochs=epochs, batch_size=32, key=jax.random.key(3),
            metrics={"accuracy": fnn.train.accuracy}, progress=progress, log=log,
        )  # fmt: skip
        return time.perf_counter() - began

    with tempfile.TemporaryDirectory() as name, _terminal():
        folder = pathlib.Path(name)
        train(1, "silence", folder)
        epochs = max(1, round(config.block_s * 50 / train(50, "silence", folder)))
        return by_turns(config.rounds, KINDS, lambda kind: train(epochs, kind, folder))


def watch_seconds(config: Config) -> dict[str, np.ndarray]:
    """Seconds of the steps of 784-512-512-10, with a diagnosis at every 50th and without."""
    network = NETWORKS["784-512-512-10"]
    data = network.examples()
    objective = fnn.Objective(networks.mlp(network.sizes[1:-1], fnn.Relu()), fnn.losses.softmax_cross_entropy)
    params, optimizer = objective.net.init(jax.random.key(2), data[0].shape[1:]), optax.adam(1e-3)

    def train(epochs: int, kind: str) -> float:
        _, history = fnn.train.fit(
            objective, optimizer, params, data, epochs=epochs, batch_size=network.batch, key=jax.random.key(3),
            gradient="backprop", watch=WATCHED[kind], progress=None,
        )  # fmt: skip
        return history["seconds"][-1]

    epochs = max(1, round(config.block_s / train(1, "no looks")))
    train(1, "looks")
    return by_turns(config.rounds, tuple(WATCHED), lambda kind: train(epochs, kind))


def by_turns(rounds: int, kinds: Sequence[str], train: Callable[[str], float]) -> dict[str, np.ndarray]:
    """Seconds of each kind of training, one a round, in an order that is reversed from one round to the next."""
    seconds: dict[str, Any] = {kind: [] for kind in kinds}
    for i in range(rounds):
        for kind in kinds[:: 1 if i % 2 else -1]:
            seconds[kind].append(train(kind))
    return {kind: np.array(values) for kind, values in seconds.items()}


@contextlib.contextmanager
def _terminal() -> Iterator[None]:
    """Standard error as a terminal that nobody looks at."""
    before = {name: os.environ.get(name) for name in ("FORCE_COLOR", "COLUMNS")}
    os.environ |= {"FORCE_COLOR": "1", "COLUMNS": "120"}
    try:
        with pathlib.Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def order_seconds(n: int, config: Config) -> dict[str, np.ndarray]:
    """Seconds of a compiled random order of n examples: by `jax.random.permutation`, and by the loop's own."""
    key = jax.random.key(0)
    orders = {"jax": jax.random.permutation, "funcnn": permutation}
    programs = {name: jax.jit(order, static_argnums=1) for name, order in orders.items()}
    runs = {name: functools.partial(program, key, n) for name, program in programs.items()}
    return measure.interleave(runs, config.rounds, config.block_s / 20)


def as_table(found: dict[str, Any]) -> Table:
    """Medians and quartiles beside the marks."""
    table = Table(title="What stands around the steps", title_justify="left")
    for name in ("what", "median", "quartiles", "mark"):
        table.add_column(name)
    for name, value in found["import"].items():
        mark = f"{IMPORT_MARK} s" if name == "funcnn" else ""
        table.add_row(
            f"import {name}", f"{value['median']:.3f} s", f"{value['low']:.3f} to {value['high']:.3f} s", mark
        )
    shares = {f"progress: {kind}": (value, PROGRESS_MARK) for kind, value in found["progress"].items()}
    shares["a diagnosis at every 50th step"] = found["watch"], WATCH_MARK
    for what, (value, mark) in shares.items():
        quartiles = f"{100 * value['low']:.2f} to {100 * value['high']:.2f} %"
        table.add_row(what, f"{100 * value['median']:.2f} %", quartiles, f"{100 * mark:.0f} %")
    for n, value in found["order"].items():
        ratio = value["ratio"]
        what = f"order of {int(n):,} examples: time of jax.random.permutation, as a multiple of funcnn's"
        table.add_row(what, f"{ratio['median']:.1f}", f"{ratio['low']:.1f} to {ratio['high']:.1f}", "")
    return table


if __name__ == "__main__":
    raise SystemExit(main())
