"""What a GPU makes of it: training loops compared, bfloat16 utilisation, ensembles of 1,024 nets, checked gradients.

The mark: `fit` in bfloat16 on nets 8192 wide reaches 85 % of the matrix products' own rate, measured in turns with it.
Where there is only a CPU, everything runs with smaller sizes, and the record says that it is a rehearsal.
"""

import contextlib
import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import funcnn as fnn
from experiments.benchmarks import accelerator_report, peers, scaling
from experiments.benchmarks.blocks import Blocks, options
from experiments.benchmarks.networks import NETWORKS, Network
from experiments.benchmarks.trainings import Seconds, Training, step_seconds
from experiments.benchmarks.workers import LIBRARIES, WorkerError
from experiments.common import measure, networks, record

PARTS = ("peers", "utilisation", "ensembles", "gradcheck")
Part = Literal["peers", "utilisation", "ensembles", "gradcheck"]
PEERS = tuple(name for name in LIBRARIES if name != "scikit-learn")  # which has no GPU
CASES = [
    *((dtype, gradient, "adam") for dtype in ("bfloat16", "float32") for gradient in ("autodiff", "backprop")),
    # Adam's state of float32 is memory traffic beside the products; without it they are nearly alone.
    *(("bfloat16", gradient, "sgd") for gradient in ("autodiff", "backprop")),
]
CHAIN = 8  # products in a call: what a call costs does not count


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    side: int  # of the wide network and its batch, and of the products
    cases: Sequence[tuple[str, str, str]]
    runs: tuple[int, ...]
    checked: int  # width of the network whose gradients are checked


FULL = Sizes(8192, CASES, (1, 4, 16, 64, 256, 1024), 64)
REHEARSAL = Sizes(512, CASES, (1, 4, 16, 64), 64)
SMOKE = Sizes(64, [CASES[0], CASES[3]], (1, 2), 4)


@dataclasses.dataclass(frozen=True)
class Config(Blocks):
    """Measures training on an accelerator, in one run; on a CPU it rehearses that."""

    parts: tuple[Part, ...] = PARTS
    """What to measure; a selection has a record of its own."""
    rounds: int = 7
    """Trainings of each kind; all take turns."""
    block_s: float = 1.0
    """Length of a training, about."""

    def check(self) -> None:
        """Raises UsageError for values that no run can have."""
        super().check()
        if not self.parts:
            raise record.UsageError(f"--parts takes at least one of {', '.join(PARTS)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    config = options(Config, "experiments.benchmarks.accelerator", argv)
    if config.smoke:
        config = dataclasses.replace(config, rounds=1, block_s=1e-3)
    chosen = [part for part in PARTS if part in config.parts]
    path = config.out / ("accelerator" if chosen == [*PARTS] else f"accelerator-{'-'.join(chosen)}")
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k != "out"}
    result: dict[str, Any] = {"command": record.command("experiments.benchmarks.accelerator", argv)}
    console = record.console()
    # The libraries come first: as soon as this process looks for the device, it takes its memory.
    for part in chosen:
        found = MEASURE[part](config, console)
        result |= {**record.environment(), "rehearsal": jax.default_backend() == "cpu"}
        result |= {"config": settings, "sizes": sizes_of(config), part: found}
        record.write(path.with_suffix(".json"), result)  # after each part: the next may fail
    accelerator_report.tell(console, result)
    accelerator_report.draw(path.with_suffix(".png"), result)
    print(f"Figure and record: {path}.png, {path}.json")
    return 0


def sizes_of(config: Config) -> Sizes:
    """As large as the device can."""
    return SMOKE if config.smoke else REHEARSAL if jax.default_backend() == "cpu" else FULL


def peers_on_device(config: Config, console: Console) -> list[dict[str, Any]]:
    """The training loops of all libraries, each on the device that it takes by itself."""
    names, chosen = PEERS, tuple(NETWORKS.values())
    if config.smoke:
        names, chosen = ("funcnn-autodiff", "scan"), peers.SMOKE_NETWORKS[:1]
    settings = peers.Config(libraries=names, rounds=config.rounds, block_s=config.block_s)
    results = []
    for network in chosen:
        try:
            with shared_memory():
                results.append(peers.measured(network, settings, console))
        except WorkerError as error:
            results.append({"network": network.name, "failed": str(error), "libraries": {}})
    return results


@contextlib.contextmanager
def shared_memory() -> Iterator[None]:
    """Processes that start in here take device memory as they need it: several of them live at once."""
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    before = os.environ.get(name)
    os.environ[name] = before or "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def utilisation(config: Config, console: Console) -> dict[str, Any]:
    """`fit` on wide networks, in turns with products of the same size and dtype."""
    sizes = sizes_of(config)
    network = Network((sizes.side,) * 4, sizes.side, 2, 0.0, 0.0, regression=True)
    runs: dict[Any, Callable[[int], Seconds]] = {}
    for dtype in dict.fromkeys(case[0] for case in sizes.cases):
        runs[dtype] = products(sizes.side, dtype)
        for case in sizes.cases:
            if case[0] == dtype:
                _, gradient, optimizer = case
                compute_dtype = None if dtype == "float32" else dtype
                runs[case] = Training(network, gradient, compute_dtype, optimizer).seconds
    with console.status(f"{network.name}, batch {network.batch}"):
        seconds = {name: np.array(values) for name, values in step_seconds(runs, config.rounds, config.block_s).items()}
    matmul = {dtype: 2 * CHAIN * sizes.side**3 / seconds[dtype] for dtype in runs if isinstance(dtype, str)}
    rows = [
        {
            "dtype": dtype,
            "gradient": gradient,
            "optimizer": optimizer,
            "steps_per_s": measure.quartiles(1 / seconds[dtype, gradient, optimizer]),
            **accelerator_report.share(network.flops / seconds[dtype, gradient, optimizer] / matmul[dtype]),
        }
        for dtype, gradient, optimizer in sizes.cases
    ]
    return {
        "network": network.name,
        "batch": network.batch,
        "flops_per_step": network.flops,
        "matmul_flops_per_s": {dtype: measure.quartiles(rates) for dtype, rates in matmul.items()},
        "rows": rows,
    }


def products(side: int, dtype: str) -> Callable[[int], Seconds]:
    """Square products of this dtype, each with the result of the one before; a step is a call, of CHAIN products."""
    a, b = jax.random.normal(jax.random.key(0), (2, side, side)).astype(dtype)
    a *= jnp.asarray(side**-0.5, dtype)  # so that the results keep their size

    @jax.jit
    def call(a: jax.Array, x: jax.Array) -> jax.Array:
        return functools.reduce(lambda x, _: a @ x, range(CHAIN), x)

    def run(calls: int) -> Seconds:
        began, x = time.perf_counter(), b
        for _ in range(calls):
            x = call(a, x)
        jax.block_until_ready(x)
        seconds = time.perf_counter() - began
        return Seconds(seconds, seconds / calls)

    return run


def ensembles(config: Config, console: Console) -> dict[str, Any]:
    """Time for a step and planned memory of `fit_many`, by the number of runs."""
    training, sizes = Training(scaling.MEMBER), sizes_of(config).runs
    strategy = "vmap" if config.smoke else "auto"
    with console.status("ensembles of 64-32-10"):
        runs = {size: functools.partial(training.ensemble_seconds, size, strategy) for size in sizes}
        seconds = step_seconds(runs, config.rounds, config.block_s)
        memory = scaling.memory_of(training, sizes)
    statistics = jax.devices()[0].memory_stats() or {}
    return {
        "sizes": sizes,
        **scaling.curve(sizes, [seconds[size] for size in sizes]),
        "memory": memory,
        "process_peak_bytes": statistics.get("peak_bytes_in_use"),
    }


def gradcheck(config: Config, console: Console) -> dict[str, Any]:
    """The checker's report; and hand-written gradients against autodiff's with and without pinned precision."""
    width = sizes_of(config).checked
    net = networks.mlp([width, width], fnn.Tanh())
    objective = fnn.Objective(net, fnn.losses.softmax_cross_entropy)
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.standard_normal((width, width), np.float32)), jnp.asarray(rng.integers(0, 10, width))
    params = net.init(jax.random.key(0), (width,))
    with console.status("the checker"):
        with jax.default_matmul_precision("highest"):
            pinned = fnn.gradcheck.compare(objective, params, (x, y))
            exact = gradients(objective, params, (x, y))
        unpinned = fnn.gradcheck.compare(objective, params, (x, y))  # which pins it itself
        usual = gradients(objective, params, (x, y))
    return {
        "pinned": json.loads(pinned.to_json()),
        "unpinned": json.loads(unpinned.to_json()),
        "by_hand_to_autodiff": {"highest": apart(*exact), "default": apart(*usual)},
        "default_to_highest": apart(usual[1], exact[1]),
    }


def gradients(objective: fnn.Objective, params: Any, batch: Any) -> tuple[Any, Any]:
    """By hand, and by autodiff, at the precision of matrix products that holds outside."""
    by_hand, autodiff = fnn.backprop.value_and_grad(objective), jax.value_and_grad(objective)
    return jax.jit(by_hand)(params, batch)[1], jax.jit(autodiff)(params, batch)[1]


def apart(g: Any, a: Any) -> dict[str, float]:
    """max|g - a| / max|a| of each array."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): float(jnp.max(jnp.abs(p - q)) / jnp.max(jnp.abs(q)))
        for (path, p), q in zip(jax.tree_util.tree_leaves_with_path(g), jax.tree.leaves(a), strict=True)
    }


MEASURE = {"peers": peers_on_device, "utilisation": utilisation, "ensembles": ensembles, "gradcheck": gradcheck}


if __name__ == "__main__":
    raise SystemExit(main())
