"""MNIST: found under every spelling, checked against its checksums, and every fault named with its file."""

import gzip
import hashlib
import os
import pathlib
import re
import struct
import zlib

import numpy as np
import pytest

from funcnn.data import DataError, Dataset, MissingDataError, data_dir, load_mnist
from funcnn.data.mnist import SHA256

NAMES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def encode(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 0x08, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(autouse=True)
def _no_data_directory_in_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FUNCNN_DATA", raising=False)


@pytest.fixture
def tiny(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    """Twelve training and five test images of 4x3 pixels, drawn from the test's name."""
    rng = np.random.default_rng(zlib.crc32(request.node.name.encode()))
    return {
        "train-images-idx3-ubyte": rng.integers(0, 256, (12, 4, 3), dtype=np.uint8),
        "train-labels-idx1-ubyte": np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 0], np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (5, 4, 3), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": np.array([9, 3, 0, 0, 1], np.uint8),
    }


def write(folder: pathlib.Path, arrays: dict[str, np.ndarray], suffix: str = "", *, dotted: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        content = encode(array)
        spelling = name.replace("-idx", ".idx") if dotted else name
        (folder / f"{spelling}{suffix}").write_bytes(gzip.compress(content) if suffix else content)


def assert_is(dataset: Dataset, arrays: dict[str, np.ndarray]) -> None:
    got = (dataset.x_train, dataset.y_train, dataset.x_test, dataset.y_test)
    for name, array in zip(NAMES, got, strict=True):
        assert array.dtype == (np.uint8 if "images" in name else np.int32)
        np.testing.assert_array_equal(array, arrays[name])
        assert array.shape == arrays[name].shape


@pytest.mark.parametrize("sub", ["", "mnist"], ids=["in-the-directory", "in-mnist"])
@pytest.mark.parametrize("suffix", ["", ".gz"], ids=["plain", "gzip"])
@pytest.mark.parametrize("dotted", [False, True], ids=["dash", "dot"])
def test_every_spelling_is_found(tmp_path: pathlib.Path, tiny: dict, sub: str, suffix: str, dotted: bool):
    write(tmp_path / sub, tiny, suffix, dotted=dotted)
    dataset = load_mnist(tmp_path, verify=False)
    assert_is(dataset, tiny)
    assert (dataset.x_max, dataset.classes) == (255, 10)
    assert repr(dataset) == "<Dataset MNIST: 12 training and 5 test images of 4x3, 10 classes>"


def test_the_directory_itself_comes_before_its_folder(tmp_path: pathlib.Path, tiny: dict):
    write(tmp_path, tiny)
    write(tmp_path / "mnist", {name: array[::-1] for name, array in tiny.items()})
    assert_is(load_mnist(tmp_path, verify=False), tiny)


def test_a_complete_folder_comes_before_an_incomplete_one(tmp_path: pathlib.Path, tiny: dict):
    write(tmp_path, {NAMES[0]: tiny[NAMES[0]][::-1]})
    write(tmp_path / "mnist", tiny)
    assert_is(load_mnist(tmp_path, verify=False), tiny)


def test_arrays_are_scaled_and_flat(tmp_path: pathlib.Path, tiny: dict):
    tiny[NAMES[0]][0, 0] = [0, 51, 255]
    write(tmp_path, tiny)
    (x, y), (x_test, y_test) = load_mnist(tmp_path, verify=False).arrays()
    assert (x.shape, x_test.shape, x.dtype, x_test.dtype) == ((12, 12), (5, 12), np.float32, np.float32)
    assert (y.dtype, y_test.dtype) == (np.int32, np.int32)
    np.testing.assert_array_equal(x[0, :3], np.array([0, 0.2, 1], np.float32))
    np.testing.assert_array_equal(x, (tiny[NAMES[0]].reshape(12, 12) / 255).astype(np.float32))
    np.testing.assert_array_equal(x_test, (tiny[NAMES[2]].reshape(5, 12) / 255).astype(np.float32))
    np.testing.assert_array_equal(y, tiny[NAMES[1]])
    np.testing.assert_array_equal(y_test, tiny[NAMES[3]])


class TestDataDir:
    def test_argument(self, tmp_path: pathlib.Path):
        assert data_dir(tmp_path) == tmp_path
        assert data_dir(str(tmp_path)) == tmp_path

    def test_environment(self, tmp_path: pathlib.Path, tiny: dict, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("FUNCNN_DATA", str(tmp_path))
        assert data_dir() == data_dir(None) == tmp_path
        write(tmp_path, tiny)
        assert_is(load_mnist(verify=False), tiny)

    def test_argument_wins_over_environment(self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("FUNCNN_DATA", "/nowhere")
        assert data_dir(tmp_path) == tmp_path

    def test_home(self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        assert data_dir("~") == tmp_path

    @pytest.mark.parametrize("value", [None, ""])
    def test_neither(self, monkeypatch: pytest.MonkeyPatch, value: str | None):
        if value is not None:
            monkeypatch.setenv("FUNCNN_DATA", value)
        with pytest.raises(MissingDataError, match=r"no data directory is given.*--data-dir DIR.*FUNCNN_DATA"):
            load_mnist()

    def test_no_such_directory(self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
        absent = tmp_path / "absent"
        with pytest.raises(MissingDataError, match=f"{re.escape(str(absent))}: the data directory is not an existing"):
            load_mnist(absent)
        monkeypatch.setenv("FUNCNN_DATA", str(absent))
        with pytest.raises(MissingDataError, match=f"{re.escape(str(absent))}: .* that FUNCNN_DATA names is not"):
            load_mnist()

    def test_a_file_is_no_directory(self, tmp_path: pathlib.Path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(MissingDataError, match="is not an existing directory"):
            data_dir(tmp_path / "file")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sub", ["", "mnist"])
def test_a_missing_file_is_named_with_where_to_get_it(tmp_path: pathlib.Path, tiny: dict, sub: str, name: str):
    write(tmp_path / sub, tiny, ".gz")
    (tmp_path / sub / f"{name}.gz").unlink()
    where = re.escape(str(tmp_path / sub))
    with pytest.raises(MissingDataError, match=rf"^{where}: missing {name}\(\.gz\)\. ") as caught:
        load_mnist(tmp_path)
    for hint in ("a mirror of yann.lecun.com/exdb/mnist", "CC BY-SA 3.0", "--data-dir", "FUNCNN_DATA"):
        assert hint in str(caught.value)
    for other in set(NAMES) - {name}:
        assert other not in str(caught.value)


def test_an_empty_directory_misses_all_four(tmp_path: pathlib.Path):
    with pytest.raises(MissingDataError) as caught:
        load_mnist(tmp_path)
    assert all(name in str(caught.value) for name in NAMES)
    assert f"{tmp_path} and {tmp_path / 'mnist'}: missing" in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_file_is_named(tmp_path: pathlib.Path, tiny: dict, name: str):
    write(tmp_path, tiny)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{re.escape(str(tmp_path / name))}: cut short"):
        load_mnist(tmp_path, verify=False)


@pytest.mark.parametrize("name", NAMES)
def test_a_corrupted_file_is_named(tmp_path: pathlib.Path, tiny: dict, name: str):
    write(tmp_path, tiny, ".gz")
    path = tmp_path / f"{name}.gz"
    broken = bytearray(path.read_bytes())
    broken[-8] ^= 1
    path.write_bytes(broken)
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}: the gzip stream is corrupted: CRC"):
        load_mnist(tmp_path, verify=False)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", ["", ".gz"], ids=["plain", "gzip"])
def test_checksums(tmp_path: pathlib.Path, tiny: dict, name: str, suffix: str, monkeypatch: pytest.MonkeyPatch):
    """Of the uncompressed content, of every file, by default: with the tiny files' own sums in the table all pass."""
    for key, array in tiny.items():
        monkeypatch.setitem(SHA256, key, hashlib.sha256(encode(array)).hexdigest())
    write(tmp_path, tiny, suffix)
    assert_is(load_mnist(tmp_path), tiny)

    expected = SHA256[name]
    changed = tiny | {name: tiny[name].copy()}
    changed[name].flat[0] ^= 1
    found = hashlib.sha256(encode(changed[name])).hexdigest()
    write(tmp_path, changed, suffix)
    path = re.escape(str(tmp_path / f"{name}{suffix}"))
    with pytest.raises(DataError, match=f"{path}: .*found SHA-256 {found} .*expected {expected}.*verify=False"):
        load_mnist(tmp_path)
    assert_is(load_mnist(tmp_path, verify=False), changed)


@pytest.mark.parametrize(("part", "images", "labels"), [("train", 12, 11), ("t10k", 4, 5)])
def test_numbers_of_images_and_labels_differ(tmp_path: pathlib.Path, tiny: dict, part: str, images: int, labels: int):
    for kind, count in (("images-idx3", images), ("labels-idx1", labels)):
        tiny[f"{part}-{kind}-ubyte"] = tiny[f"{part}-{kind}-ubyte"][:count]
    write(tmp_path, tiny)
    message = f"{part}-labels-idx1-ubyte: found {labels} labels, expected {images} as images in .*{part}-images"
    with pytest.raises(DataError, match=message):
        load_mnist(tmp_path, verify=False)


@pytest.mark.parametrize("part", ["train", "t10k"])
@pytest.mark.parametrize("label", [10, 128, 255])
def test_a_label_outside_the_classes(tmp_path: pathlib.Path, tiny: dict, part: str, label: int):
    tiny[f"{part}-labels-idx1-ubyte"][3] = label
    write(tmp_path, tiny)
    message = f"{part}-labels-idx1-ubyte: found label {label} at position 3, expected 0 to 9"
    with pytest.raises(DataError, match=message):
        load_mnist(tmp_path, verify=False)


@pytest.mark.parametrize("name", NAMES)
def test_the_wrong_number_of_dimensions(tmp_path: pathlib.Path, tiny: dict, name: str):
    tiny[name] = tiny[name][..., None]
    write(tmp_path, tiny)
    with pytest.raises(DataError, match=rf"{name}: found uint8 of \d dimensions, expected uint8 of \d dimensions"):
        load_mnist(tmp_path, verify=False)


def test_the_wrong_dtype(tmp_path: pathlib.Path, tiny: dict):
    write(tmp_path, tiny)
    path = tmp_path / "t10k-labels-idx1-ubyte"
    path.write_bytes(bytes([0, 0, 0x09, 1, 0, 0, 0, 5, 1, 2, 3, 4, 5]))
    with pytest.raises(DataError, match=f"{path.name}: found int8 of 1 dimensions, expected uint8"):
        load_mnist(tmp_path, verify=False)


@pytest.mark.parametrize("part", ["train", "t10k"])
def test_no_images(tmp_path: pathlib.Path, tiny: dict, part: str):
    for kind in ("images-idx3", "labels-idx1"):
        tiny[f"{part}-{kind}-ubyte"] = tiny[f"{part}-{kind}-ubyte"][:0]
    write(tmp_path, tiny)
    with pytest.raises(DataError, match=f"{part}-images-idx3-ubyte: found no items in shape"):
        load_mnist(tmp_path, verify=False)


def test_images_of_two_sizes(tmp_path: pathlib.Path, tiny: dict):
    tiny["t10k-images-idx3-ubyte"] = tiny["t10k-images-idx3-ubyte"].transpose(0, 2, 1).copy()
    write(tmp_path, tiny)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte: found images of \(3, 4\), expected \(4, 3\) as in"):
        load_mnist(tmp_path, verify=False)


REAL = os.environ.get("FUNCNN_DATA")  # read here: the tests themselves run without it


@pytest.mark.skipif(not REAL, reason="FUNCNN_DATA names no directory with the MNIST files")
def test_the_real_thing():
    dataset = load_mnist(REAL)
    assert (dataset.x_train.shape, dataset.x_train.dtype) == ((60_000, 28, 28), np.uint8)
    assert (dataset.x_test.shape, dataset.x_test.dtype) == ((10_000, 28, 28), np.uint8)
    assert (dataset.y_train.shape, dataset.y_test.shape) == ((60_000,), (10_000,))
    # The numbers of each digit, and the first labels, as published.
    assert np.bincount(dataset.y_train).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(dataset.y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert dataset.y_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert dataset.y_test[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    (x, _), (x_test, _) = dataset.arrays()
    assert (x.shape, x_test.shape, x.dtype, x.min(), x.max()) == ((60_000, 784), (10_000, 784), np.float32, 0, 1)
    assert abs(float(x.mean(dtype=np.float64)) - 0.1306604762738429) < 1e-8  # known: 0.1307
