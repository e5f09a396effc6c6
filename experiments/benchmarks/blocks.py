"""What every benchmark's command line has: blocks of work that take turns, and where the record goes."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated, TypeVar

import numpy as np
import tyro

from experiments.common import record


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Options of a benchmark."""

    rounds: int = 7
    """Blocks of work for each thing that is measured; all take turns."""
    block_s: float = 1.0
    """Length of a block, about."""
    out: Annotated[pathlib.Path, tyro.conf.arg(aliases=("--out-dir",))] = pathlib.Path("out")
    """Directory for the figure and the record; made if it is missing."""
    smoke: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Tiny sizes for a moment, only to see that everything works."""

    def check(self) -> None:
        """Raises UsageError for values that no run can have."""
        if self.rounds < 1 or not 0 < self.block_s < np.inf:
            raise record.UsageError("--rounds and --block-s are positive")


Options = TypeVar("Options", bound=Blocks)


def options(kind: type[Options], module: str, argv: Sequence[str] | None) -> Options:
    """The command line's options, checked; their directory is there."""
    config = tyro.cli(kind, args=argv, prog=f"python -m {module}")
    with record.one_line_errors(OSError):
        config.check()
        config.out.mkdir(parents=True, exist_ok=True)
    return config
