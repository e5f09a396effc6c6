"""The loop on the host: goes through the pieces of a run, records, tells, saves, stops, and says what failed."""

import dataclasses
import time

import numpy as np

from funcnn.train import loop, nonfinite
from funcnn.train import steps as one_step
from funcnn.train.checkpoint import Checkpoints, Keeper
from funcnn.train.errors import NonFiniteError, TrainingError
from funcnn.train.feed import Memory, Piece, Stream
from funcnn.train.history import History, Recorder
from funcnn.train.progress import JsonLines, Progress
from funcnn.train.steps import State


@dataclasses.dataclass
class Trainer:
    """Goes through the pieces of a run: records, tells, saves, and stops."""

    plan: loop.Plan
    feed: Memory | Stream
    epochs: int
    progress: Progress
    log: JsonLines
    checkpoints: Checkpoints | None

    def train(self, run: loop.Run) -> tuple[State, History]:
        """From the beginning, or from the newest checkpoint, to the end."""
        plan, recorder, position = self.plan, Recorder(), (0, 0)
        keeper = None if self.checkpoints is None else Keeper.open(self.checkpoints, plan, self.feed, run)
        if keeper is not None and (found := keeper.restore(run)) is not None:
            run, recorder, position = found
        per_epoch = self.feed.per_epoch
        self.progress.begin(per_epoch and per_epoch * self.epochs, self.epochs, int(run.state.step))
        began = time.perf_counter()
        self.feed.compile(run)
        recorder.compile_seconds += time.perf_counter() - began
        clock = Clock(recorder)
        try:
            run = self._go(run, recorder, position, clock, keeper)
        finally:
            self.progress.end()
            self.log.close()
            if keeper is not None:
                keeper.close()
        best = next((int(row["epoch"]) for row in reversed(recorder.rows) if row.get(loop.BETTER)), None)
        history = recorder.history(best)
        if plan.monitor and best is not None:
            assert isinstance(run.best, State)
            return run.best, history
        return run.state, history

    def _go(
        self, run: loop.Run, recorder: Recorder, position: tuple[int, int], clock: "Clock", keeper: Keeper | None
    ) -> loop.Run:
        if any(row.get(loop.STOPPED) for row in recorder.rows):
            return run
        pause = (lambda step: 2**31) if keeper is None else keeper.pause
        row: dict[str, float] = recorder.rows[-1] if recorder.rows else {}
        last_good = run, position
        try:
            for piece in self.feed.pieces(run, position, self.epochs, pause):
                seconds = clock.lap()
                if not np.isfinite(piece.losses).all():
                    self._fail(piece, int(last_good[0].state.step), recorder, keeper)
                first = int(last_good[0].state.step)
                recorder.step_loss.append(piece.losses)
                for new in piece.rows:
                    share = (new["step"] - first) / len(piece.losses) if len(piece.losses) else 1
                    row = {
                        "epoch": new["epoch"],
                        "step": new["step"],
                        "seconds": clock.total - seconds * (1 - share),
                    } | new
                    recorder.rows.append(row)
                    self.log.write({name: v for name, v in row.items() if name not in (loop.BETTER, loop.STOPPED)})
                    if row.get(loop.STOPPED):
                        break
                run, position = last_good = piece.run, piece.position
                done = first + len(piece.losses)
                rate = len(piece.losses) / seconds if len(piece.losses) and seconds else clock.rate
                clock.rate = rate
                shown = row if piece.rows or row else {"loss": float(piece.losses[-1])}
                self.progress.update(done, piece.position[0], shown, rate)
                if row.get(loop.STOPPED):
                    keep = int(row["step"]) - sum(map(len, recorder.step_loss))
                    recorder.step_loss = [np.concatenate(recorder.step_loss)[: keep or None]]
                if keeper is not None and (
                    keeper.due(done, int(row["epoch"]) if piece.rows else None) or row.get(loop.STOPPED)
                ):
                    keeper.save(run, recorder, position, row)
                if row.get(loop.STOPPED):
                    break
        except NonFiniteError:
            raise
        except BaseException as error:
            if isinstance(error, TrainingError):
                error.state, error.history = last_good[0].state, recorder.history()
            if keeper is not None:
                keeper.save(*last_good[:1], recorder, last_good[1], row)
            raise
        if keeper is not None:
            keeper.save(run, recorder, position, row)
        return run

    def _fail(self, piece: Piece, first: int, recorder: Recorder, keeper: Keeper | None) -> None:
        """Raises the error that says where a number was not finite, with the state before that."""
        failed = first + int(np.argmax(~np.isfinite(piece.losses)))
        loss = piece.losses[failed - first]
        step, run = nonfinite.last_sound(piece.replay, first, failed)
        index = piece.first + (step - first)
        epoch, i = divmod(index, piece.per_epoch) if piece.per_epoch else (0, index)
        key, batch = one_step.ready(self.plan.recipe, run.state, piece.batches(step))
        objective = one_step.made(self.plan.recipe.objective, self.feed.hyper)
        path, what = nonfinite.first_nonfinite(objective, run.state.params, batch, key)
        later = "" if step == failed else f" (the loss itself, {failed - step} steps later)"
        error = NonFiniteError(
            f"the loss is {loss} in epoch {piece.epoch + epoch + 1}, step {i + 1} of it (step {step + 1} of the run)"
            f"{later}; the first number that is not finite is in {what}. error.state holds the state before that step, "
            "error.batch its batch; a smaller learning rate or optax.clip_by_global_norm may help"
        )
        error.step, error.epoch, error.path, error.batch = step, piece.epoch + epoch + 1, path, batch
        recorder.step_loss.append(piece.losses[: step - first])
        error.state, error.history = run.state, recorder.history()
        if keeper is not None:
            keeper.save(run, recorder, (piece.epoch + epoch, i), recorder.rows[-1] if recorder.rows else {})
        raise error


class Clock:
    """Time since training began, resumed runs' earlier parts included; compilation excluded."""

    def __init__(self, recorder: Recorder):
        self.total = recorder.rows[-1]["seconds"] if recorder.rows else 0.0
        self.rate = 0.0
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call, which are added to the total."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self.total += seconds
        return seconds
