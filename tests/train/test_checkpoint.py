"""A run that was interrupted goes on to the last bit; what is of another run, or damaged, is found out."""

import contextlib
import gc
import json
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcnn as fnn
from funcnn.train import checkpoint_file
from funcnn.train.checkpoint_file import checksums
from tests.train.problems import OBJECTIVE, N, assert_same, assert_same_history, examples, fit

pytest.importorskip("orbax.checkpoint")


class Interrupted(Exception):
    """What stands for a power cut, where no signal is needed."""


class StopAt:
    """Interrupts a run from its progress, at or after a step."""

    def __init__(self, step: int):
        self.step = step

    def begin(self, steps: Any, epochs: int, done: int) -> None: ...
    def end(self) -> None: ...
    def update(self, step: int, epoch: int, row: dict[str, float], rate: float) -> None:
        if step >= self.step:
            raise Interrupted


def batches(epoch: int) -> Any:
    """The examples in another order in each epoch, in batches of 8, 8 and 6."""
    x, y = examples()
    return [(x[rows], y[rows]) for rows in np.split(np.random.default_rng(epoch).permutation(N), [8, 16])]


STOPPING = fnn.train.EarlyStopping(4, "valid loss")
KINDS: dict[str, dict[str, Any]] = {
    "memory": {},
    "stream": {"stream": True, "chunk_steps": 2},
    "batches": {"data": batches, "chunk_steps": 2},
    "early stopping": {"early_stopping": STOPPING, "optimizer": optax.sgd(0.3)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_gives_the_run_that_was_not_interrupted(kind: str, tmp_path: pathlib.Path):
    options = {"epochs": 8} | KINDS[kind]
    whole, history = fit(**options)
    checkpoints = fnn.train.Checkpoints(tmp_path, every_steps=5, keep=2)
    for step in (2, 7, 11, 16):
        with contextlib.suppress(Interrupted):
            fit(**options, checkpoints=checkpoints, progress=StopAt(step))
    state, seen = fit(**options, checkpoints=checkpoints)
    assert_same(state, whole)
    assert_same_history(seen, history)
    assert seen.best_epoch == history.best_epoch
    again, same = fit(**options, checkpoints=checkpoints)  # of a run that is over: nothing is left to do
    assert_same(again, whole)
    assert_same_history(same, history)


def test_more_epochs_go_on(tmp_path: pathlib.Path):
    fit(epochs=2, checkpoints=fnn.train.Checkpoints(tmp_path))
    state, _ = fit(epochs=4, checkpoints=fnn.train.Checkpoints(tmp_path))
    assert_same(state, fit(epochs=4)[0])


def steps_in(folder: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def test_the_last_k_and_the_best_are_kept(tmp_path: pathlib.Path):
    rising = optax.sgd(
        lambda count: jnp.where(jnp.asarray(count) < 15, -0.1, 0.1)
    )  # uphill, so that the best of five is the first
    _, history = fit(epochs=5, optimizer=rising, checkpoints=fnn.train.Checkpoints(tmp_path / "a", keep=2))
    assert history["valid loss"].argmin() == 0
    assert steps_in(tmp_path / "a") == [3, 12, 15]
    most = fnn.train.Checkpoints(tmp_path / "b", keep=2, best="valid loss", maximize=True)
    falling = optax.sgd(0.1)
    _, history = fit(epochs=5, optimizer=falling, checkpoints=most)
    assert history["valid loss"].argmax() == 0 and steps_in(tmp_path / "b") == [3, 12, 15]
    fit(epochs=5, checkpoints=fnn.train.Checkpoints(tmp_path / "c", keep=2, best=None, every_epochs=2))
    assert steps_in(tmp_path / "c") == [12, 15], "and the last one"
    for name, options in {"d": {}, "e": {"stream": True, "chunk_steps": 1}}.items():
        often = fnn.train.Checkpoints(tmp_path / name, every_epochs=None, every_steps=4, keep=9)
        fit(epochs=3, checkpoints=often, **options)
        assert steps_in(tmp_path / name) == [4, 8, 9]


def test_every_difference_to_another_run_is_named(tmp_path: pathlib.Path):
    checkpoints = fnn.train.Checkpoints(tmp_path)
    fit(checkpoints=checkpoints, epochs=1)
    net = fnn.Serial(fnn.Dense(9), fnn.Relu(), fnn.Dense(3, bias=False))
    with pytest.raises(fnn.train.CheckpointError) as caught:
        fit(
            examples(N + 1),
            objective=OBJECTIVE.replace(net=net),
            params=net.init(jax.random.key(0), (5,)),
            batch_size=4,
            key=jax.random.key(9),
            checkpoints=checkpoints,
        )
    text = str(caught.value)
    for line in (
        r"network is .*Dense.*8.* there and .*Dense.*9.* here",
        r"batch_size is 8 there and 4 here",
        r"examples is 22 there and 23 here",
        r"key is \[0, 5\] there and \[0, 9\] here",
        r"run.state.params\[0\]\['w'\] is float32\[5, 8\] there and float32\[5, 9\] here",
        r"run.state.params\[3\]\['b'\] \(float32\[3\]\) is there and not here",
    ):
        assert re.search(line, text), (line, text)


DAMAGES = ["a bit", "cut short", "emptied", "gone", "meta"]


@pytest.fixture
def reads_that_fail() -> Iterator[None]:
    """Keeps what Orbax leaves of a restore that failed inside the test: another one would be blamed for it.

    Where one array cannot be read, the reads of the others end after Orbax's event loop does, or never begin. They say
    so by the warnings that the test ignores (a fixture cannot), when they end or when they are collected.
    """
    yield
    gc.collect()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("reads_that_fail")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_found_and_the_one_before_is_used(
    damage: str, tmp_path: pathlib.Path, rng: np.random.Generator
):
    whole, _ = fit(epochs=4)
    checkpoints = fnn.train.Checkpoints(tmp_path, best=None)
    fit(epochs=3, checkpoints=checkpoints)
    newest = tmp_path / "9"
    if damage == "meta":
        target = next(newest.glob("meta/metadata"))
        target.write_text(target.read_text().replace('"position": [3, 0]', '"position": [2, 0]'))
    else:
        for target in newest.glob("arrays/**/d/*"):  # more files than are read: all of them
            content = bytearray(target.read_bytes())
            content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
            kept = {"a bit": len(content), "cut short": len(content) // 2, "emptied": 0, "gone": 0}[damage]
            target.write_bytes(content[:kept])
            if damage == "gone":
                target.unlink()
    with pytest.warns(UserWarning, match="checkpoint of step 9 .* is damaged and left out"):
        state, history = fit(epochs=4, checkpoints=checkpoints)
    assert_same(state, whole)
    assert (tmp_path / "damaged-9").is_dir() and steps_in(tmp_path)[-1] == 12
    assert len(history["loss"]) == 4


def test_a_change_that_the_files_own_checks_let_through_is_found(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """As if a bit of one parameter, or of one step's loss, had changed before it was written."""
    watch = fnn.train.Watch(lambda objective, params, batch, key, train: {"b": params[0]["b"]}, every=1)
    fit(epochs=1, checkpoints=fnn.train.Checkpoints(tmp_path), watch=watch)
    read = checkpoint_file._read

    def changed(name: str) -> Any:
        def one(manager: Any, step: int, item: str, args: Any) -> Any:
            found = read(manager, step, item, args)
            if item == "arrays":
                words = np.array(found[name])
                words.reshape(-1).view(np.uint8)[-1] ^= 1
                found[name] = jnp.asarray(words) if not name.startswith("trace") else words
            return found

        return one

    for name, message in (
        ("0001", r"run.state.params\[0\]\['w'\] has another"),
        ("trace0", "losses of its steps"),
        ("trace2", "watched/b of its steps"),
    ):
        monkeypatch.setattr(checkpoint_file, "_read", changed(name))
        with pytest.raises(fnn.train.CheckpointError, match=message):
            fnn.train.load_checkpoint(tmp_path, 3)


def test_a_stream_saves_the_end_of_an_epoch_with_its_row(tmp_path: pathlib.Path):
    """Saved by steps, where the last step of an epoch is one of them; and another feed goes on from there."""
    checkpoints = fnn.train.Checkpoints(tmp_path, every_steps=3, keep=9)
    fit(epochs=3, stream=True, checkpoints=checkpoints)
    _, _, history = fnn.train.load_checkpoint(tmp_path)
    assert history["epoch"].tolist() == [1, 2, 3]
    fnn.train.load_checkpoint(tmp_path, "best")
    state, seen = fit(epochs=5, checkpoints=checkpoints)
    whole, history = fit(epochs=5)
    assert_same(state, whole)
    assert_same_history(seen, history)


def test_what_fails_after_a_piece_leaves_no_checkpoint_that_contradicts_itself(tmp_path: pathlib.Path):
    with pytest.raises(OSError, match="No space left"):
        fit(checkpoints=tmp_path, log="/dev/full")
    state, seen = fit(checkpoints=tmp_path)
    whole, history = fit()
    assert_same(state, whole)
    assert_same_history(seen, history)


def test_numbers_of_numpy_are_numbers(tmp_path: pathlib.Path):
    four: Any = np.int64(4)
    half: Any = np.float32(0.5)
    stopping = fnn.train.EarlyStopping(four, min_delta=half)
    fit(epochs=np.int64(1), batch_size=np.int64(8), early_stopping=stopping, checkpoints=tmp_path)
    assert steps_in(tmp_path) == [3]


def test_what_came_after_an_early_stop_is_not_saved(tmp_path: pathlib.Path):
    checkpoints = fnn.train.Checkpoints(tmp_path, every_epochs=None, every_steps=10**6)
    stopping = fnn.train.EarlyStopping(1, "loss", min_delta=100.0)  # after the second epoch
    best, history = fit(epochs=30, early_stopping=stopping, checkpoints=checkpoints)
    assert steps_in(tmp_path) == [6] and len(history["epoch"]) == 2
    _, params, seen = fnn.train.load_checkpoint(tmp_path)
    assert_same(params, fit(epochs=2)[0].params)
    assert_same_history(seen, history)
    again, same = fit(epochs=30, early_stopping=stopping, checkpoints=checkpoints)
    assert_same(again, best)
    assert_same_history(same, history)


def test_a_checkpoint_is_deleted_where_half_of_one_does_no_harm(tmp_path: pathlib.Path, monkeypatch):
    deleted: list[pathlib.Path] = []
    rmtree = shutil.rmtree

    def delete(path: Any, *args: Any, **options: Any) -> None:
        if pathlib.Path(path).is_dir():
            deleted.append(pathlib.Path(path))
        rmtree(path, *args, **options)

    monkeypatch.setattr(shutil, "rmtree", delete)
    checkpoints = fnn.train.Checkpoints(tmp_path, keep=1, best=None)
    whole = fit(epochs=4, checkpoints=checkpoints)
    assert deleted and {path.name for path in deleted} == {".removed"}
    assert [path.name for path in tmp_path.iterdir()] == ["12"]
    # As a process leaves it that is killed in the middle.
    (tmp_path / ".removed" / "9" / "arrays").mkdir(parents=True)
    again = fit(epochs=4, checkpoints=checkpoints)
    assert_same(again[0], whole[0])
    assert [path.name for path in tmp_path.iterdir()] == ["12"]


def test_folders_of_ones_own_are_left_alone(tmp_path: pathlib.Path):
    (tmp_path / "2024").mkdir()
    (tmp_path / "2024" / "thesis.txt").write_text("...")
    with pytest.raises(fnn.train.CheckpointError, match="2024 is no checkpoint"):
        fit(checkpoints=tmp_path)
    assert (tmp_path / "2024" / "thesis.txt").exists()
    with pytest.raises(fnn.train.CheckpointError, match=r"thesis.txt is a file: checkpoints go to a directory"):
        fit(checkpoints=tmp_path / "2024" / "thesis.txt")


def test_a_directory_without_checkpoints_and_one_of_them_are_told_apart(tmp_path: pathlib.Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(fnn.train.CheckpointError, match="no sound checkpoints here"):
        fnn.train.load_checkpoint(tmp_path / "empty")
    fit(epochs=1, checkpoints=tmp_path / "run")
    with pytest.raises(fnn.train.CheckpointError, match="is one checkpoint: give the directory of the run"):
        fnn.train.load_checkpoint(tmp_path / "run" / "3")


@pytest.mark.filterwarnings("ignore:the checkpoint of step")
def test_a_checkpoint_may_be_damaged_twice(tmp_path: pathlib.Path):
    checkpoints = fnn.train.Checkpoints(tmp_path, best=None)
    fit(epochs=2, checkpoints=checkpoints)
    for _ in range(2):
        (tmp_path / "6" / "meta" / "metadata").write_text("{")
        fit(epochs=2, checkpoints=checkpoints)
    assert {path.name for path in tmp_path.glob("damaged-*")} == {"damaged-6", "damaged-6-2"}


def test_functions_are_known_by_name_and_not_by_address(tmp_path: pathlib.Path):
    def network() -> Any:
        def twice(params: Any, x: Any) -> Any:
            return 2 * x

        return fnn.Serial(fnn.Dense(3), fnn.lift(lambda key, in_shape: (), twice))

    one, other = network(), network()
    params = one.init(jax.random.key(0), (5,))
    for net, epochs in ((one, 1), (other, 2)):
        fit(objective=OBJECTIVE.replace(net=net), params=params, epochs=epochs, checkpoints=tmp_path / "run")
    fnn.save(tmp_path / "net.safetensors", one, params)
    assert_same(fnn.load(tmp_path / "net.safetensors", net=other)[1], params)


def test_no_sound_checkpoint_is_an_error(tmp_path: pathlib.Path):
    checkpoints = fnn.train.Checkpoints(tmp_path, keep=1, best=None)
    fit(epochs=1, checkpoints=checkpoints)
    (tmp_path / "3" / "meta" / "metadata").write_text("{")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(fnn.train.CheckpointError, match="none of the checkpoints"),
    ):
        fit(epochs=1, checkpoints=checkpoints)
    with pytest.raises(fnn.train.CheckpointError, match="none of the checkpoints"):  # nor is it forgotten
        fit(epochs=1, checkpoints=checkpoints)


def test_a_run_that_is_longer_already_is_an_error(tmp_path: pathlib.Path):
    fit(epochs=3, checkpoints=tmp_path)
    with pytest.raises(fnn.train.CheckpointError, match="has 3 epochs already, and epochs=2"):
        fit(epochs=2, checkpoints=tmp_path)


def test_the_log_of_a_resumed_run_has_each_epoch_once(tmp_path: pathlib.Path):
    options: dict[str, Any] = {"epochs": 6, "log": tmp_path / "log.jsonl"}
    checkpoints = fnn.train.Checkpoints(tmp_path / "run", every_epochs=None, every_steps=7)
    with contextlib.suppress(Interrupted):
        fit(**options, checkpoints=checkpoints, progress=StopAt(8))
    shutil.rmtree(tmp_path / "run" / str(steps_in(tmp_path / "run")[-1]))  # as if the newest had not been finished
    _, history = fit(**options, checkpoints=checkpoints)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"epoch": 7, "st')  # as a run that is killed leaves it
    fit(**(options | {"epochs": 7}), checkpoints=checkpoints)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    lines = lines[:6]
    assert [line["loss"] for line in lines] == history["loss"].tolist()


def test_network_parameters_and_history_come_back_without_the_data(tmp_path: pathlib.Path):
    rising = optax.sgd(lambda count: jnp.where(jnp.asarray(count) < 12, -0.1, 0.1))  # the best of five is the first
    checkpoints = fnn.train.Checkpoints(tmp_path, keep=2, every_steps=4)
    state, history = fit(epochs=5, optimizer=rising, checkpoints=checkpoints)
    net, params, seen = fnn.train.load_checkpoint(tmp_path)
    assert net == OBJECTIVE.net
    assert_same(params, state.params)
    assert jax.tree.structure(params) == jax.tree.structure(state.params)
    assert_same_history(seen, history)
    first, _ = fit(epochs=1, optimizer=rising)
    _, params, seen = fnn.train.load_checkpoint(tmp_path, "best")
    assert_same(params, first.params)
    assert seen["valid loss"].tolist() == history["valid loss"].tolist()[:1]
    for which in (15, 14):
        message = r'"newest", "best" or a number of steps, got 14; there are \[3, .*15\]'
        with contextlib.nullcontext() if which == 15 else pytest.raises(fnn.train.CheckpointError, match=message):
            assert_same(fnn.train.load_checkpoint(tmp_path, which)[1], state.params)
    with pytest.raises(fnn.train.CheckpointError, match="no such directory"):
        fnn.train.load_checkpoint(tmp_path / "nothing")


def test_loading_passes_over_what_is_damaged_unless_it_was_asked_for(tmp_path: pathlib.Path):
    fit(epochs=3, checkpoints=fnn.train.Checkpoints(tmp_path, best=None))
    before, _ = fit(epochs=2)
    (tmp_path / "9" / "meta" / "metadata").write_text("{")
    with pytest.warns(UserWarning, match="checkpoint of step 9 .* is damaged and left out"):
        _, params, history = fnn.train.load_checkpoint(tmp_path)
    assert_same(params, before.params)
    assert len(history["loss"]) == 2
    with pytest.raises(fnn.train.CheckpointError, match="the checkpoint of step 9 is damaged"):
        fnn.train.load_checkpoint(tmp_path, 9)
    assert steps_in(tmp_path) == [3, 6, 9], "loading moves nothing"


def test_a_network_of_functions_is_given(tmp_path: pathlib.Path):
    twice = fnn.Serial(fnn.Dense(3), fnn.lift(lambda key, in_shape: (), lambda params, x: 2 * x))
    params = twice.init(jax.random.key(0), (5,))
    state, _ = fit(objective=OBJECTIVE.replace(net=twice), params=params, epochs=1, checkpoints=tmp_path)
    with pytest.raises(fnn.train.CheckpointError, match=r"load_checkpoint\(..., net=net\)"):
        fnn.train.load_checkpoint(tmp_path)
    net, params, _ = fnn.train.load_checkpoint(tmp_path, net=twice)
    assert net is twice
    assert_same(params, state.params)


@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16", "int32", "uint8", "bool"])
def test_a_checksum_sees_any_change_and_not_the_place(kind: str, rng: np.random.Generator, key: jax.Array):
    with jax.enable_x64(kind == "float64"):
        array = jnp.asarray(rng.integers(0, 2, (8, 6)) if kind == "bool" else rng.standard_normal((8, 6)) * 50).astype(
            kind
        )
        sum_of = lambda a: np.asarray(checksums({"a": a})["a"]).tolist()  # noqa: E731
        want = sum_of(array)
        mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        assert sum_of(jax.device_put(array, jax.NamedSharding(mesh, jax.P("a", "b")))) == want
        raw = np.asarray(array)
        for _ in range(20):
            changed = raw.copy()
            flat = changed.reshape(-1).view(np.uint8)
            bit = 0 if kind == "bool" else int(rng.integers(8))
            flat[rng.integers(flat.size)] ^= 1 << bit
            first, second = sum_of(jnp.asarray(changed))
            assert first != want[0] and second != want[1]
        assert sum_of(array[::-1]) != want, "nor are the rows in another order the same"


def test_nothing_is_pickled(tmp_path: pathlib.Path):
    fit(epochs=1, checkpoints=fnn.train.Checkpoints(tmp_path))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            head = path.read_bytes()[:2]
            assert not (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05"), path
    source = pathlib.Path(fnn.__file__).parent
    assert not [
        path
        for path in source.rglob("*.py")
        if re.search(r"^\s*(import|from) (pickle|cloudpickle|dill)", path.read_text(), re.M)
    ]


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="every_steps is a positive integer or None, got 0"):
        fnn.train.Checkpoints("x", every_steps=0)
    with pytest.raises(ValueError, match="keep is a positive integer, got None"):
        fnn.train.Checkpoints("x", keep=None)  # pyright: ignore[reportArgumentType]
