"""How `backprop_vs_autodiff` compares its trainings, and what it prints and draws of them."""

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.table import Table

from experiments.common.figure import BLUE, GRAY, ORANGE, SKY, VERMILION, figure
from experiments.common.training import Curve

AUTODIFF, BACKPROP, CONTROL = "autodiff", "backprop", "control"
PAIR = (AUTODIFF, BACKPROP)

# How far apart the trainings may be at a step: |p - q| / |q| over all parameters p and q, and |loss - loss'| over the
# first loss. Both programs do the same sums, in another order: each step adds some roundings, and training amplifies
# them, by how much the control shows, whose gradient is autodiff's own program. So the bound at a step is DRIFT times
# the furthest that the control has come until then, and at least FLOOR, as single units can pass their kinks a little
# earlier in one training than in the other. Where the control itself has drifted far, the bound says little.
FLOOR = {"float64": 1e-10, "float32": 1e-3, "bfloat16": 1e-1}
DRIFT = 10


def compare_curves(curves: dict[str, Curve], dtype: str) -> dict[str, Any]:
    """How far apart the trainings are, step by step, and whether every step is within its bound."""
    reference, mine, control = (curves[name] for name in (AUTODIFF, BACKPROP, CONTROL))
    differs = (mine.loss != reference.loss) | (mine.apart != 0)
    found: dict[str, Any] = {
        "first_difference": int(np.argmax(differs)) + 1 if differs.any() else None,
        "loss_abs": np.max(np.abs(mine.loss - reference.loss)),
        "params_abs": np.max(mine.apart_max),
        "agree": True,
    }
    loss, loss_control = (np.abs(c.loss - reference.loss) / reference.loss[0] for c in (mine, control))
    for what, distance, drift in (("loss", loss, loss_control), ("params", mine.apart, control.apart)):
        bound = np.maximum(FLOOR[dtype], DRIFT * np.fmax.accumulate(drift))
        found |= {what: np.max(distance), f"{what}_control": np.max(drift), f"{what}_bound": bound}
        # Not `any(distance > bound)`: NaN must fail.
        found["agree"] &= bool(np.all(distance <= bound))
    return found


def side_by_side(result: dict[str, Any]) -> Table:
    """The two trainings in two columns."""
    table = Table(
        "",
        "jax.value_and_grad",
        "by hand",
        "by hand / jax",
        title="\nSide by side (times: medians)",
        title_justify="left",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    losses = [result["curves"][name]["loss"][-1] for name in PAIR]
    total = result["data"]["test"]
    counts = [result["test_correct"][name] for name in PAIR]
    table.add_row("test examples right", *(f"{count} of {total}" for count in counts))
    table.add_row("test accuracy", *(f"{100 * count / total:.2f} %" for count in counts))
    table.add_row("loss, last step", *(f"{loss:.6g}" for loss in losses))

    def ratio(label: str, values: list[float], form: str, unit: float, quotient: float | None = None) -> None:
        quotient = quotient or (values[1] / values[0] if values[0] else float("nan"))
        table.add_row(label, *(form.format(v / unit) for v in values), f"{quotient:.3f}")

    cost = [result["cost"][name] for name in PAIR]
    ratio(
        "time per step",
        [c["step_s"]["median"] for c in cost],
        "{:.3f} ms",
        1e-3,
        result["step_ratio"]["median"],
    )
    ratio("temporary memory", [c["temp_bytes"] for c in cost], "{:.1f} kB", 1e3)
    ratio("operations per step", [c["flops"] for c in cost], "{:.2f} Mflop", 1e6)
    ratio("compiling, once", [c["compile_s"] for c in cost], "{:.2f} s", 1)
    return table


def verdict(result: dict[str, Any]) -> str:
    """What was found, in words."""
    found = result["agreement"]
    if found["first_difference"] is None:
        lines = [f"In {result['steps']} steps, no loss and no parameter differs in any bit."]
    else:
        lines = [
            f"The first difference is at step {found['first_difference']} of {result['steps']}; at most, by step:",
            f"  losses      {found['loss_abs']:.1e} apart, {found['loss']:.1e} of the first loss"
            f" (control {found['loss_control']:.0e})",
            f"  parameters  {found['params_abs']:.1e} apart, {found['params']:.1e} of their norm"
            f" (control {found['params_control']:.0e})",
            f"  allowed     {FLOOR[result['config']['dtype']]:.0e}, or {DRIFT} times the furthest that the control"
            " has come by that step",
        ]
    lines += [
        f"[bold red]The checker found wrong gradients {when} training: {', '.join(bad)}.[/bold red]"
        for when, report in result["checker"].items()
        if (bad := [leaf["path"] for leaf in report["leaves"] if not leaf["passed"]])
    ]
    if not found["agree"]:
        lines.append("[bold red]The two trainings come further apart than that.[/bold red]")
    return "\n".join(
        [
            *lines,
            "[bold green]They agree.[/bold green]" if result["agree"] else "[bold red]They do not agree.[/bold red]",
        ]
    )


def draw(path: pathlib.Path, result: dict[str, Any]) -> None:
    """The figure: the loss curves, the distance between the trainings, and each layer's agreement and delta."""
    curves, dtype, found = result["curves"], result["config"]["dtype"], result["agreement"]
    step = curves["step"]
    with figure(path, 11, 8.2) as fig:
        (loss, apart), (arrays, layers) = fig.subplots(2, 2)
        fig.suptitle(
            f"One network trained twice on {result['data']['name']}: gradients by JAX's autodiff, and by hand "
            f"({result['parameters']:,} parameters, {dtype})",
            x=0.01,
            ha="left",
            fontweight="bold",
        )
        loss.plot(step, curves[AUTODIFF]["loss"], color=SKY, linewidth=4, label="by autodiff")
        loss.plot(step, curves[BACKPROP]["loss"], "--", color="black", linewidth=1.2, label="by hand")
        percent = " and ".join(f"{100 * result['test_accuracy'][name]:.2f} %" for name in PAIR)
        loss.set(title=f"Two loss curves, dashed on solid;\ntest accuracy {percent}", ylabel="training loss")

        apart.plot(step, found["params_bound"], ":", color="black", label="allowed")
        apart.plot(step, curves[CONTROL]["apart"], color=GRAY, label="control")
        if found["first_difference"] is None:
            at_zero = {"transform": apart.transAxes, "clip_on": False, "linewidth": 4}  # a log scale has no zero
            apart.plot([0, 1], [0, 0], color=VERMILION, label="by hand: 0", **at_zero)
            title = "By hand: the same parameters, to the last bit;"
        else:
            apart.plot(step, curves[BACKPROP]["apart"], color=VERMILION, label="by hand")
            title = f"By hand: parameters at most {found['params']:.0e} of their norm away;"
        title += "\nthe control, by autodiff, started one rounding away"
        apart.set(title=title, ylabel="distance from autodiff's parameters")

        reports = result["checker"]
        eps = float(jnp.finfo(dtype).eps)
        for when, color, shift in (("before", BLUE, -0.2), ("after", ORANGE, 0.2)):
            leaves, delta = reports[when]["leaves"], result["delta"][when]
            errors = np.nan_to_num([float(leaf["error"]) / eps for leaf in leaves])
            arrays.barh(np.arange(len(leaves)) + shift, errors, 0.4, color=color, label=f"{when} training")
            names = [f"{leaf['path']}  {'x'.join(map(str, leaf['shape']))}" for leaf in leaves]
            arrays.set_yticks(range(len(leaves)), names)
            layers.plot(list(delta.values()), list(delta), "o-", color=color, label=f"{when} training")
        verdict = "passed" if all(report["passed"] for report in reports.values()) else "FAILED"
        arrays.set(
            title=f"Gradient by hand against jax.grad, in the checker: {verdict}",
            xlabel=f"largest difference / largest entry, in roundings of {dtype}",
        )
        layers.set(
            title="What passes back through the layers: delta",
            xlabel="mean |delta|, delta = gradient for the layer's output",
            xscale="log",
        )
        for axes in (loss, apart):
            axes.set(xlabel="step", yscale="log")
        for axes in (arrays, layers):
            axes.invert_yaxis()
        for axes in (loss, apart, arrays, layers):
            axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.14), ncols=3, columnspacing=1, handlelength=1.5)
