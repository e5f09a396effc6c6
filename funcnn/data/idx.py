"""The IDX file format of the MNIST database: a big-endian array behind a short header::

    offset 0       0x00 0x00          two zero bytes
    offset 2       dtype code         0x08 uint8, 0x09 int8, 0x0B int16, 0x0C int32, 0x0D float32, 0x0E float64
    offset 3       d                  number of dimensions
    offset 4       d x uint32         the shape, big-endian
    offset 4+4d    items              row-major, big-endian, and then the file ends

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", section "The IDX file format".
"""

import gzip
import math
import os
import pathlib
import struct
import zlib

import numpy as np

DTYPES = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}

_GZIP_MAGIC = b"\x1f\x8b"
_HEADER_BYTES = 4  # before the shape
_MAX_NDIM = 64  # NumPy's own limit
_MAX_BYTES = np.iinfo(np.intp).max


class DataError(ValueError):
    """A data file is not what it should be; the message names the file, what was found and what was expected."""


class MissingDataError(DataError, FileNotFoundError):
    """A data file or directory is not there."""


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an IDX file, compressed by gzip or not, as a writable array in native byte order.

    Whether the file is compressed is decided by its first two bytes, never by its name. The file's length is compared
    with its header before anything of the claimed size is allocated.

    Args:
        path: the file.

    Returns:
        The array: shape and dtype (uint8, int8, int16, int32, float32 or float64) as the header says.

    Raises:
        MissingDataError: there is no such file.
        DataError: the gzip stream is corrupted or cut short, the two zero bytes are missing, the dtype code or the
            number of dimensions is unknown, or the file is shorter or longer than its header says.

    Example:
        >>> import pathlib, tempfile
        >>> header = bytes([0, 0, 0x0B, 2, 0, 0, 0, 2, 0, 0, 0, 3])       # int16, two dimensions: 2 and 3
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "six.idx")
        ...     _ = path.write_bytes(header + bytes([0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 1, 0]))
        ...     read_idx(path)
        array([[  1,   2,   3],
               [  4,   5, 256]], dtype=int16)
    """
    return decode_idx(read_content(path), path)


def read_content(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file, uncompressed when they are a gzip stream.

    Args:
        path: the file.

    Returns:
        The uncompressed content.

    Raises:
        MissingDataError: there is no such file.
        DataError: the gzip stream is corrupted (its CRC-32 and length are checked) or cut short.
    """
    try:
        content = pathlib.Path(path).read_bytes()
    except FileNotFoundError as error:
        raise MissingDataError(f"{os.fspath(path)}: no such file") from error
    if not content.startswith(_GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except EOFError as error:
        raise DataError(
            f"{os.fspath(path)}: the gzip stream is cut short: it ends after {len(content)} bytes, before its "
            "end-of-stream mark"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{os.fspath(path)}: the gzip stream is corrupted: {error}") from error


def decode_idx(content: bytes, path: str | os.PathLike[str]) -> np.ndarray:
    """Decodes the uncompressed content of an IDX file.

    Args:
        content: header and items.
        path: the file they were read from, for the error messages.

    Returns:
        The array, writable and in native byte order.

    Raises:
        DataError: content is not exactly one IDX array.
    """
    where = os.fspath(path)
    if len(content) < _HEADER_BYTES:
        raise DataError(f"{where}: cut short: found {len(content)} bytes, expected an IDX header of at least 4")
    if content[:2] != b"\0\0":
        raise DataError(f"{where}: not an IDX file: found first bytes {content[:2].hex(' ')}, expected 00 00")
    code, ndim = content[2], content[3]
    if code not in DTYPES:
        known = ", ".join(f"0x{c:02X} {dtype.name}" for c, dtype in DTYPES.items())
        raise DataError(f"{where}: unknown IDX dtype code 0x{code:02X}, expected one of {known}")
    if not 1 <= ndim <= _MAX_NDIM:
        raise DataError(f"{where}: the IDX header says {ndim} dimensions, expected 1 to {_MAX_NDIM}")

    start = _HEADER_BYTES + 4 * ndim
    if len(content) < start:
        raise DataError(
            f"{where}: cut short inside the header: found {len(content)} bytes, expected {start} of header for "
            f"{ndim} dimensions"
        )
    dtype = DTYPES[code]
    shape = struct.unpack_from(f">{ndim}I", content, _HEADER_BYTES)
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        trouble = "cut short" if len(content) < expected else "too long"
        raise DataError(
            f"{where}: {trouble}: found {len(content)} bytes, expected {expected} for {dtype.name} of shape {shape}"
        )
    # A 0 among the sizes makes any others agree with the length, also those that no array can have.
    if math.prod(size for size in shape if size) * dtype.itemsize > _MAX_BYTES:
        raise DataError(f"{where}: the IDX header says shape {shape}, expected one that an array can have")
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
