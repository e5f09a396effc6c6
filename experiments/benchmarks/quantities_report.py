"""What `quantities` says of its measurements: a table with marks, and what it leaves out, in words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.box
from rich.table import Table

from experiments.benchmarks.networks import Network


def as_table(rows: Sequence[dict[str, Any]], network: Network) -> Table:
    """A line for each quantity and peer."""
    table = Table(
        title=f"{network.name}, batch {network.batch}: times over that of one gradient of the same library",
        title_justify="left",
        box=rich.box.SIMPLE_HEAD,
    )
    for column in ("quantity", "funcnn", "at\nmost", "peer", "the\npeer", "time of\nfuncnn / peer", "at\nmost"):
        left = column in ("quantity", "peer")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        cells = [row["quantity"], *_cells(row["over_gradient"]), row["peer"]]
        if "over_theirs" in row:
            cells += [_number(row["theirs_over_gradient"]["median"]), *_cells(row["over_theirs"])]
        table.add_row(*cells)
    return table


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """What the table does not say: the gradients' times, memory, agreement, and what is not installed."""
    gradients = {"funcnn": rows[0]["seconds"]["gradient"]}
    for row in rows:
        if "their_gradient" in row["seconds"]:
            gradients.setdefault(row["peer_gradient"], row["seconds"]["their_gradient"])
    lines = ["  one gradient: " + ", ".join(f"{name} {1e3 * s['median']:.2f} ms" for name, s in gradients.items())]
    for row in rows:
        if memory := row.get("memory_over_theirs"):
            lines.append(
                f"  {row['quantity']}: temporary memory is 1/{1 / memory['median']:,.0f} of that of {row['peer']}, "
                f"mark 1/{1 / memory['mark']:.0f}: {_verdict(memory['reached'])}"
            )
    lines += [f"  {row['quantity']}: {row['note']}" for row in rows if row["note"]]
    for peer in dict.fromkeys(row["peer"] for row in rows):
        compared = [row for row in rows if row["peer"] == peer and row["agrees"] is not None]
        if compared:
            furthest = np.max([row["difference"] for row in compared])  # NaN, if there is one
            agree = _verdict(all(row["agrees"] for row in compared), "they agree", "they do not agree")
            allowed = compared[0]["tolerance"]
            lines.append(f"  values in float64: {furthest:.0e} from those of {peer}, allowed {allowed:.0e}: {agree}")
        if not any("over_theirs" in row for row in rows if row["peer"] == peer):
            lines.append(f"  {peer} is left out: not installed")
    lines.append("  " + marks(rows))
    return "\n".join(lines)


def marks(rows: Sequence[dict[str, Any]]) -> str:
    """How many marks are reached, and which are not."""
    kinds = {"over_gradient": "over a gradient", "over_theirs": "time over", "memory_over_theirs": "memory over"}
    ratios = [
        (f"{row['quantity']}, {words}" + (f" {row['peer']}" if "theirs" in kind else ""), row[kind])
        for row in rows
        for kind, words in kinds.items()
        if kind in row and row[kind]["mark"] is not None
    ]
    missed = [f"{name} {r['median']:.4g} > {r['mark']:g}" for name, r in ratios if not r["reached"]]
    text = f"marks: {len(ratios) - len(missed)} of {len(ratios)} reached"
    return f"{text}; [bold red]missed[/bold red]: {'; '.join(missed)}" if missed else text


def _cells(ratio: dict[str, Any]) -> list[str]:
    """A ratio and its mark; red, where it is missed."""
    text = _number(ratio["median"])
    mark = "" if ratio["mark"] is None else f"{ratio['mark']:g}"
    return [f"[bold red]{text}[/bold red]" if ratio["reached"] is False else text, mark]


def _number(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"


def _verdict(good: bool, yes: str = "reached", no: str = "missed") -> str:
    return f"[green]{yes}[/green]" if good else f"[bold red]{no}[/bold red]"
