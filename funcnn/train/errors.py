"""What training raises. Each error carries what is worth keeping."""

from typing import Any


class TrainingError(RuntimeError):
    """Training stopped before its end.

    Attributes:
        state: the last sound `State`; None where there was none yet.
        history: the `History` up to it.
    """

    state: Any = None
    history: Any = None


class NonFiniteError(TrainingError):
    """The loss became NaN or infinite. The message names epoch, step and layer.

    Attributes:
        step: how many steps were taken before the one that failed.
        epoch: the number of its epoch, from 1.
        path: the path of the first layer with a number that is not finite; None where no layer has one.
        batch: the batch of that step, as the network got it.
    """

    step: int
    epoch: int
    path: str | None
    batch: Any = None


class DataStreamError(TrainingError):
    """A source of batches failed, or gave something that is no batch. The message names epoch and batch."""


class CheckpointError(TrainingError):
    """A checkpoint cannot be used: it is damaged, or it is of another network or another run."""
