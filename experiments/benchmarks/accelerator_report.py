"""What `accelerator` says of its measurements: the mark, what is printed, a figure."""

import pathlib
from typing import Any

import numpy as np
import rich.box
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import report
from experiments.benchmarks.scaling_report import duration, plain, power
from experiments.benchmarks.workers import LIBRARIES
from experiments.common import measure
from experiments.common.figure import BLUE, GRAY, GREEN, ORANGE, SKY, VERMILION, figure

UTILISATION_MARK = 0.85  # of bfloat16 products


def share(ratios: np.ndarray) -> dict[str, Any]:
    """The share of the products' rate, by ratios of the same round, and whether it reaches the mark."""
    found = measure.quartiles(ratios)
    return {"share": found, "reached": found["median"] >= UTILISATION_MARK}


def tell(console: Console, result: dict[str, Any]) -> None:
    """Prints what was measured, part by part."""
    console.print(f"\n[bold]{device(result)}[/bold]", highlight=False)
    for network in result.get("peers", []):
        if "failed" in network:
            console.print(f"  {network['network']}: [bold red]failed[/bold red]: {network['failed']}", highlight=False)
        else:
            console.print(report.as_table(network))
            console.print(report.verdict(network), highlight=False)
    if "utilisation" in result:
        console.print(utilisation_table(result["utilisation"]))
    if "ensembles" in result:
        console.print(ensembles_table(result["ensembles"]))
    if "gradcheck" in result:
        console.print(gradcheck_verdict(result["gradcheck"]), highlight=False)


def device(result: dict[str, Any]) -> str:
    """What was measured on; a CPU is a rehearsal."""
    about = result["device"]
    if result["rehearsal"]:
        return f"The device is a CPU ({about['processor']}), sizes are small: this is a rehearsal."
    return f"Device: {about['kind']} ({about['platform']})"


def utilisation_table(found: dict[str, Any]) -> Table:
    """A line for each dtype, gradient and optimizer."""
    rates = ", ".join(f"{k} {v['median'] / 1e12:.3g} Tflop/s" for k, v in found["matmul_flops_per_s"].items())
    table = Table(
        title=f"{found['network']}, batch {found['batch']}: share of the products' own rate ({rates})",
        title_justify="left",
        box=rich.box.SIMPLE_HEAD,
    )
    for column in ("dtype", "gradient", "optimizer", "steps/s", "share", "quartiles", "mark"):
        table.add_column(column, justify="right" if column in ("steps/s", "share", "quartiles") else "left")
    for row in found["rows"]:
        low, high = row["share"]["low"], row["share"]["high"]
        reached = "[green]reached[/green]" if row["reached"] else "[bold red]missed[/bold red]"
        table.add_row(
            row["dtype"],
            row["gradient"],
            row["optimizer"],
            f"{row['steps_per_s']['median']:.3g}",
            f"{100 * row['share']['median']:.0f} %",
            f"{100 * low:.0f} - {100 * high:.0f} %",
            f"{reached} ({100 * UTILISATION_MARK:.0f} %)" if row["dtype"] == "bfloat16" else "",
        )
    return table


def ensembles_table(found: dict[str, Any]) -> Table:
    """A line for each number of runs."""
    table = Table(title="Ensembles of 64-32-10, batch 32", title_justify="left", box=rich.box.SIMPLE_HEAD)
    for column in ("runs", "a step of all", "a step and run", "planned MB"):
        table.add_column(column, justify="right")
    for runs, seconds, memory in zip(found["sizes"], found["seconds"], found["memory"]["bytes"], strict=True):
        table.add_row(f"{runs:,}", duration(seconds), duration(seconds / runs), f"{memory['all'] / 1e6:.3g}")
    return table


def gradcheck_verdict(found: dict[str, Any]) -> str:
    """The checker's verdicts, and what pinned precision changes."""
    largest = {name: max(errors.values()) for name, errors in found["by_hand_to_autodiff"].items()}
    words = {True: "[green]passed[/green]", False: "[bold red]failed[/bold red]"}
    return (
        f"Gradients by hand, {len(found['pinned']['leaves'])} arrays: the checker {words[found['pinned']['passed']]} "
        f"with pinned precision, {words[found['unpinned']['passed']]} as it is called by default.\n"
        f"  By hand to jax.grad, largest: {largest['highest']:.1e} pinned, {largest['default']:.1e} not pinned; what "
        f"pinning changes in jax.grad itself: {max(found['default_to_highest'].values()):.1e}"
    )


def draw(path: pathlib.Path, result: dict[str, Any]) -> None:
    """A panel for each part."""
    panels = {"peers": _peers, "utilisation": _utilisation, "ensembles": _ensembles, "gradcheck": _gradcheck}
    parts = [part for part in panels if result.get(part)]
    columns = min(2, len(parts))
    with figure(path, 6 * columns, 4.2 * -(-len(parts) // columns)) as fig:
        fig.suptitle(device(result), x=0.01, ha="left", fontweight="bold", fontsize=11)
        axes = fig.subplots(-(-len(parts) // columns), columns, squeeze=False).flat
        for part, place in zip(parts, axes, strict=False):
            panels[part](place, result[part])
        for place in fig.axes[len(parts) : columns * -(-len(parts) // columns)]:
            place.set_axis_off()


def _peers(axes: Any, found: list[dict[str, Any]]) -> None:
    names = [name for name in LIBRARIES if any(name in network["libraries"] for network in found)]
    for network, color, marker in zip(found, (BLUE, ORANGE, GREEN, VERMILION), "os^D", strict=False):
        rows = network["libraries"]
        rates = [rows[name]["steps_per_s"]["median"] for name in rows]
        axes.semilogx(rates, [names.index(n) for n in rows], marker, color=color, label=network["network"])
    axes.set_yticks(range(len(names)), [LIBRARIES[name].label for name in names])
    axes.set(xlabel="steps/s", title="training loops", ylim=(len(names) - 0.5, -0.5), xlim=_decades(*axes.get_xlim()))
    axes.legend(fontsize=8, title="network", title_fontsize=8)


def _utilisation(axes: Any, found: dict[str, Any]) -> None:
    rows = found["rows"]
    middle = np.array([100 * row["share"]["median"] for row in rows])
    spread = [[100 * abs(row["share"][end] - row["share"]["median"]) for row in rows] for end in ("low", "high")]
    colors = [BLUE if row["dtype"] == "bfloat16" else GRAY for row in rows]
    axes.barh(range(len(rows)), middle, 0.7, xerr=spread, color=colors, ecolor="#444444")
    axes.axvline(100 * UTILISATION_MARK, color="black", linestyle=":", linewidth=1.5)
    axes.set_yticks(range(len(rows)), [f"{row['dtype']}\n{row['gradient']}, {row['optimizer']}" for row in rows])
    axes.tick_params(axis="y", labelsize=8)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_title(f"fit, {found['network']}, batch {found['batch']}")
    axes.set_xlabel("% of the products' rate in that dtype; dotted: the mark of bfloat16")
    axes.set_xlim(0, 105)


def _ensembles(axes: Any, found: dict[str, Any]) -> None:
    sizes, right = np.array(found["sizes"], float), axes.twinx()
    micro = 1e6 * np.array(found["seconds"]) / sizes
    axes.loglog(sizes, micro, "o-", color=BLUE, label="time for a step and run")
    planned = np.array([memory["all"] for memory in found["memory"]["bytes"]]) / 1e6
    right.loglog(sizes, planned, "^", color=GREEN, label="planned memory (right axis)")
    power(right, sizes, planned, found["memory"]["linear"]["exponent"], GREEN)
    right.grid(visible=False)
    right.spines["right"].set_visible(True)
    for side in (axes, right):
        side.set_ylim(*_decades(*side.get_ylim()))
        plain(side, sizes)
    axes.set(title="fit_many, 64-32-10, batch 32", xlabel="runs")
    axes.set_ylabel("µs a step and run", color=BLUE)
    right.set_ylabel("MB planned", color=GREEN)
    axes.legend(handles=[*axes.lines, right.lines[0]], loc="upper center")


def _decades(low: float, high: float) -> tuple[float, float]:
    return 10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(high))


def _gradcheck(axes: Any, found: dict[str, Any]) -> None:
    by_hand, changed = found["by_hand_to_autodiff"], found["default_to_highest"]
    places = np.arange(len(changed))
    for shift, (errors, color, marker, label) in enumerate(
        (
            (by_hand["highest"], BLUE, "o", "by hand - jax.grad, pinned"),
            (by_hand["default"], ORANGE, "s", "by hand - jax.grad, not pinned"),
            (changed, SKY, "^", "jax.grad: not pinned - pinned"),
        ),
        start=-1,
    ):
        values = np.maximum([errors[name] for name in changed], 1e-9)
        axes.semilogy(places + 0.2 * shift, values, marker, color=color, label=label)
    tolerance = found["pinned"]["tolerances"]["error"]["float32"]
    axes.axhline(tolerance, color="black", linestyle=":", linewidth=1.5, label=f"the checker's tolerance, {tolerance}")
    axes.set_xticks(places, list(changed))
    axes.set(title="float32 gradients", ylabel="largest difference / largest entry", ylim=(5e-10, 1))
    axes.set_xlabel("array; marks at 1e-9: equal, or as near as that")
    axes.legend(fontsize=8)
