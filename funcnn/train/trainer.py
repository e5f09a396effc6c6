"""The loop on the host: goes through the pieces of a run, records, tells, saves, stops, and says what failed."""

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable

import numpy as np

from funcnn.backprop import find_nonfinite
from funcnn.train import loop, nonfinite
from funcnn.train import steps as one_step
from funcnn.train.checkpoint import Checkpoints, Keeper
from funcnn.train.errors import NonFiniteError, TrainingError
from funcnn.train.feed import Memory, Piece, Stream
from funcnn.train.history import STOPPED, History, Recorder
from funcnn.train.progress import JsonLines, Progress
from funcnn.train.steps import State


@dataclasses.dataclass
class Trainer:
    """What stays the same while one run is trained."""

    plan: loop.Plan
    feed: Memory | Stream
    epochs: int
    progress: Progress
    log: JsonLines
    checkpoints: Checkpoints | None
    warned: bool = False  # of a validation that is not finite

    def train(self, run: loop.Run) -> tuple[State, History]:
        """From the beginning, or from the newest checkpoint, to the end.

        `run` and `position` are always what is worth keeping: the last place where all was well.
        """
        recorder, position, keeper = Recorder(), (0, 0), None
        with contextlib.ExitStack() as ending:
            ending.callback(self.log.close)
            if self.checkpoints is not None:
                keeper = Keeper.open(self.checkpoints, self.plan, self.feed, run)
                ending.callback(keeper.close)
                if (found := keeper.restore(run, self.epochs)) is not None:
                    run, recorder, position = found
                    self.log.keep(len(recorder.rows))
            steps = self.feed.per_epoch and self.feed.per_epoch * self.epochs
            self.progress.begin(steps, self.epochs, int(run.state.step))
            ending.callback(self.progress.end)
            began = time.perf_counter()
            self.feed.compile(run)
            nonfinite.finite(run.state.params)  # compiles too
            compiled = time.perf_counter()
            recorder.compile_seconds += compiled - began
            clock = compiled - recorder.seconds
            pause: Callable[[int], int] = keeper.pause if keeper is not None else lambda step: 2**31
            pieces = self.feed.pieces(run, position, self.epochs, pause)
            ending.callback(pieces.close)  # and with it the thread that reads ahead
            try:
                while not recorder.stopped and (piece := next(pieces, None)) is not None:
                    clock += piece.compile_seconds
                    recorder.compile_seconds += piece.compile_seconds
                    if (failed := self._failed(piece, recorder)) is not None:
                        run, position, error = self._failure(piece, failed, recorder)
                        raise error
                    new = recorder.add(piece.losses, piece.watched, piece.rows, time.perf_counter() - clock)
                    run, position = piece.run, piece.position
                    if recorder.stopped and keeper is not None and recorder.steps < piece.begin + len(piece.losses):
                        # What was trained after the stop is not kept.
                        run, position = piece.replay(recorder.steps), (len(recorder.rows), 0)
                    self.log.write(new)
                    self._look_at_validation(new)
                    shown = recorder.rows[-1] if recorder.rows else {"loss": float(piece.losses[-1])}
                    self.progress.update(recorder.steps, len(recorder.rows), shown, recorder.rate)
                    if keeper is not None and keeper.due(recorder.steps, len(recorder.rows) if new else None):
                        keeper.save(run, position, recorder)
                    del piece  # and with it the run before it
            except TrainingError as error:
                error.state, error.history = run.state, recorder.history()
                raise
            finally:
                if keeper is not None and int(run.state.step) == recorder.steps:  # both of the same moment
                    keeper.save(run, position, recorder)
        if self.plan.monitor and recorder.best_epoch is not None:
            assert isinstance(run.best, State)
            return run.best, recorder.history()
        return run.state, recorder.history()

    def _look_at_validation(self, rows: list[dict[str, float]]) -> None:
        """Warns of the first validation whose loss is not finite: it ends no run, but is worth knowing."""
        for row in rows:
            validated = row["epoch"] % self.plan.valid_every == 0 or row["epoch"] == self.epochs
            if validated and not self.warned and not np.isfinite(row.get("valid loss", 0.0)):
                self.warned = True
                warnings.warn(
                    f"the validation loss after epoch {row['epoch']} is {row['valid loss']}: look at the validation "
                    "examples, for example with fnn.validate(objective, state.params, valid)",
                    stacklevel=4,
                )

    def _failed(self, piece: Piece, recorder: Recorder) -> int | None:
        """After how many steps one gave a loss that is not finite, or the piece parameters that are not; else None.

        So what a run goes on from, and what is saved of it, is always sound.
        """
        stops = [int(row["step"]) - piece.begin for row in piece.rows if row.get(STOPPED)]
        bad = ~np.isfinite(piece.losses[: stops[0] if stops else None])  # what comes after an early stop is not used
        if bad.any():
            return piece.begin + int(np.argmax(bad))
        if not stops and not nonfinite.finite(piece.run.state.params):
            return recorder.steps + len(piece.losses)
        return None

    def _failure(
        self, piece: Piece, failed: int, recorder: Recorder
    ) -> tuple[loop.Run, tuple[int, int], NonFiniteError]:
        """The run and the position before the step that went wrong, and the error that says what did."""
        step, run = nonfinite.last_sound(piece.replay, piece.begin, failed)
        index = piece.first + (step - piece.begin)
        epoch, i = divmod(index, piece.per_epoch) if piece.per_epoch else (0, index)
        epoch += piece.epoch
        key, batch = one_step.ready(self.plan.recipe, run.state, piece.batches(step))
        objective = one_step.made(self.plan.recipe.objective, self.feed.hyper)
        found = find_nonfinite(objective, run.state.params, batch, key=key, train=True)
        if failed == step:
            seen, fallback = (
                f"the loss is {piece.losses[failed - piece.begin]}",
                "the mean of the losses, or the penalty",
            )
        else:
            later = f"{failed - step} step{'s' if failed > step + 1 else ''} after"
            loss = piece.losses[failed - piece.begin] if failed < piece.begin + len(piece.losses) else None
            seen = "the parameters are no longer finite after" if loss is None else f"the loss is {loss} {later}"
            seen, fallback = f"{seen} what went wrong", "the optimizer's update, or the penalty's gradient"
        path = None if found is None else found.path
        what = f"{fallback}; every output, delta and gradient of the layers is finite"
        what = what if found is None else found.message
        error = NonFiniteError(
            f"{seen} in epoch {epoch + 1}, step {i + 1} of it (step {step + 1} of the run); not finite: {what}. "
            "error.state holds the state before that step, error.batch its batch; a smaller "
            "learning rate or optax.clip_by_global_norm may help"
        )
        error.step, error.epoch, error.path, error.batch = step, epoch + 1, path, batch
        rows = [row for row in piece.rows if row["step"] <= step]
        recorder.add(piece.losses, piece.watched, rows, recorder.seconds)
        recorder.cut(step)
        return run, (epoch, i), error
