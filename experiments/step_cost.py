"""The hand-written backward pass takes no more time and no more memory than `jax.value_and_grad`.

Loss and gradients of five networks, jitted, in one process: blocks of calls of either program take turns. The marks
are a median time ratio (by hand / jax) of at most 1.05 and a temporary-memory ratio of at most 1.00.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import optax
import rich.box
import tyro
from rich.table import Table

import funcnn as fnn
from experiments.common import measure, networks, record
from experiments.common.figure import BLUE, GREEN, ORANGE, figure
from experiments.common.training import stepper

TIME_MARK, MEMORY_MARK = 1.05, 1.0


class Case(NamedTuple):
    """A network, the width of an example, and the batch size."""

    net: fnn.Layer
    features: int
    batch: int


CASES = {
    "784-128-10 relu": Case(networks.mlp([128], fnn.Relu()), 784, 128),
    "784-512-512-10 tanh": Case(networks.mlp([512, 512], fnn.Tanh()), 784, 128),
    "16 x 256 silu": Case(networks.mlp([256] * 16, fnn.Silu()), 256, 256),
    "maxout 240x5-240x5-10": Case(networks.maxout([240, 240], 5), 784, 128),
    "graph with fan-out": Case(networks.fan_out([256, 256], fnn.Silu()), 784, 128),
}
COLORS = {"float32": BLUE, "float64": ORANGE, "bfloat16": GREEN}


@dataclasses.dataclass(frozen=True)
class Config:
    """Measures time and memory of the hand-written backward pass against jax.value_and_grad, in one run."""

    dtypes: tuple[Literal["float32", "float64", "bfloat16"], ...] = ("float32", "float64", "bfloat16")
    """Precisions; bfloat16 computes on float32 weights."""
    only: str = ""
    """Measure the networks whose name contains this."""
    step: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Measure whole training steps with Adam instead of loss and gradients."""
    rounds: int = 60
    """Blocks of calls for each program; the two take turns."""
    block_ms: float = 20.0
    """Length of a block."""
    seed: int = 0
    """Draws parameters and examples."""
    out: pathlib.Path = pathlib.Path("out")
    """Directory for the figure and the record; made if it is missing."""
    smoke: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Measure one network for a moment, only to see that everything works."""

    def check(self) -> None:
        """Raises UsageError for values that no run can have."""
        if self.rounds < 1 or not 0 < self.block_ms < np.inf:
            raise record.UsageError("--rounds and --block-ms are positive")
        if not 0 <= self.seed < 2**31:
            raise record.UsageError(f"--seed is in 0 .. 2^31 - 1, got {self.seed}")
        if not self.dtypes:
            raise record.UsageError(f"--dtypes takes at least one of {', '.join(COLORS)}")
        if not any(self.only in name for name in CASES):
            raise record.UsageError(f"--only {self.only!r} is in none of the names: {', '.join(CASES)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    config = tyro.cli(Config, args=argv, prog="python -m experiments.step_cost")
    with record.one_line_errors(OSError):
        config.check()
        config.out.mkdir(parents=True, exist_ok=True)
    if config.smoke:
        config = dataclasses.replace(config, dtypes=config.dtypes[:1], only="128-10", rounds=3, block_ms=2)
    console = record.console()
    jax.jit(lambda x: x + 1).lower(0.0).compile()  # the compiler starts up once, before anything is timed
    results = []
    for name, case in CASES.items():
        for dtype in config.dtypes if config.only in name else ():
            with console.status(f"{name}, {dtype}"), jax.enable_x64(dtype == "float64"):
                results.append({"network": name, "dtype": dtype, **compare(case, dtype, config)})
    console.print(as_table(results))
    console.print(verdict(results), highlight=False)
    path = config.out / ("step_cost-adam" if config.step else "step_cost")
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k != "out"}
    about = {"command": record.command("experiments.step_cost", argv), **record.environment(), "config": settings}
    record.write(
        path.with_suffix(".json"), {**about, "marks": {"time": TIME_MARK, "memory": MEMORY_MARK}, "results": results}
    )
    draw(path.with_suffix(".png"), results, "a training step with Adam" if config.step else "loss and gradients")
    print(f"Figure and record: {path}.png, {path}.json")
    return 0


def compare(case: Case, dtype: str, config: Config) -> dict[str, Any]:
    """Both programs of one network in one dtype: compiled apart, and then timed in turns."""
    net = fnn.Cast(case.net, dtype) if dtype == "bfloat16" else case.net
    objective = fnn.Objective(net, fnn.losses.softmax_cross_entropy)
    key_params, key_x, key_y = jax.random.split(jax.random.key(config.seed), 3)
    params = net.init(key_params, (case.features,))
    batch = (
        jax.random.normal(key_x, (case.batch, case.features)),
        jax.random.randint(key_y, (case.batch,), 0, 10),
    )
    programs, runs = {}, {}
    for name, gradient in {"autodiff": jax.value_and_grad, "backprop": fnn.backprop.value_and_grad}.items():
        jax.clear_caches()  # so that neither is traced with what the other left behind
        if config.step:
            optimizer = optax.adam(1e-3)
            state = fnn.train.start(optimizer, params, key_x)
            programs[name] = measure.compiled(fnn.train.step(objective, optimizer, gradient), state, batch)
            runs[name] = stepper(programs[name].run, state, batch)
        else:
            programs[name] = measure.compiled(jax.jit(gradient(objective)), params, batch)
            runs[name] = functools.partial(programs[name].run, params, batch)
    seconds = measure.interleave(runs, config.rounds, config.block_ms / 1000)
    autodiff, backprop = programs["autodiff"], programs["backprop"]
    time = measure.quartiles(seconds["backprop"] / seconds["autodiff"])
    memory = backprop.temp_bytes / autodiff.temp_bytes
    return {
        **{name: {"seconds": measure.quartiles(seconds[name]), **programs[name].numbers()} for name in programs},
        "time_ratio": time,
        "memory_ratio": memory,
        "flops_ratio": backprop.flops / autodiff.flops,
        "marks_met": time["median"] <= TIME_MARK and memory <= MEMORY_MARK,
    }


def as_table(results: list[dict[str, Any]]) -> Table:
    """A line for each network and dtype."""
    table = Table(
        title="Times are medians; ratios are by hand / jax.value_and_grad",
        title_justify="left",
        box=rich.box.SIMPLE_HEAD,
    )
    for column in ("network", "dtype", "jax ms", "hand ms", "time", "memory", "flops", "compile", "marks"):
        table.add_column(column, justify="left" if column in ("network", "dtype", "marks") else "right", no_wrap=True)
    before = ""
    for row in results:
        jax_, hand, ratio = row["autodiff"], row["backprop"], row["time_ratio"]
        seconds = [1e3 * program["seconds"]["median"] for program in (jax_, hand)]
        compile_s = [program["trace_s"] + program["compile_s"] for program in (jax_, hand)]
        table.add_row(
            "" if row["network"] == before else row["network"],
            row["dtype"],
            *(f"{ms:.2f}" for ms in seconds),
            f"{ratio['median']:.3f}",
            f"{row['memory_ratio']:.3f}",
            f"{row['flops_ratio']:.3f}",
            f"{compile_s[1] / compile_s[0]:.2f}",
            "[green]met[/green]" if row["marks_met"] else "[bold red]missed[/bold red]",
        )
        before = row["network"]
    return table


def verdict(results: list[dict[str, Any]]) -> str:
    """Which marks are met, in words."""
    missed = [row for row in results if not row["marks_met"]]
    lines = [
        f"{len(results) - len(missed)} of {len(results)} meet both marks: time at most {TIME_MARK:.2f}, "
        f"temporary memory at most {MEMORY_MARK:.2f}."
    ]
    for row in missed:
        low, median, high = (row["time_ratio"][k] for k in ("low", "median", "high"))
        lines.append(
            f"  {row['network']}, {row['dtype']}: time {median:.3f} (quartiles {low:.3f} to {high:.3f}), "
            f"memory {row['memory_ratio']:.3f}"
        )
    return "\n".join(lines)


def draw(path: pathlib.Path, results: list[dict[str, Any]], what: str) -> None:
    """Bars of both ratios, a group for each network."""
    networks_, dtypes = ([*dict.fromkeys(row[key] for row in results)] for key in ("network", "dtype"))
    height = 0.8 / len(dtypes)
    with figure(path, 10, 1.6 + 0.8 * len(networks_)) as fig:
        time, memory = fig.subplots(1, 2, sharey=True)
        fig.suptitle(f"The cost of {what}: by hand / jax.value_and_grad", x=0.01, ha="left", fontweight="bold")
        for i, dtype in enumerate(dtypes):
            rows = [row for row in results if row["dtype"] == dtype]
            places = np.array([networks_.index(row["network"]) for row in rows]) + (i - (len(dtypes) - 1) / 2) * height
            low, ratios, high = (np.array([row["time_ratio"][k] for row in rows]) for k in ("low", "median", "high"))
            spread = np.stack([ratios - low, high - ratios])
            time.barh(places, ratios, height, xerr=spread, color=COLORS[dtype], ecolor="#444444", label=dtype)
            memory.barh(places, [row["memory_ratio"] for row in rows], height, color=COLORS[dtype])
        for axes, mark, title in (
            (time, TIME_MARK, "time, median and quartiles"),
            (memory, MEMORY_MARK, "temporary memory"),
        ):
            axes.axvline(1, color="black", linewidth=1)
            axes.axvline(mark, color="black", linestyle=":", linewidth=1.5)
            axes.set(title=title, xlabel=f"ratio; below 1 is better; dotted: the mark, {mark:.2f}")
        time.set_yticks(range(len(networks_)), networks_)
        time.invert_yaxis()
        fig.legend(loc="outside lower center", ncols=len(dtypes))


if __name__ == "__main__":
    raise SystemExit(main())
