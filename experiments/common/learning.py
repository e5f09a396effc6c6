"""How `learning_rules` judges its trainings, and what it prints and draws of them."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from rich.table import Table

from experiments.common.figure import BLUE, GRAY, GREEN, ORANGE, SKY, VERMILION, figure

ERROR_MARK = 0.3  # percentage points above the published error; one standard deviation of 10,000 examples is 0.13
ANGLE_MARK = 90.0  # degrees: below it a small step along the update makes the loss smaller

PANELS = {
    "feedback": "Deltas go back by other weights",
    "delta": "Deltas are changed on their way",
    "logistic": "Logistic units, as Lillicrap et al. (2016)",
}
STYLES: dict[str, Any] = {"first hidden layer": "-", "second hidden layer": "--"}
COLORS = (BLUE, VERMILION, GREEN, ORANGE, SKY, GRAY)

Run = Mapping[str, Any]


def hidden_angles(run: Run) -> np.ndarray:
    """(layers, epochs + 1) in degrees, NaN where the gradient is zero; before training, and after each epoch."""
    return np.array(run["angle"], float)[:-1]


def judge(runs: Sequence[Run], published: bool) -> dict[str, Any]:
    """Whether the marks are reached, and by what: the worst error against those published, and the widest angle."""
    marks: dict[str, Any] = {}
    above = {run["name"]: run["error"][-1] - run["published"] for run in runs if run["published"] is not None}
    if published and above:
        worst = _largest(above)
        marks["error"] = {"mark": ERROR_MARK, "rule": worst, "above": above[worst]}
        marks["error"]["reached"] = above[worst] <= ERROR_MARK
    # A step has no gradient to have an angle with.
    widest = {run["name"]: float(hidden_angles(run)[:, -1].max()) for run in runs if run["family"] != "step"}
    if widest:
        worst = _largest(widest)
        marks["angle"] = {"mark": ANGLE_MARK, "rule": worst, "angle": widest[worst]}
        marks["angle"]["reached"] = widest[worst] < ANGLE_MARK
    return marks


def _largest(values: Mapping[str, float]) -> str:
    """The name of the largest; a NaN is larger than all."""
    return max(values, key=lambda name: np.nan_to_num(values[name], nan=np.inf))


def verdict(marks: Mapping[str, Any]) -> str:
    """What was found, in words."""
    lines = []
    if error := marks.get("error"):
        lines.append(
            (
                error,
                f"Test errors at most {error['mark']} points above those published: {error['rule']} comes worst, "
                f"{error['above']:+.2f} points",
            )
        )
    if angle := marks.get("angle"):
        lines.append(
            (
                angle,
                f"After training, updates of hidden layers less than 90 degrees from the gradient: {angle['rule']} "
                f"comes widest, {angle['angle']:.0f} degrees",
            )
        )
    words = {True: "[bold green]reached[/bold green]", False: "[bold red]missed[/bold red]"}
    return "\n".join(f"{text}: {words[mark['reached']]}." for mark, text in lines)


def as_table(runs: Sequence[Run], published: bool) -> Table:
    """A line for each training."""
    table = Table(title="After the last epoch", title_justify="left")
    columns = ["rule", "learning rate", "error %", *(["published"] if published else [])]
    for name in [*columns, "angle of layer 1", "layer 2"]:
        table.add_column(name)
    for run in runs:
        angles = [f"{layer[0]:.0f}° -> {layer[-1]:.0f}°" for layer in hidden_angles(run)]
        mark = [] if not published else ["" if run["published"] is None else f"{run['published']:.2f}"]
        table.add_row(run["name"], f"{run['rate']:g}", f"{run['error'][-1]:.2f}", *mark, *angles)
    return table


def draw(path: pathlib.Path, runs: Sequence[Run], name: str, published: bool) -> None:
    """Above, the test error of each rule; below, the angle between its updates and the gradient."""
    shown = {panel: title for panel, title in PANELS.items() if any(panel in run["panels"] for run in runs)}
    with figure(path, 1 + 4 * len(shown), 8) as fig:
        panels = fig.subplots(2, len(shown), sharex=True, sharey="row", squeeze=False)
        for (panel, title), error, angle in zip(shown.items(), *panels, strict=True):
            colors = iter(COLORS)
            for run in (run for run in runs if panel in run["panels"]):
                rule = run["name"].removeprefix("logistic: ")
                color = "black" if rule == "backprop" else next(colors)
                epochs = np.arange(len(run["error"]) + 1)
                error.plot(epochs[1:], run["error"], color=color, label=f"{rule}: {run['error'][-1]:.2f} %")
                if published and run["published"] is not None:
                    error.plot(epochs[-1], run["published"], "D", color=color, fillstyle="none", clip_on=False)
                for layer, style in zip(hidden_angles(run), STYLES.values(), strict=False):
                    angle.plot(epochs, layer, style, color=color)
            error.set(title=title, yscale="log")
            error.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            error.yaxis.set_minor_locator(NullLocator())
            error.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            error.legend(loc="center right")
            angle.axhline(ANGLE_MARK, color="black", linewidth=0.8)
            angle.set(xlabel="epoch (0: before training)", yticks=range(0, 181, 15))
            angle.xaxis.set_major_locator(MaxNLocator(integer=True))
        widest = max(np.nanmax(hidden_angles(run), initial=ANGLE_MARK) for run in runs)
        panels[1, 0].set_ylim(-2, widest + 5)
        layers = [Line2D([], [], color="black", linestyle=style, label=name) for name, style in STYLES.items()]
        panels[1, -1].legend(handles=layers, title="colours as above", alignment="left", loc=(0.5, 0.12))
        diamonds = "\n(diamonds: published)" if published else ""
        panels[0, 0].set_ylabel(f"test examples wrong, in percent{diamonds}")
        panels[1, 0].set_ylabel("angle between the update and\nthe gradient, in degrees")
        fig.suptitle(
            f"Learning rules on {name}: test error (above), and how far updates are from the gradient",
            x=0.01,
            ha="left",
        )
