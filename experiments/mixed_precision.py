"""bfloat16 compute on float32 parameters learns as much as float32 does, by both gradient functions.

One network is trained in float32 and with `compute_dtype="bfloat16"`, by autodiff and by hand, from several seeds. The
mark: test accuracies that differ by at most 0.2 percentage points, means over the seeds.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import numpy as np
import optax
import tyro
from rich.table import Table

import funcnn as fnn
from experiments.common import networks, record
from experiments.common.figure import BLUE, VERMILION, figure

MARK = 0.2  # percentage points
DTYPES = ("float32", "bfloat16")
GRADIENTS = ("autodiff", "backprop")


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a relu network in float32 and in mixed precision, and compares what they learn."""

    data: Literal["digits", "mnist"] = "digits"
    """scikit-learn's digits, or MNIST from --data-dir."""
    data_dir: pathlib.Path | None = None
    """Directory with MNIST's four files; the environment variable FUNCNN_DATA unless given."""
    hidden: tuple[int, ...] = (512, 512)
    """Widths of the hidden layers."""
    epochs: int = 10
    """Times to go through the training examples."""
    batch_size: int = 128
    """Examples a step."""
    learning_rate: float = 1e-3
    """Adam's, falling to 0 by a cosine."""
    seeds: int = 3
    """Trainings for each precision and gradient function."""
    out: pathlib.Path = pathlib.Path("out")
    """Directory for the figure and the record; made if it is missing."""
    smoke: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """A small network for a moment, only to see that everything works."""

    def check(self) -> None:
        """Raises UsageError for values that no run can have."""
        if min(self.epochs, self.batch_size, self.seeds, *self.hidden) < 1 or not self.learning_rate > 0:
            raise record.UsageError("--epochs, --batch-size, --seeds, --hidden and --learning-rate are positive")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code: 1 where the mark is missed."""
    config = tyro.cli(Config, args=argv, prog="python -m experiments.mixed_precision")
    if config.smoke:
        config = dataclasses.replace(config, data="digits", hidden=(32,), epochs=3, seeds=1)
    with record.one_line_errors(OSError, fnn.data.DataError):
        config.check()
        config.out.mkdir(parents=True, exist_ok=True)
        data = fnn.data.load_mnist(config.data_dir) if config.data == "mnist" else fnn.data.load_digits()
    console = record.console()
    runs = []
    for dtype, gradient, seed in itertools.product(DTYPES, GRADIENTS, range(config.seeds)):
        with console.status(f"{dtype}, {gradient}, seed {seed}"):
            runs.append(
                {"dtype": dtype, "gradient": gradient, "seed": seed, **train(config, data, dtype, gradient, seed)}
            )
    found = compare(runs)
    console.print(as_table(runs, found))
    console.print(verdict(found), highlight=False)
    path = config.out / f"mixed_precision-{config.data}"
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("out", "data_dir")}
    about = {"command": record.command("experiments.mixed_precision", argv), **record.environment(), "config": settings}
    record.write(path.with_suffix(".json"), {**about, "mark": MARK, "difference": found, "runs": runs})
    draw(path.with_suffix(".png"), runs, data.name)
    print(f"Figure and record: {path}.png, {path}.json")
    return 0 if all(value <= MARK for value in found.values()) else 1


def train(config: Config, data: fnn.data.Dataset, dtype: str, gradient: str, seed: int) -> dict[str, Any]:
    """One training, with the images as bytes on the device."""
    pixels = fnn.data.Pixels(data.x_max)
    net = networks.mlp(config.hidden, fnn.Relu(), data.classes)
    steps = config.epochs * -(-len(data.x_train) // config.batch_size)
    init_key, key = jax.random.split(jax.random.key(seed))
    state, history = fnn.train.fit(
        fnn.Objective(net, fnn.losses.softmax_cross_entropy),
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, steps)),
        net.init(init_key, (data.x_train[0].size,)),
        (data.x_train, data.y_train),
        epochs=config.epochs,
        batch_size=config.batch_size,
        key=key,
        valid=(data.x_test, data.y_test),
        valid_batch_size=1000,
        gradient=gradient,
        metrics={"accuracy": fnn.train.accuracy},
        prepare=pixels,
        compute_dtype=None if dtype == "float32" else dtype,
        progress=None,
    )
    kept = {leaf.dtype.name for leaf in jax.tree.leaves(state.params)}
    if kept != {"float32"}:
        raise AssertionError(f"the parameters are {kept}")
    return {
        "accuracy": 100 * history["valid accuracy"][-1],
        "loss": history["loss"],
        "test_loss": history["valid loss"],
        "step_us": history["seconds"][-1] / steps * 1e6,
    }


def compare(runs: list[dict[str, Any]]) -> dict[str, float]:
    """For each gradient function, how far the mean accuracies of the two precisions are apart, in points."""

    def mean(dtype: str, gradient: str) -> float:
        return float(np.mean([r["accuracy"] for r in runs if (r["dtype"], r["gradient"]) == (dtype, gradient)]))

    return {gradient: abs(mean("bfloat16", gradient) - mean("float32", gradient)) for gradient in GRADIENTS}


def as_table(runs: list[dict[str, Any]], found: dict[str, float]) -> Table:
    """Accuracies by precision and gradient function."""
    table = Table(title="Test accuracy in percent, by seed", title_justify="left")
    for name in ("gradient", "float32", "bfloat16", "means apart"):
        table.add_column(name)
    for gradient in GRADIENTS:
        cells = [
            ", ".join(f"{r['accuracy']:.2f}" for r in runs if (r["dtype"], r["gradient"]) == (dtype, gradient))
            for dtype in DTYPES
        ]
        table.add_row(gradient, *cells, f"{found[gradient]:.3f}")
    return table


def verdict(found: dict[str, float]) -> str:
    """What was found, in words."""
    good = all(value <= MARK for value in found.values())
    color, word = ("green", "holds") if good else ("red", "does not hold")
    return f"[bold {color}]At most {MARK} points apart: {word}.[/bold {color}]"


def draw(path: pathlib.Path, runs: list[dict[str, Any]], name: str) -> None:
    """The test loss of every training against the epoch."""
    with figure(path, 7, 4) as fig:
        axes = fig.subplots()
        for run in runs:
            color = BLUE if run["dtype"] == "float32" else VERMILION
            style = "-" if run["gradient"] == "autodiff" else "--"
            label = f"{run['dtype']}, {run['gradient']}" if run["seed"] == 0 else None
            axes.plot(
                np.arange(1, len(run["test_loss"]) + 1), run["test_loss"], style, color=color, label=label, alpha=0.8
            )
        seeds = len({run["seed"] for run in runs})
        axes.set_title(f"Trained in float32 and with bfloat16 compute, {seeds} seeds each: {name}")
        axes.set(xlabel="epoch", ylabel="test loss")
        axes.legend()


if __name__ == "__main__":
    raise SystemExit(main())
