"""Batches that come from the host: arrays on disk, a directory of shards, any iterable. Put together on a thread."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from funcnn.data.dataset import Dataset
from funcnn.data.shards import Shards
from funcnn.train.errors import DataStreamError
from funcnn.train.loop import examples_in_order, steps_per_epoch

AHEAD = 2  # chunks that wait, ready, while one is trained on
CHUNK_BYTES, CHUNK_STEPS = 2**25, 256  # the most of a chunk, where the user does not say how many steps it has

_in_order = jax.jit(examples_in_order, static_argnums=(2, 3))


class Chunk(NamedTuple):
    """Batches for several steps in one dispatch."""

    arrays: tuple[np.ndarray, ...]  # (steps, batch_size, ...) each; what only fills it up has weight 0
    steps: int  # how many of them are real
    first: int  # the number of the first in its epoch


class Indexed:
    """Arrays whose rows are read from disk or memory as they are needed, in the order of `loop.order`."""

    def __init__(self, arrays: Sequence[Any], batch_size: int, shuffle: bool):
        self.arrays, self.batch_size, self.shuffle = tuple(arrays), batch_size, shuffle
        self.n = len(arrays[0])
        self.steps = steps_per_epoch(self.n, batch_size)

    def batches(self, key: jax.Array, epoch: int, skip: int) -> Iterator[tuple[np.ndarray, ...]]:
        """The batches of an epoch, from number `skip`; the last may be short."""
        order = np.asarray(_in_order(key, epoch, self.n, self.shuffle))
        for begin in range(skip * self.batch_size, self.n, self.batch_size):
            rows = order[begin : begin + self.batch_size]
            yield tuple(np.asarray(array[rows]) for array in self.arrays)


class Streamed:
    """An iterable of batches, gone through once in every epoch; or a function of the epoch's number that gives one."""

    def __init__(self, batches: Iterable[Any] | Callable[[int], Iterable[Any]]):
        self.source, self.n = batches, None
        self.steps: int | None = len(batches) if isinstance(batches, Sequence) else None

    def batches(self, key: jax.Array, epoch: int, skip: int) -> Iterator[tuple[np.ndarray, ...]]:
        """The batches of an epoch, from number `skip`."""
        batches = self.source(epoch) if callable(self.source) else self.source
        for number, batch in enumerate(batches):
            if number >= skip:
                yield batch


Source = Indexed | Streamed


def is_memory(data: Any) -> bool:
    """Whether `data` is (x, y) or (x, y, weight) of arrays that are to be put on the device whole."""
    return _are_arrays(data) and not any(isinstance(array, np.memmap | Shards) for array in data)


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
    if callable(data) or isinstance(data, Iterable):
        return Streamed(cast(Any, data))
    raise TypeError(
        "data is (x, y) or (x, y, weight) of arrays, data.Shards(directory), an iterable of batches, or a function "
        f"epoch -> iterable of batches; got {type(data).__name__}"
    )


def chunks(
    source: Source, key: jax.Array, epoch: int, skip: int, batch_size: int, steps: int | None, always_weight: bool
) -> Iterator[Chunk]:
    """The batches of an epoch, `steps` of them at a time (None: as their size allows), filled up to one shape.

    Raises:
        DataStreamError: the source raised, or gave a batch that is no batch or has another shape or dtype than the
            first; it names the epoch and the batch.
    """
    held: list[tuple[np.ndarray, ...]] = []
    number, like = skip, None
    iterator = iter(_guarded(source, key, epoch, skip))
    for batch in iterator:
        arrays = _checked(batch, like, batch_size, f"epoch {epoch + 1}, batch {number + 1}")
        like = like or arrays
        held.append(_filled(arrays, batch_size, always_weight))
        if steps is None:
            most = min(CHUNK_BYTES // sum(array.nbytes for array in held[0]), CHUNK_STEPS)
            steps = max(1, min(most, source.steps or most))
        number += 1
        if len(held) == steps:
            yield _stacked(held, steps, number - len(held))
            held = []
    if held:
        yield _stacked(held, steps or 1, number - len(held))


def prefetched(make: Callable[[], Iterator[Chunk]], put: Callable[[Chunk], Any]) -> Iterator[tuple[Chunk, Any]]:
    """The chunks of `make()` and what `put` makes of each, both done on a thread that keeps `AHEAD` of them ready."""
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
        try:
            with jax.enable_x64(x64):
                for chunk in make():
                    if not offer((chunk, put(chunk))):
                        return
            offer(None)
        except BaseException as error:
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
        thread.join()


def _are_arrays(data: Any) -> bool:
    return (
        isinstance(data, tuple | list)
        and len(data) in (2, 3)
        and all(hasattr(array, "shape") and hasattr(array, "dtype") for array in data)
    )


def _guarded(source: Source, key: jax.Array, epoch: int, skip: int) -> Iterator[Any]:
    batches = source.batches(key, epoch, skip)
    number = skip
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            raise DataStreamError(
                f"epoch {epoch + 1}, batch {number + 1}: the data source raised {type(error).__name__}: {error}"
            ) from error
        yield batch
        number += 1


def _checked(batch: Any, like: tuple[np.ndarray, ...] | None, batch_size: int, where: str) -> tuple[np.ndarray, ...]:
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        got = type(batch).__name__ + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
        raise DataStreamError(
            f"{where}: a batch is (x, y) or (x, y, weight), got {got}; "
            "data that are one (x, y) themselves are two arrays"
        )
    arrays = tuple(np.asarray(array) for array in batch)
    names = ("x", "y", "weight")
    for array in arrays:
        if not array.ndim or array.shape[0] != arrays[0].shape[0] or not array.shape[0]:
            shapes = ", ".join(f"{n} {a.shape}" for n, a in zip(names, arrays, strict=False))
            raise DataStreamError(f"{where}: x, y and weight have one row per example, got {shapes}")
        if array.shape[0] > batch_size:
            raise DataStreamError(f"{where}: {array.shape[0]} examples, where batch_size is {batch_size}")
    if like is not None:
        for name, array, first in zip(names, arrays, like, strict=False):
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
