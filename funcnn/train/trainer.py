"""The loop on the host: goes through the pieces of a run, records, tells, saves, stops, and says what failed."""

import contextlib
import dataclasses
import time
from collections.abc import Callable

import numpy as np

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
            compiled = time.perf_counter()
            recorder.compile_seconds += compiled - began
            clock = compiled - recorder.seconds
            pause: Callable[[int], int] = keeper.pause if keeper is not None else lambda step: 2**31
            pieces = self.feed.pieces(run, position, self.epochs, pause) if not recorder.stopped else ()
            try:
                for piece in pieces:
                    clock += piece.compile_seconds
                    recorder.compile_seconds += piece.compile_seconds
                    if (failed := self._failed(piece, recorder)) is not None:
                        run, position, error = self._failure(piece, failed, recorder)
                        raise error
                    new = recorder.add(piece.losses, piece.rows, time.perf_counter() - clock)
                    self.log.write(new)
                    run, position = piece.run, piece.position
                    shown = recorder.rows[-1] if recorder.rows else {"loss": float(piece.losses[-1])}
                    self.progress.update(recorder.steps, len(recorder.rows), shown, recorder.rate)
                    if keeper is not None and keeper.due(recorder.steps, len(recorder.rows) if new else None):
                        keeper.save(run, position, recorder)
                    if recorder.stopped:
                        break
                    del piece  # and with it the run before it
            except TrainingError as error:
                error.state, error.history = run.state, recorder.history()
                raise
            finally:
                if keeper is not None:
                    keeper.save(run, position, recorder)
        if self.plan.monitor and recorder.best_epoch is not None:
            assert isinstance(run.best, State)
            return run.best, recorder.history()
        return run.state, recorder.history()

    def _failed(self, piece: Piece, recorder: Recorder) -> int | None:
        """After how many steps one gave a loss that is not finite; or the parameters that the run ends with are not."""
        stops = [int(row["step"]) - piece.begin for row in piece.rows if row.get(STOPPED)]
        bad = ~np.isfinite(piece.losses[: stops[0] if stops else None])  # what comes after an early stop is not used
        if bad.any():
            return piece.begin + int(np.argmax(bad))
        if piece.position == (self.epochs, 0) and not stops and not nonfinite.finite(piece.run.state.params):
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
        path, what = nonfinite.first_nonfinite(objective, run.state.params, batch, key)
        if failed == step:
            seen = f"the loss is {piece.losses[failed - piece.begin]}"
        elif failed < piece.begin + len(piece.losses):
            seen = f"the loss is {piece.losses[failed - piece.begin]} {failed - step} steps after what went wrong"
        else:
            seen = "the parameters at the end are not finite, which went wrong"
        error = NonFiniteError(
            f"{seen} in epoch {epoch + 1}, step {i + 1} of it (step {step + 1} of the run); not finite: {what}. "
            "error.state holds the state before that step, error.batch its batch; a smaller "
            "learning rate or optax.clip_by_global_norm may help"
        )
        error.step, error.epoch, error.path, error.batch = step, epoch + 1, path, batch
        recorder.cut(step)
        rows = [row for row in piece.rows if row["step"] <= step]
        recorder.add(piece.losses[: max(0, step - piece.begin)], rows, recorder.seconds)
        return run, (epoch, i), error
