"""One file for a network and its parameters: what was saved comes back, and what is no such file is refused."""

import json
import pathlib
import struct
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import funcnn as fnn
from tests.problems import NETWORKS

NET = fnn.Serial(fnn.Dense(3), fnn.Residual(fnn.Serial(fnn.Tanh(), fnn.Dense(3))), fnn.Maxout(2, pieces=2))


def saved(folder: pathlib.Path, net: fnn.Layer = NET) -> tuple[pathlib.Path, Any]:
    params = net.init(jax.random.key(0), (4,))
    path = folder / "net.safetensors"
    fnn.save(path, net, params)
    return path, params


def assert_equal(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_comes_back(name: str, tmp_path: pathlib.Path, key: jax.Array):
    problem = NETWORKS[name]
    params, _ = problem.draw(key)
    fnn.save(tmp_path / "a", problem.objective.net, params)
    net, again = fnn.load(tmp_path / "a")
    assert net == problem.objective.net
    assert_equal(again, params)
    assert [path.name for path in tmp_path.iterdir()] == ["a"], "nothing is left beside it"


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "int8", "uint8", "int32", "uint32", "bool"])
def test_every_dtype_comes_back(kind: str, tmp_path: pathlib.Path):
    params = {"a": (jnp.arange(6).reshape(2, 3).astype(kind), jnp.ones((), kind)), "b": (), "c": {}}
    fnn.save(tmp_path / "a", NET, params)
    assert_equal(fnn.load(tmp_path / "a")[1], params)


def test_float64_comes_back(tmp_path: pathlib.Path):
    with jax.enable_x64(True):
        params = {"w": jnp.linspace(0.0, 1.0, 7)}
        fnn.save(tmp_path / "a", NET, params)
        assert_equal(fnn.load(tmp_path / "a")[1], params)


def test_other_tools_read_it(tmp_path: pathlib.Path):
    path, params = saved(tmp_path)
    arrays = safetensors.numpy.load_file(path)
    assert sorted(arrays) == ["0/b", "0/w", "1/body/1/b", "1/body/1/w", "2/b", "2/w"] or len(arrays) == len(
        jax.tree.leaves(params)
    )
    np.testing.assert_array_equal(arrays["0/w"], params[0]["w"])
    with safetensors.safe_open(path, "np") as file:
        assert fnn.from_json(file.metadata()["net"]) == NET


def test_a_network_with_functions_keeps_its_parameters(tmp_path: pathlib.Path):
    double = fnn.lift(lambda key, in_shape: {"w": jnp.ones(in_shape)}, lambda params, x: x * params["w"])
    path, params = saved(tmp_path, double)
    with pytest.raises(fnn.StorageError, match=r"no description .* give it: load\(path, net="):
        fnn.load(path)
    net, again = fnn.load(path, net=double)
    assert net is double
    assert_equal(again, params)
    with pytest.raises(fnn.StorageError, match="holds the parameters of"):
        fnn.load(path, net=NET)


def test_saving_over_a_file_keeps_the_old_one_until_the_new_is_whole(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    path, params = saved(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        fnn.save(path, NET, jax.tree.map(jnp.zeros_like, params))
    assert_equal(fnn.load(path)[1], params)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    monkeypatch.undo()
    inode = path.stat().st_ino
    fnn.save(path, NET, params)
    assert path.stat().st_ino != inode, "another file in its place, and not the old one written over"


def test_what_jax_would_narrow_is_not_loaded(tmp_path: pathlib.Path):
    net = fnn.Dense(2)
    with jax.enable_x64(True):
        fnn.save(tmp_path / "net", net, net.init(jax.random.key(0), (3,)))
        assert fnn.load(tmp_path / "net")[1]["w"].dtype == jnp.float64
    with pytest.raises(fnn.StorageError, match=r"'.*' is float64, which JAX has under jax.enable_x64"):
        fnn.load(tmp_path / "net")


def test_a_file_without_a_place_is_named(tmp_path: pathlib.Path):
    net = fnn.Dense(2)
    params = net.init(jax.random.key(0), (3,))
    with pytest.raises(fnn.StorageError, match=r"cannot be written: there is no directory .*nowhere"):
        fnn.save(tmp_path / "nowhere" / "net", net, params)
    with pytest.raises(fnn.StorageError, match="cannot be written: it is a directory"):
        fnn.save(tmp_path, net, params)


def with_metadata(path: pathlib.Path, **changes: str | None) -> None:
    """Rewrites the file's metadata, as an attacker would."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    head = json.loads(content[8 : 8 + length])
    for name, value in changes.items():
        head["__metadata__"].pop(name) if value is None else head["__metadata__"].update({name: value})
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


HOSTILE: dict[str, tuple[dict[str, str | None], str]] = {
    "unknown type": ({"net": '{"type": "os.system"}'}, "unknown description type 'os.system'"),
    "no layer": ({"net": '{"type": "L2", "scale": 1.0}'}, "which is no network"),
    "no json": ({"net": "__import__('os').system('true')"}, "cannot be made"),
    "deep": ({"net": '{"type": "Serial", "layers": [' * 9999}, "cannot be made"),
    "bad field": ({"net": '{"type": "Dense", "features": -3}'}, "positive integer"),
    "twice": ({"structure": '{"tuple": ["0/w", "0/w"]}'}, "asked for twice"),
    "left over": ({"structure": '"0/w"'}, "have no place"),
    "nesting": ({"structure": '{"list": []}'}, "nesting"),
    "deep nesting": ({"structure": '{"tuple": [' * 9999}, "damaged"),
    "pair": ({"structure": '{"dict": [["a"]]}'}, "are a pair"),
    "no structure": ({"structure": None}, "not a file that funcnn.save wrote"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata_is_refused(name: str, tmp_path: pathlib.Path):
    path, _ = saved(tmp_path)
    changes, message = HOSTILE[name]
    with_metadata(path, **changes)
    with pytest.raises(fnn.StorageError, match=message) as caught:
        fnn.load(path)
    assert str(path) in str(caught.value)


def test_files_of_others_and_missing_ones_are_named(tmp_path: pathlib.Path):
    safetensors.numpy.save_file({"a": np.ones(3)}, tmp_path / "theirs")
    with pytest.raises(fnn.StorageError, match=r"not a file that funcnn.save wrote"):
        fnn.load(tmp_path / "theirs")
    with pytest.raises(FileNotFoundError):
        fnn.load(tmp_path / "nothing")
    for content in (b"", b"\x00" * 8, b"\xff" * 64, b"\x80\x04\x95 a pickle", b'{"json": 1}'):
        (tmp_path / "junk").write_bytes(content)
        with pytest.raises(fnn.StorageError, match="not a safetensors file"):
            fnn.load(tmp_path / "junk")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_truncated_or_changed_file_never_does_more_than_raise(data: st.DataObject, tmp_path: pathlib.Path):
    path, params = saved(tmp_path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
        truncated = True
    else:
        truncated = False
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    try:
        net, again = fnn.load(path)
    except fnn.StorageError as error:
        assert str(path) in str(error)
    else:
        assert not truncated
        assert isinstance(net, fnn.Layer) and len(jax.tree.leaves(again)) == len(jax.tree.leaves(params))


def test_what_cannot_be_saved_is_named(tmp_path: pathlib.Path):
    with pytest.raises(TypeError, match="as the network"):
        fnn.save(tmp_path / "a", {"w": 1}, NET)  # pyright: ignore[reportArgumentType]
    for params, message in (
        ({"a": [jnp.ones(2)]}, "got list at 'a'"),
        ({"a": {"b": None}}, "got NoneType at 'a/b'"),
        ({"a/b": jnp.ones(2)}, r"without a slash, got \['a/b'\]"),
        ({"a": np.array(["x"])}, "no name for"),
    ):
        with pytest.raises(TypeError, match=message):
            fnn.save(tmp_path / "a", NET, params)
    assert ml_dtypes.bfloat16 is not None and not list(tmp_path.iterdir())
