"""What saving policies cost: temporary memory, time, and the gradient's error, beside autodiff through the same scan.

Many blocks of Dense and Relu as one `Repeat`, and the gradient of a squared error by `jax.value_and_grad` and by the
rules under each policy; and how long the program is and takes to compile, as the number of blocks grows.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from rich.table import Table

import funcnn as fnn
from experiments.benchmarks.blocks import Blocks, options
from experiments.common import measure, record
from funcnn.backprop import RULES, Rules, saving

AUTODIFF = "autodiff"
POLICIES: dict[str, tuple[str, Rules]] = {
    "keep": ("all that the rules need", RULES),
    "one bit": ("one bit a unit for relu", RULES.saving({fnn.Relu: saving.one_bit})),
    "bfloat16": ("residuals in bfloat16", RULES.saving({"block": saving.bfloat16})),
    "bfloat16, one bit": (
        "inputs in bfloat16, one bit a unit for relu",
        RULES.saving({fnn.Dense: saving.bfloat16, fnn.Relu: saving.one_bit}),
    ),
    "recompute blocks": ("the input of each block", RULES.saving({"block": saving.recompute})),
    "recompute all": ("the input of the first block", RULES.saving({fnn.Repeat: saving.recompute})),
    "segments": ("the input of each sqrt(n)-th block", RULES.saving({fnn.Repeat: saving.Segments()})),
    "segments, bfloat16, one bit": (
        "of each sqrt(n)-th block; within them as above",
        RULES.saving({fnn.Repeat: saving.Segments(), fnn.Dense: saving.bfloat16, fnn.Relu: saving.one_bit}),
    ),
    "offload": ("all, in the host's memory (a CPU has no other)", RULES.saving({fnn.Repeat: saving.offload})),
}
# Half of autodiff's memory in 1.05 times its time; a program of 512 blocks is compiled as fast as one of 8.
MEMORY_MARK, TIME_MARK = 0.5, 1.05


@dataclasses.dataclass(frozen=True)
class Config(Blocks):
    """Measures what saving policies cost."""

    rounds: int = 15
    """Blocks of calls for each policy, which take turns."""
    block_s: float = 1.0
    """About how long a block lasts."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How much there is to do."""

    blocks: int = 64
    width: int = 256
    batch: int = 1024
    depths: tuple[int, ...] = (8, 64, 512)
    compilations: int = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    config, size = options(Config, "experiments.benchmarks.memory", argv), Size()
    if config.smoke:
        config, size = dataclasses.replace(config, rounds=1, block_s=0.01), Size(6, 8, 16, (2, 4), 1)
    console = record.console()
    with console.status("policies"):
        results = measured(size, config)
    console.print(as_table(results))
    with console.status("depth"):
        depths = [compilation(n, size) for n in size.depths]
    console.print(depth_table(depths))
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k != "out"}
    about = {"command": record.command("experiments.benchmarks.memory", argv), **record.environment()}
    reached = [row["policy"] for row in results if row["reaches"]]
    print(
        f"At most {MEMORY_MARK} of autodiff's memory in at most {TIME_MARK} of its time: {', '.join(reached) or 'none'}"
    )
    path = config.out / "memory.json"
    marks = {"memory": MEMORY_MARK, "time": TIME_MARK}
    found = {"size": dataclasses.asdict(size), "marks": marks, "results": results, "reached": reached, "depths": depths}
    record.write(path, {**about, "config": settings, **found})
    print(f"Record: {path}")
    return 0


def problem(blocks: int, size: Size) -> tuple[fnn.Objective, Any, Any]:
    """Objective, parameters and batch."""
    block = fnn.Serial(fnn.Dense(size.width, w_init="he_normal"), fnn.Relu())
    objective = fnn.Objective(fnn.Repeat(block, blocks), fnn.losses.squared_error)
    keys = jax.random.split(jax.random.key(0), 3)
    x, y = (jax.random.normal(key, (size.batch, size.width)) for key in keys[:2])
    return objective, objective.net.init(keys[2], (size.width,)), (x, y)


def measured(size: Size, config: Config) -> list[dict[str, Any]]:
    """Memory, time and error of each policy."""
    objective, params, batch = problem(size.blocks, size)
    gradients = {AUTODIFF: jax.value_and_grad(objective)} | {
        name: fnn.backprop.value_and_grad(objective, rules=rules) for name, (_, rules) in POLICIES.items()
    }
    programs = {name: measure.compiled(jax.jit(gradient), params, batch) for name, gradient in gradients.items()}
    runs = {name: functools.partial(program.run, params, batch) for name, program in programs.items()}
    exact = runs[AUTODIFF]()[1]
    seconds = measure.interleave(runs, config.rounds, config.block_s)
    results = []
    for name, program in programs.items():
        time = measure.quartiles(seconds[name] / seconds[AUTODIFF])
        memory = program.temp_bytes / programs[AUTODIFF].temp_bytes
        results.append(
            {
                "policy": name,
                "keeps": POLICIES[name][0] if name in POLICIES else "inputs, and a byte a unit for relu",
                "temp_bytes": program.temp_bytes,
                "memory": memory,
                "ms": measure.quartiles(1e3 * seconds[name]),
                "time": time,
                "error": error(runs[name]()[1], exact),
                "reaches": name != AUTODIFF and memory <= MEMORY_MARK and time["median"] <= TIME_MARK,
            }
        )
    return results


def error(got: Any, exact: Any) -> float:
    """|got - exact| / |exact|, over all parameters."""
    difference = jax.tree.map(jnp.subtract, got, exact)
    squares = [sum(float(jnp.sum(jnp.square(leaf))) for leaf in jax.tree.leaves(tree)) for tree in (difference, exact)]
    return (squares[0] / squares[1]) ** 0.5


def compilation(blocks: int, size: Size) -> dict[str, Any]:
    """How long the program of so many blocks is, and how long tracing and compiling it takes."""
    objective, params, batch = problem(blocks, size)
    gradient = fnn.backprop.value_and_grad(objective)
    times = []
    for _ in range(size.compilations):
        jax.clear_caches()
        program = measure.compiled(jax.jit(gradient), params, batch)
        times.append([program.trace_s, program.compile_s])
    trace, compiling = map(sorted, zip(*times, strict=True))
    text = jax.jit(gradient).lower(params, batch).as_text()
    middle = len(times) // 2
    return {
        "blocks": blocks,
        "program_lines": text.count("\n"),
        "trace_s": trace[middle],
        "compile_s": compiling[middle],
    }


def as_table(results: list[dict[str, Any]]) -> Table:
    """The policies, for a terminal."""
    table = Table(title="Gradient of many blocks of Dense and Relu: what is kept, and what it costs")
    for name in ("policy", "keeps", "temporary MB", "of autodiff's", "time / autodiff's", "error of the gradient"):
        table.add_column(name, justify="left" if name in ("policy", "keeps") else "right")
    for row in results:
        time = f"{row['time']['median']:.2f} ({row['time']['low']:.2f}-{row['time']['high']:.2f})"
        megabytes = f"{row['temp_bytes'] / 1e6:.1f}"
        cells = (megabytes, f"{row['memory']:.2f}", time, f"{row['error']:.0e}" if row["error"] else "0")
        table.add_row(row["policy"], row["keeps"], *cells, style="green" if row["reaches"] else None)
    return table


def depth_table(depths: list[dict[str, Any]]) -> Table:
    """Program and compilation by depth, for a terminal."""
    table = Table(title="The program of the gradient, by the number of blocks")
    for name in ("blocks", "lines of StableHLO", "traced in", "compiled in"):
        table.add_column(name, justify="right")
    for row in depths:
        seconds = (f"{row[name]:.2f} s" for name in ("trace_s", "compile_s"))
        table.add_row(str(row["blocks"]), str(row["program_lines"]), *seconds)
    return table


if __name__ == "__main__":
    raise SystemExit(main())
