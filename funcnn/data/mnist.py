"""The MNIST database from its four IDX files. They are never downloaded here: they are found, checked and read."""

import hashlib
import os
import pathlib

import numpy as np

from funcnn.data.dataset import Dataset
from funcnn.data.idx import DataError, MissingDataError, decode_idx, read_content

CLASSES = 10

# SHA-256 of each file's uncompressed content, so that recompressed copies are the same data.
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

_HOW_TO_PASS = "pass the directory as --data-dir DIR (in Python: load_mnist(DIR)) or in the variable FUNCNN_DATA"
_HOW_TO_GET = (
    "Download the four files from a mirror of yann.lecun.com/exdb/mnist (CC BY-SA 3.0), gzip-compressed or not, "
    f"and {_HOW_TO_PASS}."
)


def data_dir(directory: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """The directory that holds the data: the argument, or else the environment variable FUNCNN_DATA.

    Args:
        directory: a directory, or None to ask the environment.

    Returns:
        The path of a directory that exists.

    Raises:
        MissingDataError: neither is given, or what is given is no directory.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     str(data_dir(folder)) == folder
        True
    """
    given = directory if directory is not None else os.environ.get("FUNCNN_DATA")
    if not given:
        raise MissingDataError(f"no data directory is given: {_HOW_TO_PASS}")
    path = pathlib.Path(given).expanduser()
    if not path.is_dir():
        source = "the data directory" if directory is not None else "the data directory that FUNCNN_DATA names"
        raise MissingDataError(f"{path}: {source} is not an existing directory; {_HOW_TO_PASS}")
    return path


def load_mnist(directory: str | os.PathLike[str] | None = None, *, verify: bool = True) -> Dataset:
    """The MNIST database of handwritten digits: 60,000 training and 10,000 test images of 28x28 pixels.

    The four files `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    `t10k-labels-idx1-ubyte` are looked for in the directory itself and in its folder `mnist`, also as
    `train-images.idx3-ubyte`, and each with or without `.gz`.

    Args:
        directory: where the files are; None for the environment variable FUNCNN_DATA.
        verify: compare each file's SHA-256 with the published files'. False allows other images with ten classes in
            the same format, such as Fashion-MNIST, of any number and size.

    Returns:
        A `Dataset`: images (60000, 28, 28) and (10000, 28, 28) uint8 with values 0..255, labels int32 of 10 classes.

    Raises:
        MissingDataError: the directory or one of the files is not there; it says where to get them.
        DataError: a file is truncated, corrupted, not the published one, not of the expected kind, or at odds with
            another (numbers of images and labels, labels outside 0..9, image sizes).

    Example:
        Two images of one row, black and white, and their labels 1 and 7, as training and as test part:

        >>> import pathlib, tempfile
        >>> images = bytes.fromhex("00000803 00000002 00000001 00000003 000000 ffffff")
        >>> labels = bytes.fromhex("00000801 00000002 01 07")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for part in ("train", "t10k"):
        ...         _ = pathlib.Path(folder, f"{part}-images-idx3-ubyte").write_bytes(images)
        ...         _ = pathlib.Path(folder, f"{part}-labels-idx1-ubyte").write_bytes(labels)
        ...     load_mnist(folder, verify=False)
        <Dataset MNIST: 2 training and 2 test images of 1x3, 10 classes>

    Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits",
    http://yann.lecun.com/exdb/mnist/, CC BY-SA 3.0.
    """
    paths = _find(data_dir(directory))
    x_train, y_train = _examples(paths, "train", verify)
    x_test, y_test = _examples(paths, "t10k", verify)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"{paths['t10k-images-idx3-ubyte']}: found images of {x_test.shape[1:]}, "
            f"expected {x_train.shape[1:]} as in {paths['train-images-idx3-ubyte']}"
        )
    return Dataset("MNIST", x_train, y_train, x_test, y_test, x_max=255, classes=CLASSES)


def _find(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The four files' paths by their published names, all from one folder: root, or root/mnist."""
    folders = (root, root / "mnist")
    found = max(map(_files_in, folders), key=len)
    missing = [name for name in SHA256 if name not in found]
    if missing:
        where = str(next(iter(found.values())).parent) if found else " and ".join(map(str, folders))
        raise MissingDataError(f"{where}: missing {', '.join(f'{name}(.gz)' for name in missing)}. {_HOW_TO_GET}")
    return found


def _files_in(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    found = {}
    for name in SHA256:
        dotted = name.replace("-idx", ".idx")
        for spelling in (name, dotted, f"{name}.gz", f"{dotted}.gz"):
            if (folder / spelling).is_file():
                found[name] = folder / spelling
                break
    return found


def _examples(paths: dict[str, pathlib.Path], part: str, verify: bool) -> tuple[np.ndarray, np.ndarray]:
    """One part's images (N, height, width) uint8 and labels (N,) int32, checked against one another."""
    images_path, labels_path = paths[f"{part}-images-idx3-ubyte"], paths[f"{part}-labels-idx1-ubyte"]
    images = _bytes_of(images_path, f"{part}-images-idx3-ubyte", 3, verify)
    labels = _bytes_of(labels_path, f"{part}-labels-idx1-ubyte", 1, verify)
    if len(labels) != len(images):
        raise DataError(f"{labels_path}: found {len(labels)} labels, expected {len(images)} as images in {images_path}")
    wrong = np.flatnonzero(labels >= CLASSES)
    if wrong.size:
        raise DataError(
            f"{labels_path}: found label {labels[wrong[0]]} at position {wrong[0]}, expected 0 to {CLASSES - 1}"
        )
    return images, labels.astype(np.int32)


def _bytes_of(path: pathlib.Path, name: str, ndim: int, verify: bool) -> np.ndarray:
    content = read_content(path)
    array = decode_idx(content, path)  # before the checksum: "cut short" says more than "another sum"
    if verify:
        found = hashlib.sha256(content).hexdigest()
        if found != SHA256[name]:
            raise DataError(
                f"{path}: not the published MNIST file: found SHA-256 {found} of the uncompressed content, expected "
                f"{SHA256[name]} (other data in the same format: load_mnist(directory, verify=False))"
            )
    if array.dtype != np.uint8 or array.ndim != ndim:
        raise DataError(
            f"{path}: found {array.dtype.name} of {array.ndim} dimensions, expected uint8 of {ndim} dimensions"
        )
    if not array.size:
        raise DataError(f"{path}: found no items in shape {array.shape}, expected at least one")
    return array
