"""What `scaling` says of its measurements: its marks, tables, a figure."""

import pathlib
from typing import Any

import numpy as np
import rich.box
from matplotlib.ticker import FuncFormatter
from rich.table import Table

from experiments.benchmarks import laws
from experiments.common.figure import BLUE, GREEN, ORANGE, figure

EXPONENT_MARK, R2_MARK = 1.1, 0.99  # "linearly": an exponent of at most this, and a straight line that fits so well
GAIN_MARK = 1.5
# Losses of the same run are compared over the first epochs: float32 sums in another order are amplified by every step.
FIRST_EPOCHS, LOSS_TOLERANCE = 3, 1e-4
COLORS = {"autodiff": BLUE, "backprop": ORANGE}


def as_table(result: dict[str, Any]) -> Table:
    """A line for each sweep and gradient: the smallest and the largest step, the slope, and that of the operations."""
    table = Table(title="Time for a step, medians", title_justify="left", box=rich.box.SIMPLE_HEAD)
    for column in ("size", "gradient"):
        table.add_column(column, no_wrap=True)
    for column in ("step", "slope", "quartiles", "operations"):
        table.add_column(column, justify="right", no_wrap=True)
    for sweep in result["sweeps"]:
        for gradient, found in sweep["curves"].items():
            low, high = found["slope"]["low"], found["slope"]["high"]
            table.add_row(
                f"{sweep['label']} {sweep['sizes'][0]} - {sweep['sizes'][-1]}",
                gradient,
                f"{duration(found['seconds'][0])} - {duration(found['seconds'][-1])}",
                f"{found['slope']['median']:.2f}",
                f"{low:.2f} - {high:.2f}",
                f"{sweep['expected']}",
            )
    return table


def verdict(result: dict[str, Any]) -> str:
    """The marks, in words."""
    sizes, gain = result["memory"]["sizes"], result["throughput"]
    lines = ["Slopes are of log(time) over log(size), from the middle of the sizes on."]
    for what, found, each in (
        ("time", result["sweeps"][-1]["linear"], lambda s: f"{duration(s)} a run and step"),
        ("memory", result["memory"]["linear"], lambda b: f"{b / 1e3:.0f} kB a run"),
    ):
        lines.append(
            f"  {what} of an ensemble, {sizes[0]} to {sizes[-1]} runs: exponent {found['exponent']:.2f} (mark: at most "
            f"{EXPONENT_MARK}), R² of a line {found['r2']:.4f} (mark {R2_MARK}), {each(found['each'])}: {mark(found)}"
        )
    for kind, what in (("whole", "whole calls"), ("inside", "training alone")):
        found = gain[kind]
        ratio = found["ratio"]
        lines.append(
            f"  {gain['runs']} runs of {gain['steps']} steps together / one after another, {what}: "
            f"{duration(found['fit_s']['median'])} / {duration(found['fit_many_s']['median'])} a run, throughput x "
            f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}), mark {gain['mark']}: {mark(found)}"
        )
    losses, first = gain["losses"], gain["first_call"]
    lines.append(
        f"  the first call, which compiles: {first['fit_s']:.1f} s (fit), {first['fit_many_s']:.1f} s (fit_many); "
        f"losses of the same run differ by at most {losses['first']:.1e} in {FIRST_EPOCHS} epochs (mark "
        f"{LOSS_TOLERANCE:.0e}), {losses['all']:.1e} in all: {mark(losses)}"
    )
    return "\n".join(lines)


def compare_losses(many: np.ndarray, alone: np.ndarray) -> dict[str, Any]:
    """How far apart the losses (runs, epochs) of the same runs are at most, relative to those of `fit`."""
    apart = np.abs(many - alone) / np.abs(alone)
    first = float(np.max(apart[:, :FIRST_EPOCHS]))
    return {"first": first, "all": float(np.max(apart)), "reached": first <= LOSS_TOLERANCE}


def mark(found: dict[str, Any]) -> str:
    """Whether it is reached, in colour."""
    return "[green]reached[/green]" if found["reached"] else "[bold red]missed[/bold red]"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, name in ((1, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 1e-6:.3g} µs"


def draw(path: pathlib.Path, result: dict[str, Any]) -> None:
    """A log-log panel for each sweep, with the fitted slopes; the ensemble's memory beside its time."""
    with figure(path, 10, 7.5) as fig:
        title = "Time for a training step: relu networks, Adam; lines: powers fitted to the upper half of the sizes"
        fig.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
        for sweep, axes in zip(result["sweeps"], fig.subplots(2, 2).flat, strict=True):
            sizes = np.array(sweep["sizes"], float)
            for (gradient, found), marker in zip(sweep["curves"].items(), "os", strict=False):
                slope = found["slope"]["median"]
                label = f"{gradient}: slope {slope:.2f}" if len(sweep["curves"]) > 1 else f"time: slope {slope:.2f}"
                values = 1e3 * np.array(found["seconds"])
                face = "none" if marker == "s" else COLORS[gradient]  # both are seen where they agree
                axes.loglog(sizes, values, marker, color=COLORS[gradient], mfc=face, markersize=6, label=label)
                power(axes, sizes, values, slope, COLORS[gradient])
            axes.set_title(f"{sweep['label']}; {sweep['fixed']}")
            axes.set_xlabel(f"{sweep['label']} (operations grow with power {sweep['expected']})")
            axes.set_ylabel("ms a step" if sweep["sweep"] != "runs" else "ms a step of all runs")
            plain(axes, sizes)
            if sweep["sweep"] == "runs":
                axes.yaxis.label.set_color(BLUE)
                _memory(axes, result["memory"])
            else:
                axes.legend(loc="upper left")


def power(axes: Any, sizes: np.ndarray, values: np.ndarray, slope: float, color: str) -> None:
    """The fitted power through the upper half of the sizes."""
    upper = sizes[laws.upper(sizes.tolist()) :]
    height = np.exp(np.mean(np.log(values[-len(upper) :]) - slope * np.log(upper)))
    axes.loglog(upper, height * upper**slope, color=color, linewidth=1)


def _memory(axes: Any, memory: dict[str, Any]) -> None:
    """Planned bytes on an axis at the right."""
    sizes, right = np.array(memory["sizes"], float), axes.twinx()
    values = np.array([found["all"] for found in memory["bytes"]]) / 1e6
    slope = memory["linear"]["exponent"]
    right.loglog(sizes, values, "^", color=GREEN, markersize=5, label=f"memory: slope {slope:.2f} (right axis)")
    power(right, sizes, values, slope, GREEN)
    right.set_ylabel("MB planned", color=GREEN)
    right.set_ylim(top=8 * values[-1])  # below the times
    right.grid(visible=False)
    right.spines["right"].set_visible(True)
    plain(right, sizes)
    handles = [handle for side in (axes, right) for handle in side.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, loc="upper left")


def plain(axes: Any, sizes: np.ndarray) -> None:
    """Ticks at the sizes, and numbers as people write them."""
    every = 1 + len(sizes) // 7
    axes.set_xticks(sizes[::every], [f"{size:.0f}" for size in sizes[::every]])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
