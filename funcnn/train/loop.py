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
import numpy as np
from jax import lax

from funcnn.layer import Params
from funcnn.train import steps as one_step
from funcnn.train.history import BETTER, STOPPED
from funcnn.train.shuffle import permutation
from funcnn.train.steps import Hyper, Recipe, State
from funcnn.train.watch import Watch

Arrays = tuple[jax.Array, ...]  # (x, y) or (x, y, weight), all examples of a data set
Sums = dict[str, jax.Array]

VALID = "valid "  # before the names of validation's values

# The longest piece that one call runs: the length of the array that the losses are returned in.
MOST_STEPS = 2**14
MOST_WATCHED = 64  # how often a watch can look in one call of `advance`, for the same reason


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
    watch: Watch | None = None


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Traces:
    """What is recorded of single steps.

    Attributes:
        losses: the loss of each step, the first at 0; of length 0 with `record_steps=False`.
        watched: what the watch saw, by name, (looks, ...), the first at 0; {} without one.
    """

    losses: jax.Array
    watched: Sums


def of_steps(plan: Plan, traces: Traces, begin: int, end: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The losses of the steps begin..end-1 and what was watched of them, without the room behind them."""
    watched = {} if plan.watch is None else plan.watch.seen(traces.watched, begin, end)
    return np.asarray(traces.losses)[: end - begin], watched


@functools.partial(jax.jit, static_argnames="plan")
def advance(
    plan: Plan, run: Run, data: Arrays, valid: Arrays | None, hyper: Hyper, first: Any, last: Any, epochs: Any
) -> tuple[Run, dict[str, jax.Array], Traces]:
    """Takes the steps first..last-1 on data that are on the device.

    Returns:
        the run after them; by name, the values of the epochs that end among them, (most_epochs(...),), the first at 0;
        the traces, of MOST_STEPS losses and MOST_WATCHED looks.
    """
    n = data[0].shape[0]
    steps = steps_per_epoch(n, plan.batch_size)
    first_epoch = first // steps
    rows = {name: jnp.full(most_epochs(n, plan.batch_size), jnp.nan) for name in row_names(plan, valid is not None)}

    def batch(indices: jax.Array, i: jax.Array | int) -> Arrays:
        index = lax.dynamic_index_in_dim(indices, i, keepdims=False)
        taken = tuple(plan.recipe.placement.take(array, index) for array in data)
        if n % plan.batch_size == 0:
            return taken
        real = (i * plan.batch_size + jnp.arange(plan.batch_size)) < n
        return masked(taken, plan.recipe.placement.batch(real))

    def one_epoch(epoch: jax.Array, carry: Any) -> Any:
        run, rows, traces = carry
        begun = epoch * steps
        run, traces = _steps(
            plan,
            run,
            functools.partial(batch, order(plan, run.state.key, epoch, n)),
            jnp.maximum(first - begun, 0),
            jnp.minimum(last - begun, steps),
            hyper,
            traces,
            begun,
            first,
        )
        ended = last >= begun + steps
        validate = (valid is not None) & (((epoch + 1) % plan.valid_every == 0) | (epoch + 1 == epochs))
        run, row = _end_epoch(plan, run, valid, hyper, ended, validate)
        rows = {name: _put(rows[name], value, epoch - first_epoch, ended) for name, value in row.items()}
        return run, rows, traces

    first_batch = functools.partial(batch, jnp.zeros((1, plan.batch_size), jnp.int32), 0)
    carry = run, rows, _no_traces(plan, run, first_batch, hyper, MOST_STEPS if plan.record_steps else 0, MOST_WATCHED)
    return lax.fori_loop(first_epoch, -(-last // steps), one_epoch, carry)


@functools.partial(jax.jit, static_argnames="plan")
def advance_chunk(plan: Plan, run: Run, chunk: Arrays, hyper: Hyper, count: Any) -> tuple[Run, Traces]:
    """Takes `count` steps on batches that were put together elsewhere: arrays of shape (steps, batch_size, ...).

    Returns:
        the run after them; the traces, of as many losses as the chunk has steps.
    """

    def batch(i: jax.Array | int) -> Arrays:
        return tuple(plan.recipe.placement.batch(lax.dynamic_index_in_dim(a, i, keepdims=False)) for a in chunk)

    begun, steps = run.state.step, len(chunk[0])
    looks = -(-steps // plan.watch.every) if plan.watch is not None else 0
    traces = _no_traces(plan, run, functools.partial(batch, 0), hyper, steps, looks)
    return _steps(plan, run, batch, 0, count, hyper, traces, begun, begun)


@functools.partial(jax.jit, static_argnames="plan")
def end_epoch(plan: Plan, run: Run, values: dict[str, jax.Array], validated: Any) -> tuple[Run, dict[str, jax.Array]]:
    """Ends an epoch whose steps `advance_chunk` took, with what validation gave, where there was one."""
    return _judge(plan, run, values, validated)


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
    return names + ([f"{VALID}{name}" for name in names] if valid else []) + flags


def _steps(
    plan: Plan,
    run: Run,
    batch: Callable[[jax.Array], Arrays],
    first: Any,
    last: Any,
    hyper: Hyper,
    traces: Traces,
    begun: Any,
    origin: Any,
) -> tuple[Run, Traces]:
    """The steps first..last-1 of an epoch (or chunk) before which the run had `begun` steps.

    What is recorded of step number i of the run goes to the place i - origin of the losses.
    """

    def one(i: jax.Array, carry: Any) -> Any:
        state, sums, losses = carry
        state, new = one_step.update(plan.recipe, state, batch(i), hyper)
        if losses.shape[0]:
            losses = losses.at[begun + i - origin].set((new["loss"] / new["weight"]).astype(losses.dtype))
        return state, add(sums, new), losses

    carry, watched, watch = (run.state, run.sums, traces.losses), traces.watched, plan.watch
    if watch is None:
        state, sums, losses = lax.fori_loop(first, last, one, carry)
    else:
        # A loop around the loop, and no condition inside it, for which XLA would copy the state at each step.
        def from_look_to_look(number: jax.Array, carry: Any) -> Any:
            carry, watched = carry
            step = number * watch.every
            due = step >= begun + first
            watched = lax.cond(due, look, lambda *_: watched, carry[0], watched, number)
            begin, end = jnp.maximum(first, step - begun), jnp.minimum(last, step + watch.every - begun)
            return lax.fori_loop(begin, end, one, carry), watched

        def look(state: State, watched: Sums, number: jax.Array) -> Sums:
            seen = watch.look(plan.recipe, state, batch(number * watch.every - begun), hyper)
            return {name: watched[name].at[number - watch.first(origin)].set(value) for name, value in seen.items()}

        numbers = (begun + first) // watch.every, jnp.where(first < last, watch.first(begun + last), 0)
        (state, sums, losses), watched = lax.fori_loop(*numbers, from_look_to_look, (carry, watched))
    return dataclasses.replace(run, state=state, sums=sums), Traces(losses, watched)


def _no_traces(plan: Plan, run: Run, batch: Callable[[], Arrays], hyper: Hyper, steps: int, looks: int) -> Traces:
    """Room for the losses of so many steps, and for so many looks of a watch, at batches like this one."""
    watched = {}
    if (watch := plan.watch) is not None:
        seen = jax.eval_shape(lambda: watch.look(plan.recipe, run.state, batch(), hyper))
        watched = {name: jnp.zeros((looks, *leaf.shape), leaf.dtype) for name, leaf in seen.items()}
    return Traces(jnp.zeros(steps), watched)


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
    judged, row = _judge(plan, run, values, validate)
    keep = functools.partial(jax.tree.map, functools.partial(jnp.where, ended))
    return dataclasses.replace(
        run,
        sums=keep(judged.sums, run.sums),
        best=lax.cond(ended, lambda: judged.best, lambda: run.best) if plan.monitor else (),
        best_value=keep(judged.best_value, run.best_value),
        waited=keep(judged.waited, run.waited),
        stopped=keep(judged.stopped, run.stopped),
    ), row


def _judge(plan: Plan, run: Run, values: dict[str, jax.Array], validated: Any) -> tuple[Run, dict[str, jax.Array]]:
    """The row of an epoch, the run with empty sums, and early stopping's memory brought up to date."""
    row = one_step.means(run.sums) | {f"{VALID}{name}": value for name, value in values.items()}
    run = dataclasses.replace(run, sums=jax.tree.map(jnp.zeros_like, run.sums))
    if plan.monitor is None:
        return run, row
    value = row[plan.monitor].astype(run.best_value.dtype)
    looked = ~run.stopped & (validated if plan.monitor.startswith(VALID) else True)
    better = (value - run.best_value > plan.min_delta) if plan.maximize else (run.best_value - value > plan.min_delta)
    better = better & looked  # a NaN is better than nothing
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
    values = {"loss": objective.loss(outputs, batch[1])} | one_step.per_example(plan.recipe.metrics, outputs, batch)
    return one_step.example_sums(batch, values)


def _put(rows: jax.Array, value: jax.Array, index: jax.Array, wanted: jax.Array) -> jax.Array:
    return rows.at[index].set(jnp.where(wanted, value, rows[index]).astype(rows.dtype))
