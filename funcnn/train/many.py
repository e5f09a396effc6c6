"""Many runs in one program: an ensemble over seeds, and over a grid of hyper-parameters."""

import concurrent.futures
import dataclasses
import functools
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from funcnn.layer import Params
from funcnn.objective import Objective
from funcnn.table import Table
from funcnn.train import loop
from funcnn.train import steps as one_step
from funcnn.train.feed import LEAST_STEPS, check_arrays, check_batch, check_count, end_of_piece, next_size
from funcnn.train.fit import EarlyStopping, cast_objective, check_hyper, monitoring
from funcnn.train.history import BETTER, STOPPED, History, Recorder, format_value
from funcnn.train.progress import as_progress
from funcnn.train.steps import Augment, Metric, Prepare, Recipe, State

SEED = "seed"
TRIAL_STEPS = 32  # of each way of running that "auto" measures


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Ensemble(Mapping[str, np.ndarray]):
    """What `fit_many` returns: each array has an axis for each thing that was swept, in the order of `axes`.

    Attributes:
        axes: the values of each axis by name, the grid's in its order, "seed" last.
        state: the states, every leaf (axes..., *its shape).
        arrays: the histories by name, each (axes..., epochs); NaN for what came after a run's early stop.
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
        return jax.tree.map(lambda leaf: leaf[index], self.state), Recorder(rows).history()

    def last(self, name: str = "loss") -> np.ndarray:
        """The value of each run's last epoch (before its early stop), (axes...)."""
        values = self[name]
        ended = np.sum(~np.isnan(self["step"]), axis=-1) - 1
        return np.take_along_axis(values, ended[..., None], axis=-1)[..., 0]

    def best(self, name: str = "loss", maximize: bool = False) -> dict[str, float]:
        """The grid's point with the best mean over the seeds of the last value; a point with a NaN is never it."""
        means = self.last(name).mean(axis=-1)
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
        found = np.flatnonzero(np.isclose(self.axes[name], value, rtol=1e-6, atol=0))
        if not len(found):
            raise KeyError(f"{name} {value}; there are {self.axes[name].tolist()}")
        return int(found[0])


def fit_many(
    objective: Objective | Callable[..., Objective],
    optimizer: Any,
    params: Callable[..., Params],
    data: Any,
    *,
    epochs: int,
    batch_size: int,
    seeds: int | Sequence[int] = 1,
    grid: Mapping[str, Sequence[float]] | None = None,
    strategy: str | int = "auto",
    valid: Any = None,
    valid_every: int = 1,
    valid_batch_size: int | None = None,
    gradient: str | Callable[..., Any] = "autodiff",
    metrics: Mapping[str, Metric] | None = None,
    prepare: Prepare | None = None,
    augment: Augment | Iterable[Augment] = (),
    shuffle: bool = True,
    early_stopping: EarlyStopping | None = None,
    compute_dtype: str | None = None,
    progress: Any = "auto",
) -> Ensemble:
    """Trains a network many times as one compiled program: for each seed at each point of a grid.

    The run of seed s is the run of `fit` with `key=jax.random.key(s)` and the same `params` function, to the rounding
    of sums that are taken in another order (float64: 1e-10 of a value after tens of steps; a test says so).

    Args:
        objective: net + loss + penalty; or a function of hyper-parameters of the grid that returns it.
        optimizer: any optax transformation; or such a function, as `optax.adam` is of "learning_rate".
        params: a function of a key, and of hyper-parameters of the grid, that returns the parameters to begin with.
        data: (x, y) or (x, y, weight), arrays in memory, which all runs share.
        epochs: how many times to go through the data.
        batch_size: examples a step.
        seeds: how many (0, 1, ...), or which.
        grid: values by name; every combination is a point. Each name is an argument of `objective`, `optimizer` or
            `params`.
        strategy: "vmap" (all runs side by side), "map" (one after another), a number (so many at once), or "auto": the
            fastest of some, measured on the first steps; each that is tried is compiled.
        valid: as in `fit`, and so are valid_every, valid_batch_size, gradient, metrics, prepare, augment, shuffle,
            early_stopping, compute_dtype and progress. A run that stops early keeps its best state while the others
            go on.

    Returns:
        An `Ensemble`. A run whose loss is not finite goes on, and its table says so.

    Raises:
        TypeError, ValueError: an argument is not what it should be.

    Example:
        See `Ensemble`.
    """
    for name, count in (("epochs", epochs), ("batch_size", batch_size), ("valid_every", valid_every)):
        check_count(name, count)
    numbers = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not numbers or any(not len(values) for values in (grid or {}).values()) or SEED in (grid or {}):
        raise ValueError(f"seeds and the grid's axes have at least one value each, got seeds={seeds}, grid={grid}")
    if not callable(params):
        raise TypeError("params is a function of a key, such as lambda key: net.init(key, (64,)): each run has its own")
    axes = {name: np.asarray(values, float) for name, values in (grid or {}).items()} | {SEED: np.array(numbers)}
    hypers, keys = _runs(axes)
    recipe = Recipe.of(cast_objective(objective, compute_dtype), optimizer, gradient, metrics, augment, prepare, hypers)
    check_hyper(hypers, recipe.objective, recipe.optimizer, params)
    check_arrays("data", data)
    data = tuple(map(jnp.asarray, data))
    if valid is not None:
        check_arrays("valid", valid)
        valid = tuple(map(jnp.asarray, valid))
    plan = loop.Plan(
        recipe=recipe,
        batch_size=batch_size,
        valid_batch_size=valid_batch_size or batch_size,
        shuffle=shuffle,
        valid_every=valid_every,
        record_steps=False,
        **monitoring(early_stopping, valid, dict(recipe.metrics)),
    )
    # Not vmapped: the initialisers' random numbers compile slowly then, and are drawn but once.
    points = [{name: values[i] for name, values in hypers.items()} for i in range(len(keys))]
    runs = [_begin(plan, params, key, point) for key, point in zip(keys, points, strict=True)]
    check_batch(plan, runs[0].state.params, tuple(array[:batch_size] for array in data), points[0])
    began = _stack(runs)
    measured: dict[int, float] = {}
    groups = Groups(keys.shape[0])

    def advance(runs: list[loop.Run], begin: int, end: int, at_once: int) -> list[Any]:
        # Compiled here, where the user's settings hold (x64, matmul precision): those of JAX are each thread's own.
        bounds = [jnp.asarray(number) for number in (begin, end, epochs)]
        program = _advance.lower(plan, at_once, runs[0], data, valid, hypers_of_groups[0], *bounds).compile()

        def one(group: tuple[loop.Run, Any]) -> Any:
            return jax.block_until_ready(program(group[0], data, valid, group[1], *bounds))

        return list(pool.map(one, zip(runs, hypers_of_groups, strict=True)))

    hypers_of_groups = groups.split(hypers)
    run = groups.split(began)
    per_epoch = loop.steps_per_epoch(len(data[0]), batch_size)
    total = epochs * per_epoch
    at_once = _at_once(strategy, groups.size)
    pool = concurrent.futures.ThreadPoolExecutor(groups.count)
    teller = as_progress(progress)
    teller.begin(total, epochs, 0)
    try:
        if not at_once:
            measured = _measure(advance, run, groups.size, min(TRIAL_STEPS, total))
            at_once = min(measured, key=lambda k: measured[k])
        advance(run, 0, 0, at_once)  # compiles
        step, size, seconds = 0, LEAST_STEPS, 0.0
        rows: list[dict[str, np.ndarray]] = []
        while step < total:
            last = end_of_piece(step, size, per_epoch, total)
            start = time.perf_counter()
            results = advance(run, step, last, at_once)
            run, new = [runs for runs, _ in results], [values for _, values in results]
            new = {name: np.asarray(values) for name, values in groups.join(new).items()}
            took = time.perf_counter() - start
            seconds += took
            for i in range(last // per_epoch - step // per_epoch):
                rows.append({name: values[:, i] for name, values in new.items()})
            shown = {name: float(np.mean(values)) for name, values in (rows[-1] if rows else {}).items()}
            teller.update(last, last // per_epoch, _without_flags(shown), (last - step) / took)
            size = next_size(last - step, took)
            step = last
            if rows and rows[-1].get(STOPPED, np.zeros(1)).all():
                break
    finally:
        pool.shutdown()
        teller.end()
    return _collected(plan, axes, groups.join(run), rows, per_epoch, at_once, measured, seconds)


@jax.jit
def _stack(runs: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)


@functools.partial(jax.jit, static_argnums=1)
def _join(groups: list[Any], count: int) -> Any:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[:count], *groups)


class Groups:
    """Runs in as many groups as a CPU has cores, each on a thread of its own; in one group on an accelerator.

    A program of small operations keeps one core busy at best. The groups have one size, so that they share one compiled
    program; the last is filled up with its own last run.
    """

    def __init__(self, runs: int):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.runs = runs
        self.size = -(-runs // (min(cores, runs) if jax.default_backend() == "cpu" else 1))
        self.count = -(-runs // self.size)

    def split(self, tree: Any) -> list[Any]:
        """A pytree of arrays (runs, ...) as one for each group."""
        index = np.minimum(np.arange(self.count * self.size), self.runs - 1).reshape(self.count, self.size)
        return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in index]

    def join(self, groups: Sequence[Any]) -> Any:
        """What `split` took apart."""
        return _join(list(groups), self.runs)


@functools.partial(jax.jit, static_argnames=("plan", "at_once"))
def _advance(
    plan: loop.Plan,
    at_once: int,
    runs: loop.Run,
    data: Any,
    valid: Any,
    hypers: Any,
    first: Any,
    last: Any,
    epochs: Any,
) -> tuple[loop.Run, dict[str, jax.Array]]:
    """`loop.advance` for each run, `at_once` of them side by side."""

    def one(run_and_hyper: Any) -> Any:
        run, hyper = run_and_hyper
        return loop.advance(plan, run, data, valid, hyper, first, last, epochs)[:2]

    return lax.map(one, (runs, hypers), batch_size=None if at_once == 1 else at_once)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _begin(plan: loop.Plan, params: Callable[..., Params], key: jax.Array, hyper: Any) -> loop.Run:
    init_key, key = jax.random.split(key)
    made = params(init_key, **{name: hyper[name] for name in one_step.arguments_of(params, hyper)})
    return loop.begin(plan, one_step.first_state(one_step.made(plan.recipe.optimizer, hyper), made, key))


def _runs(axes: dict[str, np.ndarray]) -> tuple[dict[str, jax.Array], jax.Array]:
    """The hyper-parameters and the key of each run, (runs,), in the order of a C array with these axes."""
    points = list(itertools.product(*axes.values()))
    columns = dict(zip(axes, zip(*points, strict=True), strict=True))
    keys = jnp.stack([jax.random.key(int(seed)) for seed in columns.pop(SEED)])
    return {name: jnp.asarray(values, jnp.result_type(float)) for name, values in columns.items()}, keys


def _at_once(strategy: str | int, runs: int) -> int:
    """How many runs side by side; 0 for "auto"."""
    known = {"auto": 0, "vmap": runs, "map": 1}
    if isinstance(strategy, str) and strategy in known:
        return known[strategy] if runs > 1 else 1
    if isinstance(strategy, int) and strategy >= 1:
        return min(strategy, runs)
    raise ValueError(f'strategy is "auto", "vmap", "map" or a number of runs at once, got {strategy!r}')


def _measure(advance: Callable[..., Any], runs: list[loop.Run], size: int, steps: int) -> dict[int, float]:
    """Microseconds for a step of one run, by how many a group computes at once: one, all, and some number between."""
    measured = {}
    for at_once in sorted({1, min(size, 2 ** round(math.log2(size) / 2)), size}):
        advance(runs, 0, steps, at_once)  # compiles
        began = time.perf_counter()
        advance(runs, 0, steps, at_once)
        measured[at_once] = (time.perf_counter() - began) / steps / (size * len(runs)) * 1e6
    return measured


def _collected(
    plan: loop.Plan,
    axes: dict[str, np.ndarray],
    run: loop.Run,
    rows: list[dict[str, np.ndarray]],
    per_epoch: int,
    at_once: int,
    measured: dict[int, float],
    seconds: float,
) -> Ensemble:
    """The ensemble of what the runs gave, each leaf with the axes in front."""
    shape = tuple(map(len, axes.values()))

    def unfold(array: Any) -> Any:
        return array.reshape(*shape, *array.shape[1:])

    names = [name for name in loop.row_names(plan, "valid loss" in rows[0]) if name not in (BETTER, STOPPED)]
    arrays = {name: np.stack([row[name] for row in rows], axis=-1).astype(float) for name in names}
    epochs = np.broadcast_to(np.arange(1.0, len(rows) + 1), (len(rows[0]["loss"]), len(rows)))
    if plan.monitor:
        stopped = np.stack([row[STOPPED] for row in rows], axis=-1) > 0
        over = np.pad(stopped, ((0, 0), (1, 0)))[:, :-1]  # the epoch of the stop still counts
        arrays = {name: np.where(over, np.nan, values) for name, values in arrays.items()}
        epochs = np.where(over, np.nan, epochs)
        assert isinstance(run.best, State)
    steps = epochs * per_epoch
    state = run.best if plan.monitor else run.state
    arrays = {name: unfold(values) for name, values in ({"epoch": epochs, "step": steps} | arrays).items()}
    return Ensemble(axes, jax.tree.map(unfold, state), arrays, at_once, measured, seconds)


def _without_flags(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in (BETTER, STOPPED)}
