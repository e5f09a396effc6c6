"""The compiled part of training: many steps, whole epochs and their evaluation as one program.

One function, `advance`, runs the steps first..last-1 of a run, wherever they lie: in the middle of an epoch or over
many of them. `first` and `last` are arguments of the compiled program, so that it is traced once for the whole run, and
a run that is cut into other pieces, or resumed, takes the same steps to the last bit.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from funcnn.layer import Params
from funcnn.objective import weighted_mean
from funcnn.train import steps as one_step
from funcnn.train.history import BETTER, STOPPED
from funcnn.train.shuffle import permutation
from funcnn.train.steps import Hyper, Recipe, State

Arrays = tuple[jax.Array, ...]  # (x, y) or (x, y, weight), all examples of a data set
Sums = dict[str, jax.Array]

# The longest piece that one call runs: the length of the array that the losses are returned in.
MOST_STEPS = 2**14


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is fixed while a run's program runs: a static argument of the compiled functions."""

    recipe: Recipe
    batch_size: int
    valid_batch_size: int
    shuffle: bool
    valid_every: int
    monitor: str | None  # what early stopping looks at; None: no early stopping
    maximize: bool
    patience: int
    min_delta: float
    record_steps: bool = True


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Run:
    """Where a run is: its state, and what it has to remember beside it.

    Attributes:
        state: the training state.
        sums: what `weighted_sums` gave for the steps of the unfinished epoch, added up.
        best: the state after the best validation so far; () without early stopping.
        best_value: what was monitored there.
        waited: how many validations have passed since.
        stopped: whether that were too many.
    """

    state: State
    sums: Sums
    best: State | tuple[()]
    best_value: jax.Array
    waited: jax.Array
    stopped: jax.Array


def begin(plan: Plan, state: State) -> Run:
    """The run before its first step."""
    dtype = jnp.result_type(float)
    names = ["weight", *value_names(plan)]
    worst = jnp.full((), -jnp.inf if plan.maximize else jnp.inf, dtype)
    return Run(
        state=state,
        sums={name: jnp.zeros((), dtype) for name in names},
        best=state if plan.monitor else (),
        best_value=worst,
        waited=jnp.zeros((), jnp.int32),
        stopped=jnp.zeros((), bool),
    )


def steps_per_epoch(n: int, batch_size: int) -> int:
    """How many batches n examples make, the last one perhaps not full."""
    return -(-n // batch_size)


def order(plan: Plan, key: jax.Array, epoch: jax.Array | int, n: int) -> jax.Array:
    """Which examples each step of an epoch takes, (steps, batch_size) int32; the last row is filled up with zeros."""
    steps = steps_per_epoch(n, plan.batch_size)
    indices = examples_in_order(key, epoch, n, plan.shuffle)
    return jnp.pad(indices, (0, steps * plan.batch_size - n)).reshape(steps, plan.batch_size)


def examples_in_order(key: jax.Array, epoch: jax.Array | int, n: int, shuffle: bool) -> jax.Array:
    """The numbers of the n examples in the order in which an epoch takes them, (n,) int32."""
    return permutation(one_step.order_key(key, epoch), n) if shuffle else jnp.arange(n, dtype=jnp.int32)


@functools.partial(jax.jit, static_argnames="plan")
def advance(
    plan: Plan, run: Run, data: Arrays, valid: Arrays | None, hyper: Hyper, first: Any, last: Any, epochs: Any
) -> tuple[Run, dict[str, jax.Array], jax.Array]:
    """Takes the steps first..last-1 on data that are on the device.

    Returns:
        the run after them; by name, the values of the epochs that end among them, (most_epochs(...),), the first at 0;
        the loss of each step, (MOST_STEPS,).
    """
    n = data[0].shape[0]
    steps = steps_per_epoch(n, plan.batch_size)
    first_epoch = first // steps
    rows = {name: jnp.full(most_epochs(n, plan.batch_size), jnp.nan) for name in row_names(plan, valid is not None)}

    def one_epoch(epoch: jax.Array, carry: Any) -> Any:
        run, rows, losses = carry
        indices = order(plan, run.state.key, epoch, n)

        def batch(i: jax.Array) -> Arrays:
            index = lax.dynamic_index_in_dim(indices, i, keepdims=False)
            taken = tuple(plan.recipe.placement.take(array, index) for array in data)
            if n % plan.batch_size == 0:
                return taken
            real = (i * plan.batch_size + jnp.arange(plan.batch_size)) < n
            return masked(taken, plan.recipe.placement.batch(real))

        begun = epoch * steps
        run, losses = _steps(
            plan,
            run,
            batch,
            jnp.maximum(first - begun, 0),
            jnp.minimum(last - begun, steps),
            hyper,
            losses,
            begun - first,
        )
        ended = last >= begun + steps
        validate = (valid is not None) & (((epoch + 1) % plan.valid_every == 0) | (epoch + 1 == epochs))
        run, row = _end_epoch(plan, run, valid, hyper, ended, validate)
        rows = {name: _put(rows[name], value, epoch - first_epoch, ended) for name, value in row.items()}
        return run, rows, losses

    carry = run, rows, jnp.zeros(MOST_STEPS if plan.record_steps else 0)
    return lax.fori_loop(first_epoch, -(-last // steps), one_epoch, carry)


@functools.partial(jax.jit, static_argnames="plan")
def advance_chunk(plan: Plan, run: Run, chunk: Arrays, hyper: Hyper, count: Any) -> tuple[Run, jax.Array]:
    """Takes `count` steps on batches that were put together elsewhere: arrays of shape (steps, batch_size, ...).

    Returns:
        the run after them; the loss of each step, (steps,).
    """

    def batch(i: jax.Array) -> Arrays:
        return tuple(plan.recipe.placement.batch(lax.dynamic_index_in_dim(a, i, keepdims=False)) for a in chunk)

    return _steps(plan, run, batch, 0, count, hyper, jnp.zeros(chunk[0].shape[0]), 0)


@functools.partial(jax.jit, static_argnames="plan")
def end_epoch(plan: Plan, run: Run, values: dict[str, jax.Array]) -> tuple[Run, dict[str, jax.Array]]:
    """Ends an epoch whose steps `advance_chunk` took, with what validation gave (empty where there was none)."""
    return _judge(plan, run, values)


@functools.partial(jax.jit, static_argnames="plan")
def evaluate(plan: Plan, params: Params, data: Arrays, hyper: Hyper) -> dict[str, jax.Array]:
    """Loss and metrics over all examples, each of which counts once, without noise."""
    return _evaluate(plan, params, data, hyper)


@functools.partial(jax.jit, static_argnames="plan")
def evaluate_chunk(plan: Plan, params: Params, batch: Arrays, hyper: Hyper) -> Sums:
    """The sums of `evaluate` over one batch; `add` adds them, `finish` makes the values of them."""
    return _evaluated_sums(plan, params, batch, hyper)


def finish(plan: Plan, params: Params, sums: Sums, hyper: Hyper) -> dict[str, jax.Array]:
    """Means of summed values; the loss with its penalty, which depends on the parameters alone."""
    values = one_step.means(sums)
    penalty = one_step.made(plan.recipe.objective, hyper).penalty
    if penalty is not None:
        values["loss"] = values["loss"] + jnp.asarray(penalty(params), values["loss"].dtype)
    return values


def masked(batch: Arrays, real: jax.Array) -> Arrays:
    """The batch with weight 0 for the examples that only fill it up."""
    x, y, *weight = batch
    given = weight[0] if weight else jnp.ones_like(real, jnp.result_type(float))
    return x, y, jnp.where(real, given, jnp.zeros_like(given))


def add(sums: Sums, more: Sums) -> Sums:
    """The sums of two parts of an epoch."""
    return {name: total + more[name].astype(total.dtype) for name, total in sums.items()}


def most_epochs(n: int, batch_size: int) -> int:
    """How many epochs can end in one call of `advance`."""
    return MOST_STEPS // steps_per_epoch(n, batch_size) + 2


def value_names(plan: Plan) -> list[str]:
    """The names of what is measured."""
    return ["loss", *(name for name, _ in plan.recipe.metrics)]


def row_names(plan: Plan, valid: bool) -> list[str]:
    """The names of what an epoch's row holds."""
    names = value_names(plan)
    flags = [BETTER, STOPPED] if plan.monitor else []
    return names + ([f"valid {name}" for name in names] if valid else []) + flags


def _steps(
    plan: Plan,
    run: Run,
    batch: Callable[[jax.Array], Arrays],
    first: Any,
    last: Any,
    hyper: Hyper,
    losses: jax.Array,
    offset: Any,
) -> tuple[Run, jax.Array]:
    """The steps first..last-1 of an epoch; their losses go to `losses`, from first + offset."""

    def one(i: jax.Array, carry: Any) -> Any:
        state, sums, losses = carry
        state, new = one_step.update(plan.recipe, state, batch(i), hyper)
        if losses.shape[0]:
            losses = losses.at[i + offset].set((new["loss"] / new["weight"]).astype(losses.dtype))
        return state, add(sums, new), losses

    state, sums, losses = lax.fori_loop(first, last, one, (run.state, run.sums, losses))
    return dataclasses.replace(run, state=state, sums=sums), losses


def _end_epoch(
    plan: Plan, run: Run, valid: Arrays | None, hyper: Hyper, ended: jax.Array, validate: jax.Array
) -> tuple[Run, dict[str, jax.Array]]:
    """`_judge` with the validation's values, where the epoch has ended; else nothing, and a row of NaN."""
    names = value_names(plan)

    def skip(_: Params) -> dict[str, jax.Array]:
        return dict.fromkeys(names, jnp.full((), jnp.nan))

    values: dict[str, jax.Array] = {}
    if valid is not None:

        def look(params: Params) -> dict[str, jax.Array]:
            return {k: v.astype(jnp.result_type(float)) for k, v in _evaluate(plan, params, valid, hyper).items()}

        values = lax.cond(ended & validate, look, skip, run.state.params)
    judged, row = _judge(plan, run, values)
    keep = functools.partial(jax.tree.map, functools.partial(jnp.where, ended))
    return dataclasses.replace(
        run,
        sums=keep(judged.sums, run.sums),
        best=lax.cond(ended, lambda: judged.best, lambda: run.best) if plan.monitor else (),
        best_value=keep(judged.best_value, run.best_value),
        waited=keep(judged.waited, run.waited),
        stopped=keep(judged.stopped, run.stopped),
    ), row


def _judge(plan: Plan, run: Run, values: dict[str, jax.Array]) -> tuple[Run, dict[str, jax.Array]]:
    """The row of an epoch, the run with empty sums, and early stopping's memory brought up to date."""
    row = one_step.means(run.sums) | {f"valid {name}": value for name, value in values.items()}
    run = dataclasses.replace(run, sums=jax.tree.map(jnp.zeros_like, run.sums))
    if plan.monitor is None:
        return run, row
    value = row.get(plan.monitor, jnp.full((), jnp.nan)).astype(run.best_value.dtype)
    looked = ~jnp.isnan(value) & ~run.stopped  # a NaN is no validation, or no better than any value
    better = (value - run.best_value > plan.min_delta) if plan.maximize else (run.best_value - value > plan.min_delta)
    better = better & looked
    waited = jnp.where(better, 0, run.waited + looked)
    stopped = run.stopped | (waited >= plan.patience)
    return dataclasses.replace(
        run,
        best=jax.tree.map(lambda new, old: jnp.where(better, new, old), run.state, run.best),
        best_value=jnp.where(better, value, run.best_value),
        waited=waited,
        stopped=stopped,
    ), row | {BETTER: better.astype(value.dtype), STOPPED: stopped.astype(value.dtype)}


def _evaluate(plan: Plan, params: Params, data: Arrays, hyper: Hyper) -> dict[str, jax.Array]:
    n, size = data[0].shape[0], min(plan.valid_batch_size, data[0].shape[0])

    def part(i: jax.Array, sums: Sums) -> Sums:
        # The last part overlaps the one before; what was counted there has weight 0 here.
        begin = jnp.minimum(i * size, n - size)
        batch = tuple(plan.recipe.placement.batch(lax.dynamic_slice_in_dim(a, begin, size)) for a in data)
        if n % size:
            batch = masked(batch, plan.recipe.placement.batch(begin + jnp.arange(size) >= i * size))
        return add(sums, _evaluated_sums(plan, params, batch, hyper))

    shapes = jax.eval_shape(lambda: _evaluated_sums(plan, params, tuple(a[:size] for a in data), hyper))
    zeros = {name: jnp.zeros((), shape.dtype) for name, shape in shapes.items()}
    return finish(plan, params, lax.fori_loop(0, math.ceil(n / size), part, zeros), hyper)


def _evaluated_sums(plan: Plan, params: Params, batch: Arrays, hyper: Hyper) -> Sums:
    objective = one_step.made(plan.recipe.objective, hyper)
    batch = one_step.prepared(plan.recipe, batch)
    outputs = objective.net.apply(params, batch[0])
    loss = weighted_mean(objective.loss(outputs, batch[1]), batch[2] if len(batch) > 2 else None)
    return one_step.weighted_sums(batch, loss, one_step.per_example(plan.recipe.metrics, outputs, batch))


def _put(rows: jax.Array, value: jax.Array, index: jax.Array, wanted: jax.Array) -> jax.Array:
    return rows.at[index].set(jnp.where(wanted, value, rows[index]).astype(rows.dtype))
