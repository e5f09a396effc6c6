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
from funcnn.train.history import History, Recorder
from funcnn.train.progress import JsonLines, Progress
from funcnn.train.steps import State

Place = tuple[loop.Run, tuple[int, int]]  # a run, and the next step: its epoch from 0, its number in it


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
        """From the beginning, or from the newest checkpoint, to the end."""
        recorder, position, keeper = Recorder(), (0, 0), None
        with contextlib.ExitStack() as ending:
            if self.checkpoints is not None:
                keeper = Keeper.open(self.checkpoints, self.plan, self.feed, run)
                ending.callback(keeper.close)
                if (found := keeper.restore(run)) is not None:
                    run, recorder, position = found
                    self.log.keep(len(recorder.rows))
            ending.callback(self.log.close)
            steps = self.feed.per_epoch and self.feed.per_epoch * self.epochs
            self.progress.begin(steps, self.epochs, int(run.state.step))
            ending.callback(self.progress.end)
            began = time.perf_counter()
            self.feed.compile(run)
            recorder.compile_seconds += time.perf_counter() - began
            if not recorder.stopped:
                run = self._go(run, position, recorder, keeper)
        if self.plan.monitor and recorder.best_epoch is not None:
            assert isinstance(run.best, State)
            return run.best, recorder.history()
        return run.state, recorder.history()

    def _go(self, run: loop.Run, position: tuple[int, int], recorder: Recorder, keeper: Keeper | None) -> loop.Run:
        sound: Place = run, position  # what is kept when something fails
        last: Piece | None = None
        pause: Callable[[int], int] = keeper.pause if keeper is not None else lambda step: 2**31
        began = time.perf_counter() - recorder.seconds
        try:
            for piece in self.feed.pieces(run, position, self.epochs, pause):
                if not np.isfinite(piece.losses).all():
                    failed = piece.begin + int(np.argmax(~np.isfinite(piece.losses)))
                    sound, error = self._failure(piece, failed, recorder)
                    raise error
                new = recorder.add(piece.losses, piece.rows, time.perf_counter() - began)
                for row in new:
                    self.log.write(row)
                sound = piece.run, piece.position
                last = piece if len(piece.losses) else last
                shown = recorder.rows[-1] if recorder.rows else {"loss": float(piece.losses[-1])}
                self.progress.update(piece.begin + len(piece.losses), len(recorder.rows), shown, recorder.rate)
                if keeper is not None and keeper.due(recorder.steps, len(recorder.rows) if new else None):
                    keeper.save(*sound, recorder)
                if recorder.stopped:
                    break
            if last is not None and not nonfinite.finite(sound[0].state.params):
                sound, error = self._failure(last, last.begin + len(last.losses), recorder)
                raise error
        except BaseException as error:
            if isinstance(error, TrainingError):
                error.state, error.history = sound[0].state, recorder.history()
            raise
        finally:
            if keeper is not None:
                keeper.save(*sound, recorder)
        return sound[0]

    def _failure(self, piece: Piece, failed: int, recorder: Recorder) -> tuple[Place, NonFiniteError]:
        """The error that says where a number was not finite, and the place before that.

        `failed` is the number of the step whose loss was not finite; or, where all losses were, of the next step.
        """
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
            f"{seen} in epoch {epoch + 1}, step {i + 1} of it (step {step + 1} of the run); the first number that is not "
            f"finite is in {what}. error.state holds the state before that step, error.batch its batch; a smaller "
            "learning rate or optax.clip_by_global_norm may help"
        )
        error.step, error.epoch, error.path, error.batch = step, epoch + 1, path, batch
        recorder.cut(step)
        rows = [row for row in piece.rows if row["step"] <= step]
        recorder.add(piece.losses[: max(0, step - piece.begin)], rows, recorder.seconds)
        return (run, (epoch, i)), error
