"""What training saw, as arrays by name."""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from funcnn.table import Table

# In an epoch's row with early stopping, 1 for yes: whether it is the best so far, and whether it is the last.
MOST_ROWS = 10  # of a printed history, at its beginning and at its end
BETTER, STOPPED = "better", "stopped"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class History(Mapping[str, np.ndarray]):
    """One number for each epoch and name: `history["loss"]`.

    "epoch" counts from 1, "step" is how many steps were taken at its end, "seconds" how long they took. "loss" and the
    metrics are means over the epoch's examples, each as the step saw it that trained on it; "valid loss" and so on are
    of the validation examples at the epoch's end, NaN where there was no validation.

    Attributes:
        arrays: the arrays by name, each (epochs,).
        step_loss: the loss of each step, (steps,); those of epochs that have not ended too.
        best_epoch: with early stopping, the epoch whose state was returned; else None.
        compile_seconds: the time that compilation took; it is not in "seconds".
        watched: with `watch`, what it saw by name, each (looks, ...); "step" is how many steps were taken before.

    Example:
        >>> import jax, jax.numpy as jnp, optax, funcnn as fnn
        >>> x = jnp.linspace(-1, 1, 8)[:, None]
        >>> objective = fnn.Objective(fnn.Dense(1, w_init="zeros"), fnn.losses.squared_error)
        >>> params = objective.net.init(jax.random.key(0), (1,))
        >>> state, history = fnn.train.fit(
        ...     objective, optax.sgd(0.1), params, (x, 2 * x), epochs=3, batch_size=8, key=jax.random.key(1),
        ...     progress=None)
        >>> print(history["epoch"], history["loss"].round(2))
        [1 2 3] [1.71 1.43 1.2 ]
    """

    arrays: dict[str, np.ndarray]
    step_loss: np.ndarray
    best_epoch: int | None = None
    compile_seconds: float = 0.0
    watched: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self.arrays[name]
        except KeyError:
            raise KeyError(f"{name!r}; the history has {', '.join(map(repr, self.arrays))}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __repr__(self) -> str:
        return f"<History of {len(self['epoch'])} epochs: {', '.join(self)}>"

    def __str__(self) -> str:
        return self._table().text()

    def __rich__(self) -> Any:
        return self._table().rich()

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes a line for each epoch, below a line of names; NaN where there was no validation."""
        with pathlib.Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self)
            writer.writerows(zip(*(array.tolist() for array in self.arrays.values()), strict=True))

    def plot(self, names: list[str] | None = None) -> Any:
        """A matplotlib figure: a panel for the loss and one for each metric, training and validation together.

        Args:
            names: which, such as ["loss"]; None: all.

        Returns:
            A `matplotlib.figure.Figure`, which no window belongs to: `.savefig(path)` writes it.
        """
        from matplotlib.figure import Figure  # noqa: PLC0415 - in the `experiments` extra
        from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

        panels = names or [n for n in self if n not in ("epoch", "step", "seconds") and not n.startswith("valid ")]
        figure = Figure(figsize=(4.5 * len(panels), 3.2), layout="constrained")
        for axes, name in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            axes.plot(self["epoch"], self[name], label="training")
            valid = self.arrays.get(f"valid {name}")
            if valid is not None:
                looked = ~np.isnan(valid)
                axes.plot(self["epoch"][looked], valid[looked], label="validation")
            if self.best_epoch is not None:
                axes.axvline(self.best_epoch, color="0.6", linestyle=":", label=f"best: epoch {self.best_epoch}")
            axes.set(xlabel="epoch", ylabel=name)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if name == "loss" and len(self[name]) and np.nanmin(self[name]) > 0:
                axes.set_yscale("log")
            axes.legend()
        return figure

    def _table(self) -> Table:
        count = len(self["epoch"])
        shown = range(count) if count <= 2 * MOST_ROWS else [*range(MOST_ROWS), *range(count - MOST_ROWS, count)]
        rows = [tuple(format_value(name, array[i]) for name, array in self.arrays.items()) for i in shown]
        if len(shown) < count:
            rows.insert(MOST_ROWS, ("...",) * len(self.arrays))
        caption = "" if self.best_epoch is None else f"best: epoch {self.best_epoch}"
        return Table("History", tuple(self), tuple(rows), caption=caption)


@dataclasses.dataclass
class Recorder:
    """Collects what `History` shows, piece by piece. The one mutable thing of a run, on the host.

    Attributes:
        rows: what is known of each epoch that has ended.
        losses: the loss of each step.
        watched: what the watch saw, by name.
        compile_seconds: the time that compilation took, of earlier parts of a resumed run too.
        best_epoch: the best epoch so far, where early stopping looks for it.
        stopped: whether it has stopped the run.
        seconds: how long the steps took, likewise.
        rate: steps per second of the newest piece.
    """

    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)
    losses: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    watched: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    compile_seconds: float = 0.0
    best_epoch: int | None = None
    stopped: bool = False
    seconds: float = 0.0
    rate: float = 0.0

    @property
    def steps(self) -> int:
        """How many steps are recorded."""
        return len(self.losses)

    def add(
        self, losses: np.ndarray, watched: dict[str, np.ndarray], rows: list[dict[str, float]], seconds: float
    ) -> list[dict[str, float]]:
        """Adds a piece that ended `seconds` after training began, up to an early stop; returns the epochs' rows."""
        before, began, took = self.steps, self.seconds, seconds - self.seconds
        # Joined anew for each piece, of which there are few.
        self.losses = np.concatenate([self.losses, losses]).astype(losses.dtype)
        self.watched = {name: np.concatenate([*self._seen(name), values]) for name, values in watched.items()}
        self.seconds = seconds
        self.rate = len(losses) / took if len(losses) and took > 0 else self.rate
        added = []
        for row in rows:
            share = (row["step"] - before) / len(losses) if len(losses) else 1.0
            values = {name: value for name, value in row.items() if name not in (BETTER, STOPPED)}
            counts = {name: int(values.pop(name)) for name in ("epoch", "step")}
            added.append(counts | {"seconds": began + share * took} | values)
            if row.get(BETTER):
                self.best_epoch = counts["epoch"]
            if row.get(STOPPED):
                self.stopped = True
                self._cut_steps(counts["step"])
                break
        self.rows += added
        return added

    def cut(self, steps: int) -> None:
        """Forgets what is after so many steps."""
        self._cut_steps(steps)
        self.rows = [row for row in self.rows if row["step"] <= steps]

    def _cut_steps(self, steps: int) -> None:
        self.losses = self.losses[:steps]
        if self.watched:
            before = self.watched["step"] < steps
            self.watched = {name: values[before] for name, values in self.watched.items()}

    def _seen(self, name: str) -> list[np.ndarray]:
        return [self.watched[name]] if self.watched else []

    def history(self) -> History:
        """The history so far."""
        names = list(dict.fromkeys(name for row in self.rows for name in row)) or ["epoch", "step", "seconds", "loss"]
        integers = {"epoch", "step"}
        arrays = {
            name: np.array([row.get(name, np.nan) for row in self.rows], np.int64 if name in integers else np.float64)
            for name in names
        }
        return History(arrays, self.losses, self.best_epoch, self.compile_seconds, dict(self.watched))


def format_value(name: str, value: float) -> str:
    """A number of the history for people: counts whole, the rest to four digits."""
    if np.isnan(value):
        return ""
    return str(int(value)) if name in ("epoch", "step") else f"{value:.2f}" if name == "seconds" else f"{value:.4g}"
