"""`fit` trains as fast as a bare JAX scan, and faster than the training loops of other libraries.

Each library trains the same relu networks on the same examples with Adam, in the idiom of its own documentation and in
a process of its own. Blocks of training take turns, each from the first weights and about equally long; ratios of
steps/s are taken within a round. Shuffling and metrics are timed, compilation is apart.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from experiments.benchmarks import report
from experiments.benchmarks.blocks import Blocks, options
from experiments.benchmarks.networks import NETWORKS, Network
from experiments.benchmarks.workers import LIBRARIES, Worker, epochs_for, take_turns, workers
from experiments.common import measure, record

SMOKE_NETWORKS = (
    Network((64, 32, 10), 32, 4, 2.5, 0.95),
    Network((16, 32, 32, 8), 16, 4, 1.0, 0.98, regression=True, large=True),
)
SMOKE_LIBRARIES = ("funcnn-autodiff", "funcnn-backprop", "scan", "scikit-learn")


@dataclasses.dataclass(frozen=True)
class Config(Blocks):
    """Measures training loops of funcnn and of other libraries against one another, in one run."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    """Relu networks by their sizes."""
    libraries: tuple[str, ...] = tuple(LIBRARIES)
    """Libraries to compare; what is not installed is left out."""
    rounds: int = 12
    """Blocks of training for each library; all take turns."""
    block_s: float = 1.0
    """Length of a block, about: it is whole epochs, at least three."""

    def check(self) -> None:
        """Raises UsageError for values that no run can have."""
        super().check()
        for option, chosen, known in (
            ("--networks", self.networks, NETWORKS),
            ("--libraries", self.libraries, LIBRARIES),
        ):
            if unknown := [name for name in chosen if name not in known]:
                raise record.UsageError(f"{option}: no {unknown[0]!r} among {', '.join(known)}")
            if not chosen:
                raise record.UsageError(f"{option} takes at least one of {', '.join(known)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    config = options(Config, "experiments.benchmarks.peers", argv)
    networks = [NETWORKS[name] for name in config.networks]
    if config.smoke:
        default = Config().libraries
        libraries = SMOKE_LIBRARIES if config.libraries == default else config.libraries
        config, networks = dataclasses.replace(config, libraries=libraries, rounds=3, block_s=0.05), SMOKE_NETWORKS
    console = record.console()
    results = []
    for network in networks:
        results.append(measured(network, config, console))
        console.print(report.as_table(results[-1]))
        console.print(report.verdict(results[-1]), highlight=False)
    path = config.out / "peers"
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k != "out"}
    about = {
        "command": record.command("experiments.benchmarks.peers", argv),
        **record.environment(),
        "config": settings,
        "libraries": {
            name: {"version": LIBRARIES[name].version, "idiom": LIBRARIES[name].idiom}
            for name in config.libraries
            if not LIBRARIES[name].missing
        },
    }
    record.write(path.with_suffix(".json"), {**about, "results": results})
    if any(result["libraries"] for result in results):
        report.draw(path.with_suffix(".png"), results)
    print(f"Figure and record: {path}.png, {path}.json")
    return 0


def measured(network: Network, config: Config, console: Console) -> dict[str, Any]:
    """One network with all libraries: each is started, built and tried alone; then they take turns."""
    chosen = [name for name in LIBRARIES if name in config.libraries]
    with console.status(network.name) as status, workers(chosen, network) as (running, rows, left_out):
        epochs = {}
        for name, worker in running.items():
            status.update(f"{network.name}: {LIBRARIES[name].label} warms up")
            epochs[name] = epochs_for(seconds_of(worker), rows[name]["epoch_s"], config.block_s)
            rows[name] |= worker.ask("memory")  # before the scan's process measures the machine
        ours = max((count for name, count in epochs.items() if not LIBRARIES[name].peer), default=1)
        turns = {}
        for name, worker in running.items():  # `fit` and scan: the same work
            rows[name]["epochs"] = epochs[name] if LIBRARIES[name].peer else ours
            turns[name] = functools.partial(worker.ask, "train", epochs=rows[name]["epochs"])
        if network.large and report.SCAN in running:
            turns["matmul"] = functools.partial(running[report.SCAN].ask, "matmul")
        status.update(f"{network.name}: {config.rounds} rounds")
        answers = take_turns(turns, config.rounds)
    matmul = np.array([answer["flops_per_s"] for answer in answers.pop("matmul", [])])
    for name, blocks in answers.items():
        row = rows[name]
        rates = np.array([row["epochs"] * network.steps / block["seconds"] for block in blocks])
        row |= {"loss": blocks[-1]["loss"], "metric": blocks[-1]["metric"]}
        row |= {"steps_per_s": measure.quartiles(rates), "rounds": rates.tolist()}
        if matmul.size:
            row["matmul_share"] = measure.quartiles(rates * network.flops / matmul)
    return {
        "network": network.name,
        "batch": network.batch,
        "steps_per_epoch": network.steps,
        "regression": network.regression,
        "large": network.large,
        "flops_per_step": network.flops,
        "peers_mark": network.peers_mark,
        "scan_mark": network.scan_mark,
        "libraries": rows,
        "left_out": left_out,
        "matmul_flops_per_s": measure.quartiles(matmul) if matmul.size else None,
        "ratios": report.compare({name: row["rounds"] for name, row in rows.items()}, network),
    }


def seconds_of(worker: Worker) -> Callable[[int], float]:
    """A function that trains for so many epochs, and returns how long that took."""
    return lambda epochs: worker.ask("train", epochs=epochs)["seconds"]


if __name__ == "__main__":
    raise SystemExit(main())
