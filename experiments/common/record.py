"""What every experiment says of itself: the JSON record, and its errors in a line."""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console

PACKAGES = ("funcnn", "jax", "jaxlib", "numpy", "optax", "scikit-learn")


class UsageError(Exception):
    """What was asked for cannot be done; the message is for the person at the keyboard."""


@contextlib.contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Ends the program with exit code 2 and one line on stderr, instead of a traceback, for errors of these kinds."""
    try:
        yield
    except (UsageError, *kinds) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


def console() -> Console:
    """Where results are printed: as wide as the terminal, or 100 columns where there is none, as in a log."""
    return Console(width=None if sys.stdout.isatty() else 100)


def environment() -> dict[str, Any]:
    """Versions and device."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
        },
    }


def command(module: str, argv: Sequence[str] | None) -> str:
    """The command that runs the experiment again, from the start: without --resume.

    Directories are the reader's own: that of the data is called DIR, those of results are left out.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    shown: list[str] = []
    while words:
        word = words.pop(0)
        option, equals, _ = word.partition("=")
        if option in ("--out", "--out-dir", "--data-dir"):
            if not equals:
                words.pop(0)
            shown += ["--data-dir", "DIR"] if option == "--data-dir" else []
        elif word != "--resume":
            shown.append(word)
    return " ".join(["python -m", module, *shown])


def write(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Writes a record as JSON, whole or not at all; what JSON has no word for, NaN and infinity, as a string."""
    text = json.dumps(_plain(record), indent=1, allow_nan=False)
    text = re.sub(r"\[[^][{}]*\]", lambda numbers: " ".join(numbers[0].split()), text)  # a list of numbers: one line
    beside = path.with_name(f".{path.name}")
    try:
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read(path: pathlib.Path) -> dict[str, Any]:
    """A record; raises UsageError, with the file's name, for what is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no record, move it away: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} is no record, move it away: it holds no object, but {str(found)[:40]}")
    return found


def of_a_moment(found: Mapping[str, Any]) -> bool:
    """Whether it is of a run with --smoke, whose numbers say nothing."""
    return "--smoke" in str(found.get("command"))


def directory(path: pathlib.Path) -> None:
    """Makes it unless it is there; raises UsageError where nothing can be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"--out is a directory that can be written, got {path}: {error.strerror}") from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"a record holds numbers, words, lists, dicts and dataclasses of them, got {type(value)}: {value}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
