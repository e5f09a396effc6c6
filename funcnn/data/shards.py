"""A data set as files of rows: larger than memory, read where it is needed."""

import os
import pathlib
from typing import Any

import numpy as np

from funcnn.data.idx import DataError, MissingDataError

NAMES = ("x", "y", "weight")


class Rows:
    """The rows of several `.npy` files, one after another, as one array that is read where it is indexed."""

    def __init__(self, paths: list[pathlib.Path]):
        self.paths = paths
        self.parts = [_open(path) for path in paths]
        first = self.parts[0]
        for path, part in zip(paths, self.parts, strict=True):
            if not part.ndim or part.shape[1:] != first.shape[1:] or part.dtype != first.dtype:
                raise DataError(
                    f"{path}: rows of {part.dtype}{list(part.shape[1:])}, where {paths[0].name} has "
                    f"{first.dtype}{list(first.shape[1:])}"
                )
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.shape, self.dtype = (int(self.ends[-1]), *first.shape[1:]), first.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        rows = np.arange(len(self))[rows]  # whatever NumPy takes: slices, negative numbers, masks
        if not rows.ndim:
            return self[rows[None]][0]
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        shard = np.searchsorted(self.ends, rows, side="right")
        for i in np.unique(shard):
            here = shard == i
            out[here] = self.parts[i][rows[here] - (self.ends[i - 1] if i else 0)]
        return out


class Shards:
    """A directory of shards: `x-00000.npy`, `x-00001.npy`, ... and `y-...` (and `weight-...`) with the same numbers.

    Each file holds rows of the examples, as `numpy.save` writes them. They are mapped, not read: `fit` reads the rows
    of a batch when it is their turn, in an order that is shuffled over all shards.

    Args:
        directory: where the files are.

    Attributes:
        arrays: (x, y) or (x, y, weight), each of which is indexed like an array.

    Raises:
        MissingDataError: the directory or a file is not there.
        DataError: a file is no array, or its rows have another shape or number than its neighbours'.

    Example:
        >>> import tempfile, numpy as np, funcnn as fnn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fnn.data.write_shards(folder, np.zeros((5, 2)), np.arange(5), rows=2)
        ...     x, y = fnn.data.Shards(folder).arrays
        ...     x.shape, y[[4, 0]].tolist()
        ((5, 2), [4, 0])
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = pathlib.Path(directory)
        if not self.directory.is_dir():
            raise MissingDataError(f"{self.directory}: no such directory of shards")
        found = {name: sorted(self.directory.glob(f"{name}-*.npy")) for name in NAMES}
        if not found["x"]:
            raise MissingDataError(
                f"{self.directory}: no shards x-*.npy with y-*.npy; data.write_shards(directory, x, y) makes them"
            )
        for name in NAMES[1:]:
            have, want = ({p.name.partition("-")[2] for p in found[n]} for n in (name, "x"))
            if have != want and (name == "y" or have):
                odd = sorted(want ^ have)
                raise MissingDataError(f"{self.directory}: x and {name} have not the same shards; alone: {odd}")
        numbers = [path.stem.partition("-")[2] for path in found["x"]]
        if all(number.isdigit() for number in numbers):
            there = {int(number) for number in numbers}
            if missing := sorted(set(range(max(there))) - there):
                raise MissingDataError(f"{self.directory}: of the shards 0 to {max(there)}, {missing} are missing")
        self.arrays: tuple[Rows, ...] = tuple(Rows(found[name]) for name in NAMES if found[name])
        x, *rest = self.arrays
        for other in rest:
            for a, b, parts in zip(x.paths, other.paths, zip(x.parts, other.parts, strict=True), strict=True):
                if len(parts[0]) != len(parts[1]):
                    raise DataError(f"{a} has {len(parts[0])} rows and {b.name} has {len(parts[1])}")

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __repr__(self) -> str:
        shapes = ", ".join(f"{n} {a.dtype}{list(a.shape)}" for n, a in zip(NAMES, self.arrays, strict=False))
        return f"<Shards {str(self.directory)!r}: {len(self.arrays[0].paths)} shards, {shapes}>"


def write_shards(
    directory: str | os.PathLike[str], x: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None, *, rows: int
) -> None:
    """Writes arrays as a directory of shards, which `Shards` reads.

    Args:
        directory: where to; it is made where it is not there, and must hold no shards yet.
        x: the examples (N, ...).
        y: their targets (N, ...).
        weight: their weights (N,), or None.
        rows: how many examples a shard holds.

    Raises:
        DataError: the arrays differ in N, or there are shards already.

    Example:
        >>> import os, tempfile, numpy as np, funcnn as fnn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fnn.data.write_shards(folder, np.zeros((5, 2)), np.arange(5), rows=3)
        ...     sorted(os.listdir(folder))
        ['x-00000.npy', 'x-00001.npy', 'y-00000.npy', 'y-00001.npy']
    """
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    if next(folder.glob("[xyw]*-*.npy"), None):
        raise DataError(f"{folder}: there are shards already; write to an empty directory")
    arrays = {name: array for name, array in zip(NAMES, (x, y, weight), strict=True) if array is not None}
    if len({len(array) for array in arrays.values()}) > 1 or rows < 1 or not len(x):
        sizes = ", ".join(f"{name} {np.shape(array)}" for name, array in arrays.items())
        raise DataError(f"shards hold one row per example, at least one each; got {sizes}, rows={rows}")
    for number, begin in enumerate(range(0, len(x), rows)):
        for name, array in arrays.items():
            np.save(folder / f"{name}-{number:05d}.npy", array[begin : begin + rows], allow_pickle=False)


def _open(path: pathlib.Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not an array as numpy.save writes it, or cut short: {error}") from error
