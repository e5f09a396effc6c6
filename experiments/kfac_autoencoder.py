"""K-FAC trains a deep autoencoder in a third of the steps of momentum and Adam, and in less time.

The autoencoder of Hinton and Salakhutdinov (2006), 784-1000-500-250-30-250-500-1000-784 with logistic units and a
linear code, on the training images of MNIST. Momentum and Adam train with each of several learning rates, each for all
steps; the lowest loss that one of these trainings reaches is the target. K-FAC, with each of several least dampings,
has a third of the steps to get there. Losses are means over the batches of the last steps.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.table import Table

import funcnn as fnn
from experiments.common import measure, record
from experiments.common.figure import BLUE, GREEN, VERMILION, figure

STEPS_MARK = 1 / 3  # of the steps of the best of the others
TIME_MARK = 1.0  # of their time
MOMENTUM = 0.9
SMOOTHED = 50  # steps over which a loss is the mean of batches'

Setting = dict[str, float]
GRIDS: dict[str, list[Setting]] = {
    "momentum": [{"learning_rate": rate} for rate in (1e-2, 3e-2, 1e-1)],
    "Adam": [{"learning_rate": rate} for rate in (3e-4, 1e-3, 3e-3, 1e-2)],
    "K-FAC": [{"least_damping": least} for least in (1e-2, 1e-3, 1e-4)],
}
COLORS = {"momentum": BLUE, "Adam": GREEN, "K-FAC": VERMILION}


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains an autoencoder by momentum, Adam and K-FAC, each in several settings, and counts steps to one loss.

    Prints a table, and writes a figure and a JSON record. The exit code is 0 if both marks are reached, 1 if one is
    missed, and 2 if the options or the data files are wrong.
    """

    data: Literal["digits", "mnist"] = "digits"
    """scikit-learn's digits, or MNIST from --data-dir."""
    data_dir: pathlib.Path | None = None
    """Directory with MNIST's four files; the environment variable FUNCNN_DATA unless given."""
    widths: tuple[int, ...] = (1000, 500, 250, 30)
    """Widths of the encoder, the code last; the decoder has them in reverse."""
    batch_size: int = 500
    """Examples a step."""
    steps: int = 3000
    """Steps of momentum and of Adam, with each setting; K-FAC has a third."""
    inverses_every: int = 20
    """Steps of K-FAC from one inversion of its factors to the next."""
    factors_every: int = 5
    """Steps of K-FAC from one update of its factors to the next."""
    seed: int = 0
    """Draws the start and the order of the examples."""
    out: pathlib.Path = pathlib.Path("out")
    """Directory for the figure and the record; made if it is missing."""
    smoke: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Small networks for a moment, only to see that everything works."""

    def check(self) -> None:
        """Raises UsageError for values that no run can have."""
        counts = (self.batch_size, self.steps, self.inverses_every, self.factors_every, *self.widths)
        if not self.widths or min(counts) < 1:
            raise record.UsageError("--widths and all counts are positive")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    config = tyro.cli(Config, args=argv, prog="python -m experiments.kfac_autoencoder")
    grids: Mapping[str, list[Setting]] = GRIDS
    if config.smoke:
        config = dataclasses.replace(config, data="digits", widths=(16, 4), batch_size=100, steps=36, inverses_every=5)
        grids = {name: settings[1:2] for name, settings in GRIDS.items()}
    with record.one_line_errors(OSError, fnn.data.DataError):
        config.check()
        config.out.mkdir(parents=True, exist_ok=True)
        data = fnn.data.load_mnist(config.data_dir) if config.data == "mnist" else fnn.data.load_digits()
    x = (data.x_train.reshape(len(data.x_train), -1) / data.x_max).astype(np.float32)
    objective = fnn.Objective(autoencoder(config.widths, x.shape[1]), fnn.losses.bernoulli_nll)
    console = record.console()
    tried: dict[str, list[tuple[Setting, np.ndarray]]] = {}
    for name, settings in grids.items():
        steps = math.ceil(config.steps * STEPS_MARK) if name == "K-FAC" else config.steps
        tried[name] = []
        for setting in settings:
            with console.status(f"{name}, {text(setting)}"):
                curve = smoothed(train(config, objective, x, optimizer(config, objective, name, setting), steps))
            tried[name].append((setting, curve))
            console.print(f"{name}, {text(setting)}: {lowest(curve):.2f} in {steps} steps", highlight=False)
    chosen = choose(tried)
    curves = {name: curve for name, (_, curve) in chosen.items()}
    settings_of = {name: setting for name, (setting, _) in chosen.items()}
    optimizers = {name: optimizer(config, objective, name, setting) for name, setting in settings_of.items()}
    seconds = seconds_a_step(config, objective, x, optimizers)
    found = compared(curves, seconds)
    console.print(as_table(curves, settings_of, seconds, found))
    console.print(verdict(found), highlight=False)
    path = config.out / f"kfac_autoencoder-{config.data}.json"
    draw(path.with_suffix(".png"), tried, curves, seconds, found)
    about = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("data_dir", "out")}
    every = max(1, config.steps // 300)
    runs = [
        {"optimizer": name, "setting": setting, "lowest": lowest(curve), "curve": curve[every - 1 :: every]}
        for name, each in tried.items()
        for setting, curve in each
    ]
    record.write(
        path,
        {
            "command": record.command("experiments.kfac_autoencoder", argv),
            **record.environment(),
            "config": about,
            "smoothed_over": SMOOTHED,
            "chosen": settings_of,
            "seconds_a_step": {name: measure.quartiles(values) for name, values in seconds.items()},
            **found,
            "curves_every_steps": every,
            "runs": runs,
        },
    )
    print(f"Figure and record: {path.with_suffix('.png')}, {path}")
    return 0 if found["reached"] else 1


def lowest(curve: np.ndarray) -> float:
    """The lowest loss; infinite where none is finite."""
    return float(np.min(np.where(np.isfinite(curve), curve, np.inf)))


def choose(tried: Mapping[str, Sequence[tuple[Setting, np.ndarray]]]) -> dict[str, tuple[Setting, np.ndarray]]:
    """The best setting of each: of K-FAC that which is first at the others' lowest loss, else that with the lowest."""
    best = {name: min(each, key=lambda one: lowest(one[1])) for name, each in tried.items()}
    target = min(lowest(curve) for name, (_, curve) in best.items() if name != "K-FAC")
    there = [one for one in tried["K-FAC"] if lowest(one[1]) <= target]
    return best | ({"K-FAC": min(there, key=lambda one: int(np.argmax(one[1] <= target)))} if there else {})


def autoencoder(widths: Sequence[int], pixels: int) -> fnn.Serial:
    """Logistic units but for the code and the pixels' logits."""
    *encoder, code = widths
    layers: list[fnn.Layer] = []
    for width in encoder:
        layers += [fnn.Dense(width), fnn.Sigmoid()]
    layers.append(fnn.Dense(code))
    for width in reversed(encoder):
        layers += [fnn.Dense(width), fnn.Sigmoid()]
    return fnn.Serial(*layers, fnn.Dense(pixels))


def optimizer(
    config: Config, objective: fnn.Objective, name: str, setting: Setting
) -> optax.GradientTransformationExtraArgs:
    """One of the three, with its setting."""
    if name == "Adam":
        return optax.with_extra_args_support(optax.adam(setting["learning_rate"]))
    if name == "momentum":
        return optax.with_extra_args_support(optax.sgd(setting["learning_rate"], momentum=MOMENTUM))
    return fnn.train.kfac(
        objective,
        least_damping=setting["least_damping"],
        factors_every=config.factors_every,
        inverses_every=config.inverses_every,
    )


def train(
    config: Config, objective: fnn.Objective, x: np.ndarray, made: optax.GradientTransformation, steps: int
) -> np.ndarray:
    """The loss of each of so many steps; NaN from where one was not finite."""
    init_key, key = jax.random.split(jax.random.key(config.seed))
    epochs = -(-steps // -(-len(x) // config.batch_size))
    try:
        _, history = fnn.train.fit(
            objective,
            made,
            objective.net.init(init_key, x.shape[1:]),
            (x, x),
            epochs=epochs,
            batch_size=config.batch_size,
            key=key,
            gradient="backprop",
            progress=None,
        )
        losses = history.step_loss
    except fnn.train.NonFiniteError as error:
        losses = error.history.step_loss if error.history is not None else np.zeros(0)
    return np.concatenate([losses, np.full(max(0, steps - len(losses)), np.nan)])[:steps]


def smoothed(losses: np.ndarray) -> np.ndarray:
    """The mean over the last steps, at each step from the first."""
    total = np.cumsum(losses)
    before = np.concatenate([np.zeros(min(SMOOTHED, len(total))), total[:-SMOOTHED]])
    return (total - before) / np.minimum(np.arange(1, len(losses) + 1), SMOOTHED)


def seconds_a_step(
    config: Config,
    objective: fnn.Objective,
    x: np.ndarray,
    optimizers: Mapping[str, optax.GradientTransformation],
) -> dict[str, np.ndarray]:
    """Of each optimizer, in blocks that take turns, of as many steps as K-FAC needs for one inversion."""
    batch = (jnp.asarray(x[: config.batch_size]),) * 2

    def block(step: Callable[..., Any], states: list[Any]) -> Any:
        for _ in range(config.inverses_every):
            states[0], _ = step(states[0], batch)
        return states[0].params

    runs = {}
    for name, made in optimizers.items():
        params = objective.net.init(jax.random.key(config.seed), x.shape[1:])
        state = fnn.train.start(made, params, jax.random.key(1))
        runs[name] = functools.partial(block, fnn.train.step(objective, made, "backprop"), [state])
    blocks = measure.interleave(runs, rounds=1 if config.smoke else 7, block_s=0.01)
    return {name: values / config.inverses_every for name, values in blocks.items()}


def compared(curves: Mapping[str, np.ndarray], seconds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The target, and the steps and seconds in which each reaches it; None where it does not."""
    others = {name: lowest(curve) for name, curve in curves.items() if name != "K-FAC"}
    best = min(others, key=others.__getitem__)
    target = others[best]
    steps: dict[str, Any] = {
        name: int(np.argmax(curve <= target)) + 1 if (curve <= target).any() else None for name, curve in curves.items()
    }
    times: dict[str, Any] = {
        name: None if n is None else n * float(np.median(seconds[name])) for name, n in steps.items()
    }
    marks: dict[str, Any] = {
        name: {"mark": mark, "ratio": None if steps["K-FAC"] is None else count["K-FAC"] / count[best]}
        for name, mark, count in (("steps", STEPS_MARK, steps), ("time", TIME_MARK, times))
    }
    for mark in marks.values():
        mark["reached"] = mark["ratio"] is not None and mark["ratio"] <= mark["mark"]
    reached = all(mark["reached"] for mark in marks.values())
    return {"target": target, "best": best, "steps": steps, "seconds": times, "marks": marks, "reached": reached}


def text(setting: Setting) -> str:
    """A setting for people."""
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in setting.items())


def as_table(
    curves: Mapping[str, np.ndarray],
    chosen: Mapping[str, Setting],
    seconds: Mapping[str, np.ndarray],
    found: Mapping[str, Any],
) -> Table:
    """A line for each optimizer."""
    table = Table(title=f"Steps and seconds to a training loss of {found['target']:.2f}", title_justify="left")
    for name in ("optimizer", "setting", "last loss", "s a step", "steps", "seconds"):
        table.add_column(name)
    for name, curve in curves.items():
        steps, time = found["steps"][name], found["seconds"][name]
        reached = ("never", "") if steps is None else (str(steps), f"{time:.0f}")
        table.add_row(name, text(chosen[name]), f"{curve[-1]:.2f}", f"{np.median(seconds[name]):.3f}", *reached)
    return table


def verdict(found: Mapping[str, Any]) -> str:
    """What was found, in words."""
    if found["steps"]["K-FAC"] is None:
        return f"K-FAC does not reach what {found['best']} does: [bold red]missed[/bold red]."
    words = {True: "[bold green]reached[/bold green]", False: "[bold red]missed[/bold red]"}
    return "\n".join(
        f"K-FAC takes {mark['ratio']:.2f} of the {name} of {found['best']} (mark {mark['mark']:.2f}): "
        f"{words[mark['reached']]}."
        for name, mark in found["marks"].items()
    )


def draw(
    path: pathlib.Path,
    tried: Mapping[str, Sequence[tuple[Setting, np.ndarray]]],
    curves: Mapping[str, np.ndarray],
    seconds: Mapping[str, np.ndarray],
    found: Mapping[str, Any],
) -> None:
    """The loss against steps, and against seconds; faint, the other settings."""
    with figure(path, 10, 4) as fig:
        left, right = fig.subplots(1, 2, sharey=True)
        for name, each in tried.items():
            for _, curve in each:
                if curve is not curves[name]:
                    left.plot(np.arange(1, len(curve) + 1), curve, color=COLORS[name], alpha=0.3, linewidth=0.8)
        for name, curve in curves.items():
            steps = np.arange(1, len(curve) + 1)
            left.plot(steps, curve, color=COLORS[name], label=name)
            right.plot(steps * np.median(seconds[name]), curve, color=COLORS[name], label=name)
        for axes, label in ((left, "step"), (right, "seconds")):
            axes.axhline(found["target"], color="black", linewidth=0.8, linestyle=":")
            axes.set(xlabel=label, yscale="log")
            axes.set_yticks((50, 70, 100, 200, 400), labels=("50", "70", "100", "200", "400"))
            axes.minorticks_off()
        left.set(ylabel="training loss (nats an image)", title="By steps; faint: other settings, dotted: the target")
        right.set_title("By seconds of training")
        right.legend()


if __name__ == "__main__":
    raise SystemExit(main())
