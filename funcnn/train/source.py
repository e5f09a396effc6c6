"""Batches that come from the host: arrays on disk, a directory of shards, any iterable. Put together on a thread."""

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from funcnn.data.dataset import Dataset
from funcnn.data.shards import NAMES, Rows, Shards
from funcnn.train.arguments import check_rows
from funcnn.train.errors import DataStreamError
from funcnn.train.loop import examples_in_order, steps_per_epoch

AHEAD = 2  # chunks that wait, ready, while one is trained on
CHUNK_BYTES, CHUNK_STEPS = 2**25, 256  # the most of a chunk, where the user does not say how many steps it has

_in_order = jax.jit(examples_in_order, static_argnums=(2, 3))


WANTED = (
    "data is (x, y) or (x, y, weight) of arrays, data.Shards(directory), an iterable of batches, or a function "
    "epoch -> iterable of batches; a batch is (x, y) or (x, y, weight) of arrays too"
)


class Chunk(NamedTuple):
    """Batches for several steps in one dispatch."""

    arrays: tuple[np.ndarray, ...]  # (steps, batch_size, ...) each; what only fills it up has weight 0
    steps: int  # how many of them are real
    first: int  # the number of the first in its epoch


class Indexed:
    """Arrays whose rows are read from disk or memory as they are needed, in the order of `loop.order`."""

    def __init__(self, arrays: Sequence[Any], batch_size: int, shuffle: bool):
        check_rows("data that are streamed", arrays)
        self.arrays, self.batch_size, self.shuffle = tuple(arrays), batch_size, shuffle
        self.n, self.kinds = len(arrays[0]), kinds(arrays)
        self.steps = steps_per_epoch(self.n, batch_size)

    def batches(self, key: jax.Array, epoch: int, skip: int) -> Iterator[tuple[np.ndarray, ...]]:
        """The batches of an epoch, from number `skip`; the last may be short.

        The order is drawn here, under the settings of the thread that asks: a random number depends on some of them.
        """
        order = np.asarray(_in_order(key, epoch, self.n, self.shuffle))
        begins = range(skip * self.batch_size, self.n, self.batch_size)
        return (self._rows(order[begin : begin + self.batch_size]) for begin in begins)

    def _rows(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.asarray(array[rows]) for array in self.arrays)


class Streamed:
    """An iterable of batches, gone through once in every epoch; or a function of the epoch's number that gives one."""

    def __init__(self, batches: Iterable[Any] | Callable[[int], Iterable[Any]]):
        self.source, self.n, self.kinds = batches, None, None
        self.steps: int | None = len(batches) if isinstance(batches, Sequence) else None

    def batches(self, key: jax.Array, epoch: int, skip: int) -> Iterator[Any]:
        """The batches of an epoch, from number `skip`."""
        batches = self.source(epoch) if callable(self.source) else self.source
        for number, batch in enumerate(batches):
            if number >= skip:
                yield batch


Source = Indexed | Streamed


def is_memory(data: Any) -> bool:
    """Whether `data` is (x, y) or (x, y, weight) of arrays that are to be put on the device whole."""
    return _are_arrays(data) and not any(isinstance(array, np.memmap | Rows) for array in data)


def as_source(data: Any, batch_size: int, shuffle: bool) -> Source:
    """What `fit` was given as a source of batches."""
    if isinstance(data, Shards):
        return Indexed(data.arrays, batch_size, shuffle)
    if _are_arrays(data):
        return Indexed(data, batch_size, shuffle)
    if isinstance(data, Dataset):
        raise TypeError(
            "data is a Dataset: give its arrays, (x, y), (x_test, y_test) = data.arrays(), or "
            "(data.x_train, data.y_train) with prepare=Pixels(data.x_max)"
        )
    if isinstance(data, str | bytes | os.PathLike | Mapping) or hasattr(data, "dtype") or _is_no_list_of_batches(data):
        raise TypeError(f"{WANTED}; got {_kind(data)}")
    if callable(data) or isinstance(data, Iterable):
        return Streamed(cast(Any, data))
    raise TypeError(f"{WANTED}; got {_kind(data)}")


def kinds(arrays: Sequence[Any]) -> list[str]:
    """Dtype and shape of an example in each array."""
    return [f"{array.dtype}{list(array.shape[1:])}" for array in arrays]


def chunks(
    source: Source,
    key: jax.Array,
    epoch: int,
    skip: int,
    batch_size: int,
    steps: int | None,
    always_weight: bool,
    name: str | None = None,
) -> Iterator[Chunk]:
    """The batches of an epoch, `steps` of them at a time (None: as their size allows), filled up to one shape.

    `name` is what errors call the data, beside the number of the batch; the epoch unless given.

    Raises:
        DataStreamError: the source raised, or gave a batch that is no batch or has another shape or dtype than the
            first; it names the epoch and the batch.
    """
    batches = source.batches(key, epoch, skip)
    again = isinstance(source, Streamed)  # a source of one's own may fill the same arrays again with its next batch
    name = f"epoch {epoch + 1}" if name is None else name
    return _chunks(batches, again, skip, batch_size, steps, source.steps, always_weight, name)


def _chunks(
    batches: Iterator[Any],
    copy: bool,
    skip: int,
    batch_size: int,
    steps: int | None,
    most: int | None,
    always_weight: bool,
    name: str,
) -> Iterator[Chunk]:
    held: list[tuple[np.ndarray, ...]] = []
    like: tuple[np.ndarray, ...] | None = None
    number, begun = skip, False
    if steps is not None and most is not None:
        steps = min(steps, most)
    while True:
        where = f"{name}, batch {number + 1}"
        try:
            batch = next(batches)
        except StopIteration:
            break
        except Exception as error:
            raise DataStreamError(f"{where}: the data source raised {type(error).__name__}: {error}") from error
        arrays = _checked(batch, like, batch_size, where)
        like = like or arrays
        filled = _filled(arrays, batch_size, always_weight)
        held.append(tuple(map(np.copy, filled)) if copy and filled[0] is arrays[0] else filled)
        if steps is None:
            steps = max(1, min(CHUNK_BYTES // sum(array.nbytes for array in held[0]), CHUNK_STEPS, most or CHUNK_STEPS))
        number += 1
        if len(held) == steps:
            yield _stacked(held, steps, number - len(held))
            held, begun = [], True
    if held:  # filled up to the shape of those before, where there are any
        yield _stacked(held, (steps or 1) if begun else len(held), number - len(held))


def prefetched(chunks: Iterator[Chunk], put: Callable[[Chunk], Any]) -> Iterator[tuple[Chunk, Any, bool]]:
    """The chunks, what `put` makes of each, and whether it is the last; `AHEAD` of them are made ready on a thread."""
    ready: queue.Queue[Any] = queue.Queue(AHEAD)
    x64 = jnp.result_type(float) == jnp.float64  # in the user's thread; each thread has settings of its own
    stop = threading.Event()

    def offer(item: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        held: tuple[Chunk, Any] | None = None  # until it is known whether another one follows
        try:
            with jax.enable_x64(x64):
                for chunk in chunks:
                    if held is not None and not offer((*held, False)):
                        return
                    held = chunk, put(chunk)
            if held is not None:
                offer((*held, True))
            offer(None)
        except BaseException as error:
            if held is not None:  # what came before the error is sound
                offer((*held, False))
            offer(error)

    thread = threading.Thread(target=work, name="funcnn-prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:  # also where the consumer stops early
        stop.set()
        thread.join(timeout=1)  # a source that never answers is not waited for: the thread ends with the process


def _are_arrays(data: Any) -> bool:
    return (
        isinstance(data, tuple | list)
        and len(data) in (2, 3)
        and all(hasattr(array, "shape") and hasattr(array, "dtype") for array in data)
    )


def _is_no_list_of_batches(data: Any) -> bool:
    """Whether this is a list or tuple whose first item is no batch, such as (x.tolist(), y.tolist())."""
    if not isinstance(data, tuple | list) or not data:
        return False
    return not (isinstance(data[0], tuple | list) and len(data[0]) in (2, 3))


def _kind(data: Any) -> str:
    """What was given, in a few words."""
    if isinstance(data, tuple | list):
        return f"{type(data).__name__} of ({', '.join(_kind(item) for item in data[:3])}{', ...' * (len(data) > 3)})"
    if hasattr(data, "dtype") and hasattr(data, "shape"):
        return f"one array {data.dtype}{list(data.shape)}"
    return type(data).__name__


def _checked(batch: Any, like: tuple[np.ndarray, ...] | None, batch_size: int, where: str) -> tuple[np.ndarray, ...]:
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        got = type(batch).__name__ + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
        raise DataStreamError(
            f"{where}: a batch is (x, y) or (x, y, weight), got {got}; "
            "data that are one (x, y) themselves are two arrays"
        )
    try:
        arrays = tuple(np.asarray(array) for array in batch)
    except ValueError as error:
        raise DataStreamError(f"{where}: not arrays: {error}") from error
    for array in arrays:
        if not array.ndim or array.shape[0] != arrays[0].shape[0] or not array.shape[0]:
            shapes = ", ".join(f"{n} {a.shape}" for n, a in zip(NAMES, arrays, strict=False))
            raise DataStreamError(f"{where}: x, y and weight have one row per example, got {shapes}")
        if array.shape[0] > batch_size:
            raise DataStreamError(f"{where}: {array.shape[0]} examples, where batch_size is {batch_size}")
        if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
            raise DataStreamError(f"{where}: arrays of numbers are needed, got dtype {array.dtype}")
    if len(arrays) == 3 and not (arrays[2] >= 0).all():
        raise DataStreamError(f"{where}: a weight is negative or no number: {arrays[2].min()}")
    if like is not None:
        for name, array, first in zip(NAMES, arrays, like, strict=False):
            if array.shape[1:] != first.shape[1:] or array.dtype != first.dtype or len(arrays) != len(like):
                raise DataStreamError(
                    f"{where}: {name} is {array.dtype}{list(array.shape)} of {len(arrays)} arrays, where the epoch "
                    f"began with {first.dtype}{list(first.shape)} of {len(like)}"
                )
    return arrays


def _filled(arrays: tuple[np.ndarray, ...], batch_size: int, always_weight: bool) -> tuple[np.ndarray, ...]:
    """The batch with rows of weight 0 up to `batch_size`; with weights also where it has none and they are wanted."""
    n = len(arrays[0])
    if len(arrays) == 2 and (always_weight or n < batch_size):
        arrays = (*arrays, np.ones(n, jnp.result_type(float)))
    if n == batch_size:
        return arrays
    # The first example again, and not zeros: its loss is finite, so that 0 times it is 0.
    rows = np.concatenate([np.arange(n), np.zeros(batch_size - n, int)])
    filled = [array[rows] for array in arrays]
    filled[2][n:] = 0
    return tuple(filled)


def _stacked(held: list[tuple[np.ndarray, ...]], steps: int, first: int) -> Chunk:
    arrays = []
    for parts in zip(*held, strict=True):
        out = np.empty((steps, *parts[0].shape), parts[0].dtype)
        np.stack(parts, out=out[: len(parts)])
        out[len(parts) :] = parts[0]
        arrays.append(out)
    return Chunk(tuple(arrays), len(held), first)
