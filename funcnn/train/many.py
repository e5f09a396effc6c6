"""Many runs in one program: over seeds, and over a grid of hyper-parameters."""

import concurrent.futures
import functools
import itertools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from funcnn.layer import Params
from funcnn.objective import Objective
from funcnn.train import loop
from funcnn.train import steps as one_step
from funcnn.train.arguments import check_count, grid_values, seed_numbers
from funcnn.train.ensemble import SEED, Ensemble
from funcnn.train.feed import LEAST_STEPS, check_arrays, check_batch, end_of_piece, next_size
from funcnn.train.fit import EarlyStopping, cast_objective, check_hyper, monitoring
from funcnn.train.history import BETTER, STOPPED
from funcnn.train.progress import as_progress
from funcnn.train.steps import Augment, Metric, Prepare, Recipe

TRIAL_STEPS = 32  # of each way of running that "auto" measures


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
    augment: Augment | Sequence[Augment] = (),
    shuffle: bool = True,
    early_stopping: EarlyStopping | None = None,
    compute_dtype: str | None = None,
    progress: Any = "auto",
) -> Ensemble:
    """Trains a network many times as one compiled program: for each seed at each point of a grid.

    The run of seed s is the run of `fit` with `key=jax.random.key(s)` and the same `params` function, to the rounding
    of sums that are taken in another order. After the nine steps of a test that is less than 1e-6 of an array's largest
    number in float32 and 1e-14 in float64; it grows with the steps.

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
    epochs, batch_size = check_count("epochs", epochs), check_count("batch_size", batch_size)
    if not callable(params):
        raise TypeError("params is a function of a key, such as lambda key: net.init(key, (64,)): each run has its own")
    axes = grid_values(grid) | {SEED: seed_numbers(seeds)}
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
        valid_batch_size=batch_size if valid_batch_size is None else check_count("valid_batch_size", valid_batch_size),
        shuffle=shuffle,
        valid_every=check_count("valid_every", valid_every),
        record_steps=False,
        **monitoring(early_stopping, valid, dict(recipe.metrics)),
    )
    # Not vmapped: the initialisers' random numbers compile slowly then, and are drawn but once.
    points = [{name: values[i] for name, values in hypers.items()} for i in range(len(keys))]
    runs = [_begin(plan, params, key, point) for key, point in zip(keys, points, strict=True)]
    for name, arrays in (("data", data), ("valid", valid)):
        if arrays is not None:
            check_batch(name, plan, runs[0].state.params, tuple(array[:batch_size] for array in arrays), points[0])
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
    made = one_step.drawn(params, init_key, hyper)
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
    if isinstance(strategy, int) and not isinstance(strategy, bool) and strategy >= 1:
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
    steps = epochs * per_epoch
    state, best_epoch = run.state, None
    if plan.monitor:
        better = np.stack([row[BETTER] for row in rows], axis=-1) > 0
        ever = better.any(axis=-1)
        best_epoch = np.where(ever, better.shape[-1] - better[:, ::-1].argmax(axis=-1), 0).reshape(shape)
        state = jax.tree.map(functools.partial(_where, np.asarray(ever)), run.best, run.state)  # as in `fit`
    arrays = {name: unfold(values) for name, values in ({"epoch": epochs, "step": steps} | arrays).items()}
    return Ensemble(axes, jax.tree.map(unfold, state), arrays, best_epoch, at_once, measured, seconds)


def _where(condition: np.ndarray, a: jax.Array, b: jax.Array) -> jax.Array:
    """`a` for the runs where the condition holds, else `b`."""
    return jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)


def _without_flags(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in (BETTER, STOPPED)}
