"""A run that was interrupted goes on to the last bit; what is of another run, or damaged, is found out."""

import contextlib
import json
import pathlib
import re
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcnn as fnn
from funcnn.train.checkpoint import checksums
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


STOPPING = fnn.train.EarlyStopping(4, "valid loss")
KINDS: dict[str, dict[str, Any]] = {
    "memory": {},
    "stream": {"stream": True, "chunk_steps": 2},
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


# Where one array cannot be read, the reads of the others end after the event loop of Orbax does, or never begin: it
# says so by these warnings.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
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
            assert sum_of(jnp.asarray(changed)) != want
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
