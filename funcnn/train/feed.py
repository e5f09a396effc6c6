"""Where a run's steps come from: data on the device, or batches from the host; in pieces of one dispatch each."""

import dataclasses
import functools
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from funcnn.layer import Key, Params
from funcnn.objective import validate
from funcnn.train import loop, source
from funcnn.train import steps as one_step
from funcnn.train.arguments import check_count, check_rows, check_weight
from funcnn.train.errors import DataStreamError

PIECE_SECONDS = 0.5  # how long one dispatch lasts: how often there is news, and how soon an interrupt is heard
# A dispatch copies the state once, which an update of the optimizer goes over several times. So it has at least this
# many steps, where they do not last too long, and the copy does not show. The first has as many: its time is not known.
LEAST_STEPS, MOST_SECONDS = 16, 5.0


@dataclasses.dataclass
class Piece:
    """What one dispatch did, and how to do it again."""

    run: loop.Run  # after it
    position: tuple[int, int]  # of the next step: its epoch from 0, its number in it
    losses: np.ndarray  # of its steps
    watched: dict[str, np.ndarray]  # what the watch saw of them
    rows: list[dict[str, float]]  # of the epochs that ended in it
    begin: int  # how many steps the run had taken before those that can be done again
    epoch: int  # of the first of these, from 0
    first: int  # its number in its epoch
    per_epoch: int | None  # steps an epoch has, where that is known
    replay: Callable[[int], loop.Run]  # the run when it had taken so many steps
    batches: Callable[[int], Any]  # the batch that it took after so many
    compile_seconds: float = 0.0


class Memory:
    """Data on the device: pieces of any length, over many epochs."""

    def __init__(self, plan: loop.Plan, data: Any, valid: Any, hyper: Any):
        where = plan.recipe.placement
        check_arrays("data", data)
        if valid is not None:
            if not source.is_memory(valid):
                raise TypeError("valid is (x, y) or (x, y, weight) of arrays, where data are; stream=True streams both")
            check_arrays("valid", valid)
            valid = tuple(where.device_put(jnp.asarray(array)) for array in valid)
        self.plan, self.hyper, self.valid = plan, hyper, valid
        self.data = tuple(where.device_put(jnp.asarray(array)) for array in data)
        self.n, self.kinds = len(self.data[0]), source.kinds(self.data)
        self.per_epoch = loop.steps_per_epoch(self.n, plan.batch_size)

    def check_first_batch(self, params: Params) -> None:
        """Raises what is wrong with network and data, before anything is compiled."""
        for name, arrays, size in (
            ("data", self.data, self.plan.batch_size),
            ("valid", self.valid, self.plan.valid_batch_size),
        ):
            if arrays is not None:
                check_batch(name, self.plan, params, tuple(array[:size] for array in arrays), self.hyper)

    def compile(self, run: loop.Run) -> None:
        """Compiles the program."""
        loop.advance.lower(self.plan, run, self.data, self.valid, self.hyper, 0, 0, 0).compile()

    def pieces(
        self, run: loop.Run, position: tuple[int, int], epochs: int, pause: Callable[[int], int]
    ) -> Generator[Piece]:
        """The rest of the run; `pause(step)` is the number of the step before which a piece has to end."""
        per_epoch = self.per_epoch
        step, size = position[0] * per_epoch + position[1], min(LEAST_STEPS, loop.MOST_STEPS)
        while step < epochs * per_epoch:
            looked = step + loop.MOST_WATCHED * self.plan.watch.every if self.plan.watch is not None else 2**31
            last = end_of_piece(step, size, per_epoch, min(epochs * per_epoch, pause(step), looked))
            began, before = time.perf_counter(), run
            run, rows, traces = self._advance(before, step, last, epochs)
            losses, watched = loop.of_steps(self.plan, traces, step, last)
            took = time.perf_counter() - began
            # By name in the order of reading: a compiled function returns a dict sorted by name.
            rows = {name: np.asarray(rows[name]) for name in loop.row_names(self.plan, self.valid is not None)}
            yield Piece(
                run,
                position=divmod(last, per_epoch),
                losses=losses,
                watched=watched,
                rows=[
                    {"epoch": epoch + 1, "step": (epoch + 1) * per_epoch} | {k: float(v[i]) for k, v in rows.items()}
                    for i, epoch in enumerate(range(step // per_epoch, last // per_epoch))
                ],
                begin=step,
                epoch=step // per_epoch,
                first=step % per_epoch,
                per_epoch=per_epoch,
                replay=lambda to, before=before, step=step: self._advance(before, step, to, epochs)[0],
                batches=functools.partial(self._batch, run.state.key),
            )
            del before  # what the run was is not kept while it goes on
            size = next_size(last - step, took)
            step = last

    def _advance(self, run: loop.Run, first: int, last: int, epochs: int) -> Any:
        return loop.advance(self.plan, run, self.data, self.valid, self.hyper, first, last, epochs)

    def _batch(self, key: Key, step: int) -> Any:
        epoch, i = divmod(step, self.per_epoch)
        rows = loop.order(self.plan, key, epoch, self.n)[i]
        return tuple(array[rows] for array in self.data)


def end_of_piece(step: int, size: int, per_epoch: int, most: int) -> int:
    """Where a dispatch of about `size` steps ends, at `most` at the latest: with an epoch, where one fits."""
    last = min(step + size, most)
    return last - last % per_epoch if last // per_epoch > step // per_epoch else last


def next_size(steps: int, seconds: float) -> int:
    """How many steps the next dispatch takes, after one that took so many in so many seconds."""
    each = seconds / steps
    least = min(LEAST_STEPS, int(MOST_SECONDS / each))
    return max(1, min(max(least, int(PIECE_SECONDS / each)), 16 * steps, loop.MOST_STEPS))


class Stream:
    """Data from the host: a piece is a chunk."""

    def __init__(self, plan: loop.Plan, data: Any, valid: Any, hyper: Any, chunk_steps: int | None):
        self.plan, self.hyper = plan, hyper
        self.source = source.as_source(data, plan.batch_size, plan.shuffle)
        self.valid = None if valid is None else source.as_source(valid, plan.valid_batch_size, False)
        self.n, self.kinds = self.source.n, self.source.kinds
        self.per_epoch = self.source.steps
        # As in memory, there are weights only where batches need them; of an iterable that is not known before.
        self.weighted = self.n is None or self.n % plan.batch_size != 0
        _check_processes(self.n)
        self.chunk_steps = chunk_steps
        self.compiled: set[Any] = set()  # programs, with the shapes of the arrays that they were compiled for
        if chunk_steps is not None:
            check_count("chunk_steps", chunk_steps)

    def check_first_batch(self, params: Params) -> None:
        """Raises what is wrong with network and data, before anything is compiled."""
        key = jax.random.key(0)
        for name, batches, size in (
            ("epoch 1", self.source, self.plan.batch_size),
            ("validation", self.valid, self.plan.valid_batch_size),
        ):
            if batches is None or isinstance(getattr(batches, "source", None), Iterator):
                continue  # looking at the first batch of an iterator would use it up
            first = next(source.chunks(batches, key, 0, 0, size, 1, self.weighted, name), None)
            if first is None:
                raise DataStreamError(f"{name}: the data source has no batches")
            check_batch(name, self.plan, params, tuple(array[0] for array in first.arrays), self.hyper)

    def compile(self, run: loop.Run) -> None:
        """Nothing: the first chunk is needed for it."""

    def pieces(
        self, run: loop.Run, position: tuple[int, int], epochs: int, pause: Callable[[int], int]
    ) -> Generator[Piece]:
        """The rest of the run: a piece for each chunk, of which the last of an epoch ends it."""
        step, key = int(run.state.step), run.state.key
        where = self.plan.recipe.placement
        for epoch in range(position[0], epochs):
            skip = position[1] if epoch == position[0] else 0
            begun = False
            chunks = self._chunks(key, epoch, skip, self.chunk_steps)
            for chunk, arrays, last in source.prefetched(chunks, lambda chunk: where.put_chunk(chunk.arrays)):
                begun, before = True, run
                seconds = self._compile(loop.advance_chunk, arrays, self.plan, before, arrays, self.hyper, chunk.steps)
                run, traces = loop.advance_chunk(self.plan, before, arrays, self.hyper, chunk.steps)
                losses, watched = loop.of_steps(self.plan, traces, step, step + chunk.steps)
                rows, position_after = [], (epoch, chunk.first + chunk.steps)
                if last:
                    run, row, more = self._end_epoch(run, epoch, epochs)
                    rows, position_after = [{"epoch": epoch + 1, "step": step + chunk.steps} | row], (epoch + 1, 0)
                    seconds += more
                yield Piece(
                    run,
                    position=position_after,
                    losses=losses,
                    watched=watched,
                    rows=rows,
                    begin=step,
                    epoch=epoch,
                    first=chunk.first,
                    per_epoch=self.per_epoch,
                    replay=functools.partial(self._replay, before, arrays, step),
                    batches=lambda i, arrays=arrays, step=step: tuple(array[i - step] for array in arrays),
                    compile_seconds=seconds,
                )
                step += chunk.steps
                del before
            if not begun:
                after = f" after the {skip} that were trained on" if skip else ""
                hint = " left: give a list, or a function epoch -> iterable" if epoch else ""
                raise DataStreamError(f"epoch {epoch + 1}: the data source has no batches{after}{hint}")

    def _end_epoch(self, run: loop.Run, epoch: int, epochs: int) -> tuple[loop.Run, dict[str, float], float]:
        """The run after the epoch's end, the epoch's row, and how long compilation took."""
        names, values, seconds = loop.value_names(self.plan), {}, 0.0
        validated = self.valid is not None and ((epoch + 1) % self.plan.valid_every == 0 or epoch + 1 == epochs)
        if validated and self.valid is not None:
            values, seconds = evaluate_source(
                self.plan,
                run.state.params,
                self.valid,
                self.hyper,
                f"validation after epoch {epoch + 1}",
                self._compile,
            )
        elif self.valid is not None:
            values = {name: jnp.full((), jnp.nan, jnp.result_type(float)) for name in names}
        seconds += self._compile(loop.end_epoch, (), self.plan, run, values, validated)
        run, row = loop.end_epoch(self.plan, run, values, validated)
        return run, {name: float(row[name]) for name in loop.row_names(self.plan, self.valid is not None)}, seconds

    def _compile(self, program: Any, like: tuple[Any, ...], *args: Any) -> float:
        """Compiles a jitted function, where that was not done for arrays `like` these; how many seconds it took."""
        known = (program, *((array.shape, array.dtype) for array in like))
        if known in self.compiled:
            return 0.0
        began = time.perf_counter()
        program.lower(*args).compile()
        self.compiled.add(known)
        return time.perf_counter() - began

    def _replay(self, before: loop.Run, arrays: Any, begin: int, to: int) -> loop.Run:
        return loop.advance_chunk(self.plan, before, arrays, self.hyper, to - begin)[0]

    def _chunks(self, key: Key, epoch: int, skip: int, steps: int | None) -> Iterator[source.Chunk]:
        return source.chunks(self.source, key, epoch, skip, self.plan.batch_size, steps, self.weighted)


def _check_processes(n: int | None) -> None:
    """Raises where processes that train together have different numbers of examples: some would wait for ever."""
    if jax.process_count() > 1:
        everyones = multihost_utils.process_allgather(np.array([-1 if n is None else n])).ravel().tolist()
        if len(set(everyones)) > 1:
            raise ValueError(f"each process gives as many examples as the others, got {everyones}")


def check_batch(name: str, plan: loop.Plan, params: Params, batch: Any, hyper: Any) -> None:
    """Raises what is wrong with the first batch of some data and the network, in the words of `funcnn.validate`."""
    recipe = plan.recipe
    x, y, *_ = one_step.prepared(recipe, batch)  # their weights are looked at over all data: some batch may have none
    try:
        validate(one_step.made(recipe.objective, hyper), params, (x, y))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def check_arrays(name: str, data: Any) -> None:
    """Raises unless `data` are arrays of numbers with one row for each example, and weights that can be."""
    if not source.is_memory(data):
        raise TypeError(f"{name} is (x, y) or (x, y, weight) of arrays, got {type(data).__name__}")
    check_rows(name, data)
    if len(data) == 3:
        check_weight(name, data[2])


def evaluate_source(
    plan: loop.Plan,
    params: Params,
    data: source.Source,
    hyper: Any,
    name: str,
    compiled: Callable[..., float] = lambda *_: 0.0,
) -> tuple[dict[str, jax.Array], float]:
    """`loop.evaluate` of examples that come from the host, which errors call `name`; and the time of compilation.

    `compiled(program, arrays, *arguments)` compiles, and says how long it took.
    """
    total: loop.Sums | None = None
    seconds = 0.0
    size, where = plan.valid_batch_size, plan.recipe.placement
    key = jax.random.key(0)  # nothing is shuffled here
    chunks = source.chunks(data, key, 0, 0, size, 1, True, name)
    for _, arrays, _ in source.prefetched(chunks, lambda chunk: where.put_chunk(chunk.arrays)):
        batch = tuple(array[0] for array in arrays)
        seconds += compiled(loop.evaluate_chunk, batch, plan, params, batch, hyper)
        sums = loop.evaluate_chunk(plan, params, batch, hyper)
        total = sums if total is None else loop.add(total, sums)
    if total is None:
        raise DataStreamError(f"{name}: there are no batches left; give a list, or a function epoch -> iterable")
    return loop.finish(plan, params, total, hyper), seconds
