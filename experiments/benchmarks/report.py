"""What `peers` says of its measurements: ratios with their marks, tables, a figure."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.box
from rich.table import Table

from experiments.benchmarks.networks import Network
from experiments.benchmarks.workers import LIBRARIES
from experiments.common import measure
from experiments.common.figure import BLUE, GRAY, ORANGE, figure

FITS = ("funcnn-autodiff", "funcnn-backprop")
SCAN = "scan"


def compare(rates: Mapping[str, Sequence[float]], network: Network) -> list[dict[str, Any]]:
    """`fit` against the best of the peers and against the bare scan, by ratios of the same round.

    Args:
        rates: steps/s by library, a number for each round.
        network: whose marks are meant.

    Returns:
        For each gradient and each rival that was measured: the ratio's quartiles, the mark, and whether it is reached.
    """
    peers = [name for name in rates if LIBRARIES[name].peer]
    rivals = [("best peer", max(peers, key=lambda name: np.median(rates[name])), network.peers_mark)] if peers else []
    rivals += [("bare scan", SCAN, network.scan_mark)] if SCAN in rates else []
    found = []
    for kind, rival, mark in rivals:
        for name in FITS:
            if name in rates:
                ratio = measure.quartiles(np.array(rates[name]) / np.array(rates[rival]))
                reached = ratio["median"] >= mark
                found.append(
                    {"fit": name, "kind": kind, "against": rival, "ratio": ratio, "mark": mark, "reached": reached}
                )
    return found


def as_table(result: dict[str, Any]) -> Table:
    """A line for each library, and one for each that was left out."""
    large = result["large"]
    kind = "mean squared error" if result["regression"] else "cross-entropy, accuracy"
    table = Table(
        title=f"{result['network']} relu, batch {result['batch']}, {kind}",
        title_justify="left",
        box=rich.box.SIMPLE_HEAD,
    )
    table.add_column("library", no_wrap=True)
    for column in ("steps/s", "quartiles", "fit / it", *(["matmul"] if large else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("compile s", "peak MB", "import s"):
        table.add_column(column, justify="right", no_wrap=True)
    libraries = result["libraries"]
    fit = next((libraries[name]["rounds"] for name in FITS if name in libraries), None)
    for name, row in libraries.items():
        rate = row["steps_per_s"]
        ratio = np.median(np.array(fit) / np.array(row["rounds"])) if fit else np.nan
        table.add_row(
            LIBRARIES[name].label,
            _per_second(rate["median"]),
            f"{_per_second(rate['low'])} - {_per_second(rate['high'])}",
            f"{ratio:.2f}",
            *([f"{100 * row['matmul_share']['median']:.0f} %" if "matmul_share" in row else "-"] if large else []),
            f"{row['compile_s']:.2f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['import_s']:.2f}",
        )
    for name, why in result["left_out"].items():
        table.add_row(LIBRARIES[name].label, f"[dim]{why[:30]}[/dim]")
    return table


def verdict(result: dict[str, Any]) -> str:
    """The marks of one network, in words."""
    lines = []
    for row in result["ratios"]:
        rival = LIBRARIES[row["against"]].label
        rival = f"the best peer, {rival}" if row["kind"] == "best peer" else f"the {rival}"
        ratio, reached = row["ratio"], "[green]reached[/green]" if row["reached"] else "[bold red]missed[/bold red]"
        lines.append(
            f"  {LIBRARIES[row['fit']].label} / {rival}: {ratio['median']:.3f} "
            f"({ratio['low']:.3f} to {ratio['high']:.3f}), mark {row['mark']:.2f}: {reached}"
        )
    if matmul := result["matmul_flops_per_s"]:
        lines.append(f"  matmul: share of the machine's float32 matrix products, {matmul['median'] / 1e9:.0f} Gflop/s")
    if "scikit-learn" in result["libraries"] and not result["regression"]:
        lines.append("  scikit-learn computes the loss and no accuracy")
    for name, why in result["left_out"].items():
        lines.append(f"  {LIBRARIES[name].label} is left out: {why}")
    return "\n".join(lines)


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def draw(path: pathlib.Path, results: list[dict[str, Any]]) -> None:
    """Bars of steps/s over those of the bare scan, or of the fastest where there is none; a panel for each network."""
    names = [name for name in LIBRARIES if any(name in result["libraries"] for result in results)]
    columns = min(2, len(results))
    lines = -(-len(results) // columns)
    with figure(path, 5.5 * columns, 1 + lines * (1 + 0.27 * len(names))) as fig:
        layout: Any = fig.get_layout_engine()
        layout.set(h_pad=0.12)
        panels = fig.subplots(lines, columns, sharey=True, squeeze=False).flat
        fig.suptitle("Training loops with shuffling and metrics: more is faster", x=0.01, ha="left", fontweight="bold")
        for result, axes in zip(results, panels, strict=False):
            libraries = result["libraries"]
            unit = SCAN if SCAN in libraries else max(libraries, key=lambda n: libraries[n]["steps_per_s"]["median"])
            axes.axvline(1, color="black", linewidth=1)
            mark = ""
            if unit == SCAN:
                axes.axvline(result["scan_mark"], color="black", linestyle=":", linewidth=1.5)
                mark = f"; dotted: the mark of fit, {result['scan_mark']:.2f}"
            for name, row in libraries.items():
                ratio = measure.quartiles(np.array(row["rounds"]) / np.array(libraries[unit]["rounds"]))
                color = BLUE if name in FITS else ORANGE if LIBRARIES[name].peer else GRAY
                middle, place = ratio["median"], names.index(name)
                spread = [[middle - ratio["low"]], [ratio["high"] - middle]]
                axes.barh(place, middle, 0.75, color=color, xerr=spread, ecolor="#444444")
                text = f" {_per_second(row['steps_per_s']['median'])}/s"
                around = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
                axes.text(ratio["high"], place, text, va="center", fontsize=8, bbox=around)
            kind = "regression" if result["regression"] else "classification"
            axes.set_title(f"{result['network']}, batch {result['batch']}, {kind}")
            axes.set_xlabel(f"steps/s over those of the {LIBRARIES[unit].label}{mark}")
            axes.margins(x=0.18)
            axes.grid(visible=False, axis="y")
            axes.set_yticks(range(len(names)), [LIBRARIES[name].label for name in names])
        panels = fig.axes
        panels[0].invert_yaxis()
        for axes in panels[len(results) :]:
            axes.set_axis_off()
