"""What an ensemble of runs gave: arrays with an axis for each thing that was swept, as a table, as a plot."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from funcnn.table import Table
from funcnn.train.history import History, Recorder, format_value
from funcnn.train.steps import State

SEED = "seed"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Ensemble(Mapping[str, np.ndarray]):
    """What `fit_many` returns: each array has an axis for each thing that was swept, in the order of `axes`.

    Attributes:
        axes: the values of each axis by name, the grid's in its order, "seed" last.
        state: the states, every leaf (axes..., *its shape).
        arrays: the histories by name, each (axes..., epochs); NaN for what came after a run's early stop.
        best_epoch: with early stopping, the epochs whose states were kept, (axes...), 0 where all were NaN; else None.
        at_once: how many runs were computed side by side, on each core of a CPU.
        measured: microseconds for one step of one run by how many run side by side, where `strategy="auto"` measured.
        seconds: how long training took, without compilation.

    Example:
        >>> import jax, jax.numpy as jnp, optax, funcnn as fnn
        >>> x = jnp.linspace(-1, 1, 8)[:, None]
        >>> objective = fnn.Objective(fnn.Dense(1), fnn.losses.squared_error)
        >>> many = fnn.train.fit_many(
        ...     objective, optax.sgd, lambda key: objective.net.init(key, (1,)), (x, 2 * x), epochs=3, batch_size=8,
        ...     seeds=4, grid={"learning_rate": [0.1, 0.5]}, strategy="vmap", progress=None)
        >>> many["loss"].shape, many.state.params["w"].shape
        ((2, 4, 3), (2, 4, 1, 1))
        >>> many.best()
        {'learning_rate': 0.5}
    """

    axes: dict[str, np.ndarray]
    state: State
    arrays: dict[str, np.ndarray]
    best_epoch: np.ndarray | None
    at_once: int
    measured: dict[int, float]
    seconds: float

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self.arrays[name]
        except KeyError:
            raise KeyError(f"{name!r}; there are {', '.join(map(repr, self.arrays))}") from None

    def __iter__(self) -> Any:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __repr__(self) -> str:
        sizes = " x ".join(f"{len(values)} {name}" for name, values in self.axes.items())
        return f"<Ensemble of {sizes}: {', '.join(self)}>"

    def __str__(self) -> str:
        return self.table().text()

    def __rich__(self) -> Any:
        return self.table().rich()

    def run(self, **where: float) -> tuple[State, History]:
        """One run's state and history, by the value on each axis: `run(learning_rate=0.1, seed=3)`."""
        if set(where) != set(self.axes):
            raise TypeError(f"run takes a value for each of {list(self.axes)}, got {sorted(where)}")
        index = tuple(self._index(name, where[name]) for name in self.axes)
        rows = [
            {name: float(array[index][i]) for name, array in self.arrays.items()}
            for i in range(self["loss"].shape[-1])
            if not np.isnan(self["step"][index][i])
        ]
        best = None if self.best_epoch is None else int(self.best_epoch[index]) or None
        return jax.tree.map(lambda leaf: leaf[index], self.state), Recorder(rows, best_epoch=best).history()

    def last(self, name: str = "loss") -> np.ndarray:
        """The value of each run's last epoch (before its early stop), (axes...)."""
        values = self[name]
        ended = np.sum(~np.isnan(self["step"]), axis=-1) - 1
        return np.take_along_axis(values, ended[..., None], axis=-1)[..., 0]

    def best(self, name: str = "loss", maximize: bool = False) -> dict[str, float]:
        """The grid's point with the best mean over the seeds of the last value; a point with a NaN is never it.

        Raises:
            ValueError: every point has one.
        """
        means = self.last(name).mean(axis=-1)
        if not np.isfinite(means).any():
            raise ValueError(f"no point of the grid has a finite {name!r} for every seed, so that none is the best")
        means = np.where(np.isfinite(means), means, -math.inf if maximize else math.inf)
        index = np.unravel_index(int(means.argmax() if maximize else means.argmin()), means.shape)
        grid = [axis for axis in self.axes if axis != SEED]
        return {axis: float(self.axes[axis][i]) for axis, i in zip(grid, index, strict=True)}

    def table(self) -> Table:
        """Mean and standard deviation over the seeds of the last values, a row for each point of the grid."""
        grid, names = [axis for axis in self.axes if axis != SEED], [n for n in self if n not in ("step", "epoch")]
        rows, wrong = [], set()
        for point in np.ndindex(*(len(self.axes[axis]) for axis in grid)):
            cells = [f"{self.axes[axis][i]:.4g}" for axis, i in zip(grid, point, strict=True)]
            for name in names:
                values = self.last(name)[point]
                good = values[np.isfinite(values)]
                text = f"{format_value(name, good.mean())} ± {format_value(name, good.std())}" if len(good) else "none"
                if len(good) < len(values):
                    wrong.add((len(rows), len(cells)))
                    text += f" ({len(values) - len(good)} of {len(values)} not finite)"
                cells.append(text)
            rows.append(tuple(cells))
        seeds = len(self.axes[SEED])
        caption = f"mean ± standard deviation over {seeds} seeds, after the last epoch"
        return Table("Ensemble", (*grid, *names), tuple(rows), frozenset(wrong), caption)

    def plot(self, name: str = "loss") -> Any:
        """A matplotlib figure: for each point of the grid the mean over the seeds against the epoch, and the spread."""
        from matplotlib.figure import Figure  # noqa: PLC0415 - in the `experiments` extra
        from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        grid = [axis for axis in self.axes if axis != SEED]
        values = self[name]
        epochs = np.arange(1, values.shape[-1] + 1)
        for point in np.ndindex(*values.shape[: len(grid)]):
            looked = ~np.isnan(values[point]).all(axis=0)
            here = values[point][:, looked]
            label = ", ".join(f"{axis} {self.axes[axis][i]:.3g}" for axis, i in zip(grid, point, strict=True))
            (line,) = axes.plot(epochs[looked], np.nanmean(here, axis=0), label=label or "mean")
            low, high = np.nanmin(here, axis=0), np.nanmax(here, axis=0)
            axes.fill_between(epochs[looked], low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(xlabel="epoch", ylabel=name, title=f"mean and range over {len(self.axes[SEED])} seeds")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if "loss" in name and np.nanmin(values) > 0:
            axes.set_yscale("log")
        axes.legend(fontsize="small")
        return figure

    def _index(self, name: str, value: float) -> int:
        distance = np.abs(self.axes[name] - value)
        nearest = int(distance.argmin())
        if distance[nearest] > (0 if name == SEED else 1e-6 * abs(value)):  # as far as float32 is from what was asked
            raise KeyError(f"{name} {value}; there are {self.axes[name].tolist()}")
        return nearest
