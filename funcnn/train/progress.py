"""What a run tells while it goes on: a bar on a terminal, lines elsewhere, JSON lines in a file."""

import json
import math
import os
import pathlib
import sys
import time
from typing import Any, Protocol, TextIO

from funcnn.storage import write_whole
from funcnn.train.history import format_value

LINE_EVERY = 10.0  # seconds between plain lines


class Progress(Protocol):
    """Told of every piece of a run; your own object with these three methods is as good."""

    def begin(self, steps: int | None, epochs: int, done: int) -> None:
        """Training begins: how many steps (None: not known yet) and epochs it will have, and steps that are done."""

    def update(self, step: int, epoch: int, row: dict[str, float], rate: float) -> None:
        """`step` steps are done, `epoch` epochs have ended; the newest values by name, and steps per second."""

    def end(self) -> None:
        """Training ended, well or badly."""


def as_progress(progress: Any) -> Progress:
    """The one that the user asked for: "auto", "bar", "lines", None (silence), or an object of one's own."""
    if progress is None:
        return Silence()
    if progress == "auto":
        progress = "bar" if sys.stderr.isatty() and _has_rich() else "lines"
    if progress == "bar":
        return Bar()
    if progress == "lines":
        return Lines()
    if all(callable(getattr(progress, name, None)) for name in ("begin", "update", "end")):
        return progress
    raise TypeError(
        'progress is "auto", "bar", "lines", None for silence, or an object with begin, update and end, '
        f"got {progress!r}"
    )


class Silence:
    """Says nothing."""

    def begin(self, steps: int | None, epochs: int, done: int) -> None: ...
    def update(self, step: int, epoch: int, row: dict[str, float], rate: float) -> None: ...
    def end(self) -> None: ...


class Lines:
    """A line now and then, and one for the last epoch, for logs."""

    def __init__(self, file: TextIO | None = None, every: float = LINE_EVERY):
        self.file, self.every = file, every

    def begin(self, steps: int | None, epochs: int, done: int) -> None:
        self.steps, self.epochs = steps, epochs
        self.last, self.said = time.monotonic(), None
        self.newest: tuple[Any, ...] | None = None

    def update(self, step: int, epoch: int, row: dict[str, float], rate: float) -> None:
        self.newest = step, epoch, row, rate
        if time.monotonic() - self.last >= self.every:
            self._say()

    def end(self) -> None:
        if self.newest is not None and self.newest != self.said:
            self._say()

    def _say(self) -> None:
        assert self.newest is not None
        step, epoch, row, rate = self.said = self.newest
        parts = [f"epoch {epoch}/{self.epochs}", f"step {step}" + (f"/{self.steps}" if self.steps else "")]
        parts += [f"{name} {format_value(name, value)}" for name, value in shown(row)] + [f"{rate:,.0f} steps/s"]
        print(", ".join(parts), file=self.file or sys.stderr, flush=True)
        self.last = time.monotonic()


class Bar:
    """A bar by rich, on standard error: steps, loss, metrics, steps per second, time left."""

    def begin(self, steps: int | None, epochs: int, done: int) -> None:
        import rich.console  # noqa: PLC0415 - in the `experiments` extra
        import rich.progress  # noqa: PLC0415

        columns = [
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TextColumn("{task.fields[values]}"),
            rich.progress.TimeRemainingColumn(),
        ]
        # Drawn when there is news and not by a thread of its own, which would take turns with the training's.
        console = rich.console.Console(stderr=True)
        self.bar = rich.progress.Progress(*columns, console=console, auto_refresh=False)
        self.epochs = epochs
        self.task = self.bar.add_task(f"epoch 0/{epochs}", total=steps, completed=done, values="compiling")
        self.bar.start()
        self.bar.refresh()

    def update(self, step: int, epoch: int, row: dict[str, float], rate: float) -> None:
        values = "  ".join(f"{name} {format_value(name, value)}" for name, value in shown(row))
        self.bar.update(
            self.task,
            completed=step,
            description=f"epoch {epoch}/{self.epochs}",
            values=f"{values}  {rate:,.0f} steps/s",
            refresh=True,
        )

    def end(self) -> None:
        self.bar.stop()


class JsonLines:
    """A file that gets one line of JSON for each epoch as it ends; null stands for a number that is not finite."""

    def __init__(self, path: str | os.PathLike[str] | None):
        self.file = None
        if path is not None:
            pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
            self.file = pathlib.Path(path).open("a", encoding="utf-8")  # noqa: SIM115 - closed by `close`

    def keep(self, epochs: int) -> None:
        """Drops the lines of later epochs, which a resumed run will write again, and what is no whole line."""
        if self.file is not None:
            path = pathlib.Path(self.file.name)
            lines = path.read_text(encoding="utf-8").splitlines()
            self.file.close()
            write_whole(path, "".join(line + "\n" for line in lines if _epoch_of(line) <= epochs).encode())
            self.file = path.open("a", encoding="utf-8")

    def write(self, rows: list[dict[str, float]]) -> None:
        """Appends epochs, and gives them to the system at once."""
        if self.file is not None and rows:
            plain = [{name: value if math.isfinite(value) else None for name, value in row.items()} for row in rows]
            self.file.write("".join(json.dumps(row, allow_nan=False) + "\n" for row in plain))
            self.file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self.file is not None:
            self.file.close()


def _epoch_of(line: str) -> float:
    """The epoch of a line of the log; infinity for one that was not written to its end."""
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def shown(row: dict[str, float]) -> list[tuple[str, float]]:
    """What of an epoch's row is worth a place on a line."""
    return [(n, v) for n, v in row.items() if n not in ("epoch", "step", "seconds") and not math.isnan(v)]


def _has_rich() -> bool:
    import importlib.util  # noqa: PLC0415

    return importlib.util.find_spec("rich") is not None
