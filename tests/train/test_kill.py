"""SIGKILL at random moments, while a checkpoint is being written too: nothing is lost but what was not yet saved."""

import multiprocessing
import pathlib
import time
from typing import Any

import numpy as np
import pytest

from tests.train import killed

pytest.importorskip("orbax.checkpoint")

pytestmark = pytest.mark.once

KILLS = 30
EVERY_STEPS = 4


class Runs:
    """Processes that train in one folder, forked from one that has imported everything."""

    def __init__(self, folder: pathlib.Path):
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["jax", "optax", "funcnn", "orbax.checkpoint", "tests.train.killed"])
        self.cache = folder / "cache"

    def start(self, folder: pathlib.Path, every_steps: int | None):
        folder.mkdir(exist_ok=True)
        here, there = self.context.Pipe(duplex=False)
        process = self.context.Process(target=killed.main, args=(folder, self.cache, every_steps, there), daemon=True)
        process.start()
        there.close()
        kind, step = here.recv()
        assert kind == "from"
        return process, here, step


def completed(folder: pathlib.Path) -> int:
    """The newest checkpoint that is there whole."""
    names = [path.name for path in (folder / "checkpoints").iterdir()] if (folder / "checkpoints").is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def unfinished(folder: pathlib.Path) -> bool:
    """Whether a checkpoint is being written, or was when the process ended."""
    return any("tmp" in path.name for path in (folder / "checkpoints").iterdir())


def wait_until_saving(process: Any, folder: pathlib.Path, saved: int) -> None:
    """Until there is a newer checkpoint than `saved`, and the next is being written; or the process has ended."""
    while process.is_alive() and not (completed(folder) > saved and unfinished(folder)):
        time.sleep(0.001)


def test_thirty_kills_lose_nothing(tmp_path: pathlib.Path, rng: np.random.Generator):
    runs = Runs(tmp_path)
    process, told, _ = runs.start(tmp_path / "whole", None)
    process.join()
    whole = np.load(tmp_path / "whole" / "end.npz")

    kills = while_saving = went_on = rounds = 0
    while kills < KILLS:
        rounds += 1
        folder, saved = tmp_path / f"round{rounds}", 0
        while True:
            process, told, step = runs.start(folder, EVERY_STEPS)
            assert step >= saved, "it goes on from the newest checkpoint that was complete"
            went_on += step > 0
            if kills < KILLS and told.recv()[0] == "at":  # training, and saving
                # By turns at any moment, and while it saves: how often the first meets a saving is for the machine.
                if kills % 2:
                    wait_until_saving(process, folder, saved)
                time.sleep(rng.uniform(0, 0.01 if kills % 2 else 0.6))
                process.kill()
            process.join()
            if process.exitcode == 0:
                break
            kills += 1
            saved = completed(folder)
            while_saving += unfinished(folder)
        end = np.load(folder / "end.npz")
        for name in whole:
            np.testing.assert_array_equal(end[name], whole[name], err_msg=name)
    print(f"{kills} kills in {rounds} runs, {while_saving} of them while a checkpoint was being written")
    assert while_saving >= 5 and went_on >= 20
