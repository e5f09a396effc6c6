"""IDX files: what is written comes back, and whatever is broken is named."""

import gzip
import pathlib
import re
import struct
import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from funcnn.data import DataError, MissingDataError, read_idx

CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def encode(array: np.ndarray) -> bytes:
    """The format, written a second time: header by struct, items by an explicit byte swap."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, CODES[array.dtype.name], array.ndim, *array.shape)
    items = array.astype(array.dtype.newbyteorder("<"))
    return header + items.byteswap().tobytes()


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.dtype == expected.dtype
    assert got.dtype.isnative
    assert got.shape == expected.shape
    assert got.tobytes() == expected.tobytes()  # NaN, -0.0 and all
    assert got.flags.writeable


SMALL = np.arange(-3, 3, dtype=np.int16).reshape(2, 3) * 257
SMALL_BYTES = bytes.fromhex("00 00 0b 02  00 00 00 02 00 00 00 03  fcfd fdfe feff 0000 0101 0202")


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "an-array.idx"


def test_the_bytes_of_a_small_file(path: pathlib.Path):
    assert encode(SMALL) == SMALL_BYTES
    path.write_bytes(SMALL_BYTES)
    assert_same(read_idx(path), SMALL)
    assert_same(read_idx(str(path)), SMALL)


@given(
    array=st.sampled_from(sorted(CODES)).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
    ),
    compress=st.booleans(),
)
def test_round_trip(array: np.ndarray, compress: bool):
    content = encode(array)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "array")
        path.write_bytes(gzip.compress(content) if compress else content)
        assert_same(read_idx(path), array)


@pytest.mark.parametrize("ndim", [1, 2, 5, 32, 64])
def test_any_number_of_dimensions(path: pathlib.Path, ndim: int):
    array = np.arange(2, dtype=np.uint8).reshape((1,) * (ndim - 1) + (2,))
    path.write_bytes(encode(array))
    assert_same(read_idx(path), array)


@pytest.mark.parametrize("name", ["plain-inside.gz", "gzip-inside"])
def test_the_content_decides_about_gzip_not_the_name(tmp_path: pathlib.Path, name: str):
    path = tmp_path / name
    path.write_bytes(gzip.compress(SMALL_BYTES) if name == "gzip-inside" else SMALL_BYTES)
    assert_same(read_idx(path), SMALL)


def test_gzip_in_several_members(path: pathlib.Path):
    path.write_bytes(gzip.compress(SMALL_BYTES[:7]) + gzip.compress(SMALL_BYTES[7:]))
    assert_same(read_idx(path), SMALL)


@pytest.mark.parametrize("length", range(len(SMALL_BYTES)))
def test_truncated_at_every_length(path: pathlib.Path, length: int):
    path.write_bytes(SMALL_BYTES[:length])
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}: cut short.*found {length} bytes, expected"):
        read_idx(path)


def test_truncated_inside_gzip(path: pathlib.Path):
    path.write_bytes(gzip.compress(SMALL_BYTES[:-1]))
    with pytest.raises(DataError, match="found 23 bytes, expected 24 for int16 of shape"):
        read_idx(path)


@pytest.mark.parametrize("extra", [1, 2, 1000])
def test_too_long(path: pathlib.Path, extra: int):
    path.write_bytes(SMALL_BYTES + bytes(extra))
    expected = rf"{re.escape(str(path))}: too long: found {24 + extra} bytes, expected 24 for int16 of shape \(2, 3\)"
    with pytest.raises(DataError, match=expected):
        read_idx(path)


GZIPPED = gzip.compress(SMALL_BYTES, mtime=0)


@pytest.mark.parametrize("length", range(2, len(GZIPPED)))
def test_gzip_stream_truncated_at_every_length(path: pathlib.Path, length: int):
    path.write_bytes(GZIPPED[:length])
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}: the gzip stream is cut short.* {length} bytes"):
        read_idx(path)


STORED = gzip.compress(SMALL_BYTES, compresslevel=0, mtime=0)  # the content lies in it as it is
CONTENT_AT = STORED.index(SMALL_BYTES)


@pytest.mark.parametrize("position", range(len(STORED)))
def test_gzip_stream_with_any_byte_changed(path: pathlib.Path, position: int):
    """Changed content is always found. Elsewhere (time stamp, padding bits) a change may also change nothing."""
    found = 0
    for flip in (0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xFF):
        broken = bytearray(STORED)
        broken[position] ^= flip
        path.write_bytes(broken)
        try:
            assert_same(read_idx(path), SMALL)
        except DataError as error:
            assert str(error).startswith(f"{path}: ")
            found += 1
    if position in (0, 1, 2) or position >= CONTENT_AT:
        assert found == 9
    if CONTENT_AT <= position < CONTENT_AT + len(SMALL_BYTES):
        with pytest.raises(DataError, match="the gzip stream is corrupted: CRC"):
            read_idx(path)


@pytest.mark.parametrize("field", ["CRC", "length"])
def test_gzip_checksums(path: pathlib.Path, field: str):
    broken = bytearray(GZIPPED)
    broken[-8 if field == "CRC" else -4] ^= 1
    path.write_bytes(broken)
    with pytest.raises(DataError, match=rf"the gzip stream is corrupted: .*{field}"):
        read_idx(path)


def test_gzip_followed_by_rubbish(path: pathlib.Path):
    path.write_bytes(GZIPPED + b"rubbish")
    with pytest.raises(DataError, match="the gzip stream is corrupted"):
        read_idx(path)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, 0x01, "not an IDX file: found first bytes 01 00, expected 00 00"),
        (1, 0x80, "not an IDX file: found first bytes 00 80, expected 00 00"),
        (2, 0x00, "unknown IDX dtype code 0x00, expected one of 0x08 uint8, 0x09 int8, 0x0B int16"),
        (2, 0x0A, "unknown IDX dtype code 0x0A"),
        (2, 0x0F, "unknown IDX dtype code 0x0F"),
        (3, 0, "the IDX header says 0 dimensions, expected 1 to 64"),
        (3, 65, "the IDX header says 65 dimensions, expected 1 to 64"),
        (3, 255, "the IDX header says 255 dimensions, expected 1 to 64"),
        (3, 64, "cut short inside the header: found 24 bytes, expected 260 of header for 64 dimensions"),
        (2, 0x08, r"too long: found 24 bytes, expected 18 for uint8 of shape \(2, 3\)"),
        (2, 0x0C, r"cut short: found 24 bytes, expected 36 for int32 of shape \(2, 3\)"),
        (7, 1, r"too long: found 24 bytes, expected 18 for int16 of shape \(1, 3\)"),
        (11, 4, r"cut short: found 24 bytes, expected 28 for int16 of shape \(2, 4\)"),
    ],
)
def test_broken_header(path: pathlib.Path, offset: int, value: int, message: str):
    broken = bytearray(SMALL_BYTES)
    broken[offset] = value
    path.write_bytes(broken)
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: {message}"):
        read_idx(path)


@pytest.mark.parametrize("ndim", [1, 2, 3, 64])
def test_a_huge_claim_is_refused_before_anything_is_allocated(path: pathlib.Path, ndim: int):
    path.write_bytes(b"\0\0\x0e" + bytes([ndim]) + b"\xff" * 4 * ndim + bytes(8))
    claimed = 4 + 4 * ndim + 8 * (2**32 - 1) ** ndim
    with pytest.raises(DataError, match=f"cut short: found {12 + 4 * ndim} bytes, expected {claimed} for float64"):
        read_idx(path)


def test_a_huge_claim_beside_a_zero(path: pathlib.Path):
    path.write_bytes(b"\0\0\x08\x03" + struct.pack(">3I", 0, 2**32 - 1, 2**32 - 1))
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}: .*\(0, 4294967295, 4294967295\), expected one"):
        read_idx(path)


def test_a_missing_file(path: pathlib.Path):
    with pytest.raises(MissingDataError, match=f"{re.escape(str(path))}: no such file") as caught:
        read_idx(path)
    assert isinstance(caught.value, DataError)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, FileNotFoundError)


@given(content=st.binary(max_size=40))
def test_rubbish_is_an_array_or_a_data_error(content: bytes):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "rubbish")
        path.write_bytes(content)
        try:
            array = read_idx(path)
        except DataError as error:
            assert str(error).startswith(str(path))
        else:
            assert encode(array) == content
