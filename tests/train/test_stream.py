"""Data from the host: the numbers of data on the device, in the same order; and failures by name."""

import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
import pytest

import funcnn as fnn
from funcnn.train import source
from funcnn.train.progress import Silence
from tests.train.problems import BATCH, OBJECTIVE, N, assert_same, assert_same_history, examples, fit


@pytest.fixture(scope="module")
def in_memory() -> Any:
    return fit(), fit(shuffle=False)


def on_disk(folder: pathlib.Path, arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    maps = []
    for i, array in enumerate(arrays):
        np.save(folder / f"{i}.npy", array)
        maps.append(np.load(folder / f"{i}.npy", mmap_mode="r"))
    return tuple(maps)


@pytest.mark.parametrize("chunk_steps", [1, 2, 100])
@pytest.mark.parametrize("kind", ["memmap", "shards", "arrays"])
def test_arrays_give_the_numbers_of_memory(kind: str, chunk_steps: int, in_memory: Any, tmp_path: pathlib.Path):
    """To the last bit: the order is the same, and so is the program of a step."""
    data: Any = examples()
    if kind == "memmap":
        data = on_disk(tmp_path, data)
    elif kind == "shards":
        fnn.data.write_shards(tmp_path, *data, rows=5)
        data = fnn.data.Shards(tmp_path)
    for shuffle, (state, history) in zip((True, False), in_memory, strict=True):
        got, seen = fit(data, shuffle=shuffle, chunk_steps=chunk_steps, stream=kind == "arrays")
        assert_same(got, state)
        assert_same_history(seen, history)


def test_the_time_of_compilation_is_told_apart():
    """Nine steps of this network, and validations of it, take far less time than compiling them."""
    own = OBJECTIVE.replace(penalty=fnn.penalties.l2(2e-3))  # of this test alone, so that it is compiled here
    _, history = fit(objective=own, stream=True)
    assert 0 < history["seconds"][-1] < history.compile_seconds


def test_float64_stays_float64_on_the_way():
    """Chunks are put together on a thread, and x64 is switched on for one thread only."""
    with jax.enable_x64(True):
        (x, y), (x_valid, y_valid) = examples(), examples(10, seed=1)
        data, valid = (x.astype(float) + 1e-9, y), (x_valid.astype(float) + 1e-9, y_valid)
        whole, history = fit(data, valid=valid, epochs=2)
        streamed, seen = fit(data, valid=valid, epochs=2, stream=True)
    assert_same(streamed, whole)
    np.testing.assert_allclose(seen["valid loss"], history["valid loss"], rtol=1e-12)


def test_a_generator_is_one_epoch_in_few_dispatches(in_memory: Any):
    batches = batches_of([8, 8, 6])
    pieces = []

    class Told(Silence):
        def update(self, step: int, epoch: int, row: dict[str, float], rate: float) -> None:
            pieces.append(step)

    state, _ = fit((batch for batch in batches), epochs=1, progress=Told())
    assert_same(state.params, fit(batches, epochs=1)[0].params)
    assert pieces == [3], "all steps in one"


def batches_of(sizes: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    x, y = examples()
    return [(x[e - s : e], y[e - s : e]) for s, e in zip(sizes, np.cumsum(sizes), strict=True)]


@pytest.mark.parametrize("kind", ["list", "function", "iterable"])
def test_batches_give_the_numbers_of_memory(kind: str, in_memory: Any):
    batches = batches_of([8, 8, 6])

    class Again:
        def __iter__(self) -> Iterator[Any]:
            return iter(batches)

    data = {"list": batches, "function": lambda epoch: iter(batches), "iterable": Again()}[kind]
    state, history = in_memory[1]
    got, seen = fit(data, chunk_steps=2)
    assert_same(got.params, state.params)
    assert_same_history(seen, history)


def test_validation_may_stream_too(in_memory: Any):
    x, y = examples(10, seed=1)
    _, history = fit(batches_of([8, 8, 6]), valid=[(x[:7], y[:7]), (x[7:], y[7:])], valid_batch_size=7)
    np.testing.assert_allclose(history["valid loss"], in_memory[1][1]["valid loss"], rtol=1e-5)


def test_a_function_is_told_the_epoch():
    told = []

    def batches(epoch: int) -> Any:
        told.append(epoch)
        return batches_of([8, 8])

    fit(batches, epochs=3)
    assert told == [0, 0, 1, 2], "the first time to look at a batch before training"


def test_short_batches_anywhere_count_by_example():
    net = fnn.Serial(fnn.Dense(8), fnn.Tanh(), fnn.Dense(3))
    objective, params = OBJECTIVE.replace(net=net), net.init(jax.random.key(1), (5,))
    still: dict[str, Any] = {"objective": objective, "params": params, "optimizer": optax.sgd(0.0)}
    _, history = fit(batches_of([3, 8, 5, 6]), epochs=1, **still)
    assert history["step"][-1] == 4
    np.testing.assert_allclose(history["loss"][0], objective(params, examples()), rtol=1e-5)


def failing(epoch: int) -> Iterator[Any]:
    for number, batch in enumerate(batches_of([8, 8, 6])):
        if (epoch, number) == (1, 2):
            raise OSError("the disk is gone")
        yield batch


def other(change: Any) -> Any:
    def batches(epoch: int) -> Iterator[Any]:
        for number, batch in enumerate(batches_of([8, 8, 6])):
            yield change(*batch) if (epoch, number) == (1, 1) else batch

    return batches


FAILURES: dict[str, tuple[Any, str]] = {
    "raises": (failing, "epoch 2, batch 3: the data source raised OSError: the disk is gone"),
    "shape": (other(lambda x, y: (x[:, :4], y)), r"epoch 2, batch 2: x is float32\[8, 4\].*began with float32\[8, 5\]"),
    "dtype": (other(lambda x, y: (x.astype("float64"), y)), r"epoch 2, batch 2: x is float64\[8, 5\]"),
    "rows": (other(lambda x, y: (x, y[:3])), r"epoch 2, batch 2: .*one row per example, got x \(8, 5\), y \(3,\)"),
    "too many": (other(lambda x, y: (np.repeat(x, 2, 0), np.repeat(y, 2))), "16 examples, where batch_size is 8"),
    "no batch": (other(lambda x, y: x), r"a batch is \(x, y\) or \(x, y, weight\), got ndarray"),
    "empty": (lambda epoch: [] if epoch else batches_of([8]), "epoch 2: the data source has no batches left"),
    "used up": (iter(batches_of([8, 8])), "epoch 2: the data source has no batches left: give a list"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_a_failing_source_is_named_and_nothing_is_lost(name: str):
    data, message = FAILURES[name]
    with pytest.raises(fnn.train.DataStreamError, match=message) as caught:
        fit(data, chunk_steps=1)
    assert caught.value.state.step >= 1, "what was trained before is there"
    assert caught.value.history["epoch"].tolist() == [1]
    assert not [t for t in threading.enumerate() if t.name == "funcnn-prefetch"], "the thread has ended"


def test_a_source_may_fill_the_same_arrays_again(in_memory: Any):
    x, y = examples()

    def batches(epoch: int) -> Iterator[Any]:
        held = np.empty((8, 5), np.float32), np.empty(8, np.int32)
        for begin in (0, 8):
            for array, data in zip(held, (x, y), strict=True):
                array[:] = data[begin : begin + 8]
            yield held
        yield x[16:], y[16:]

    assert_same(fit(batches, chunk_steps=3)[0], in_memory[1][0])


@pytest.mark.parametrize("data", ["arrays", "batches"])
def test_a_chunk_is_no_larger_than_an_epoch(data: str, monkeypatch: pytest.MonkeyPatch):
    shapes = set()
    stacked = source._stacked
    monkeypatch.setattr(source, "_stacked", lambda held, steps, first: shapes.add(steps) or stacked(held, steps, first))
    fit(
        examples() if data == "arrays" else iter(batches_of([8, 8, 6])),
        epochs=1,
        stream=True,
        chunk_steps=10**9,
        valid=None,
    )
    assert max(shapes) == 3


def test_arrays_of_a_stream_are_checked_too():
    x, y = examples()
    with pytest.raises(ValueError, match=r"one row per example.*\(22, 5\), \(10,\)"):
        fit((x, y[:10]), stream=True)
    with pytest.raises(fnn.train.DataStreamError, match="validation, batch 1: 10 examples, where batch_size is 8"):
        fit(batches_of([8]), valid=[examples(10)])


def test_the_thread_ends_with_a_run_that_failed():
    x, y = examples()
    y[3] = 9
    with pytest.raises(fnn.train.NonFiniteError) as caught:
        fit([(x[8:16], y[8:16]), (x[:8], y[:8]), (x[8:16], y[8:16])] * 20, chunk_steps=1)
    assert caught.value.step == 1
    assert not [t for t in threading.enumerate() if t.name == "funcnn-prefetch"]


def test_shards_are_indexed_like_arrays(tmp_path: pathlib.Path):
    x, y = examples()
    fnn.data.write_shards(tmp_path, x, y, rows=5)
    rows = fnn.data.Shards(tmp_path).arrays[0]
    for index in ([-1, 3], np.arange(N) > 15, slice(3, 20, 4), 7, -2, np.zeros(0, int)):
        np.testing.assert_array_equal(rows[index], x[index], strict=True)
    assert_same(fit(fnn.data.Shards(tmp_path).arrays)[0], fit()[0])


def test_a_gap_in_the_shards_is_named(tmp_path: pathlib.Path):
    fnn.data.write_shards(tmp_path, *examples(), rows=5)
    np.save(tmp_path / "y-00001.npy", np.zeros(4, np.int32))
    with pytest.raises(fnn.data.DataError, match=r"x-00001.npy has 5 rows and y-00001.npy has 4"):
        fnn.data.Shards(tmp_path)
    for name in "xy":
        (tmp_path / f"{name}-00001.npy").unlink()
    with pytest.raises(fnn.data.MissingDataError, match=r"of the shards 0 to 4, \[1\] are missing"):
        fnn.data.Shards(tmp_path)


def test_a_truncated_shard_is_named(tmp_path: pathlib.Path):
    fnn.data.write_shards(tmp_path, *examples(), rows=5)
    (tmp_path / "x-00002.npy").write_bytes((tmp_path / "x-00002.npy").read_bytes()[:-8])
    with pytest.raises(fnn.data.DataError, match=r"x-00002.npy: not an array as numpy.save writes it, or cut short"):
        fnn.data.Shards(tmp_path)


def test_weights_of_a_stream(in_memory: Any):
    x, y = examples()
    weight = np.linspace(0.5, 2, N).astype(np.float32)
    whole, history = fit((x, y, weight))
    got, seen = fit((x, y, weight), stream=True, chunk_steps=2)
    assert_same(got, whole)
    assert_same_history(seen, history)
    assert not np.array_equal(seen["loss"], in_memory[0][1]["loss"])
    assert BATCH < N
