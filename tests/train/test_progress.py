import io
import re
import time
from typing import Any

import pytest

from funcnn.train import progress
from tests.train.problems import fit


def test_lines_come_now_and_then_and_at_the_end():
    out = io.StringIO()
    lines = progress.Lines(out, every=0.05)
    lines.begin(100, 10, 0)
    for step in range(10, 60, 10):
        lines.update(step, step // 10, {"epoch": 1.0, "seconds": 0.1, "loss": 1.5, "valid loss": float("nan")}, 1234.5)
        time.sleep(0.02)
    lines.end()
    said = out.getvalue().splitlines()
    assert 2 <= len(said) <= 4
    assert said[-1] == "epoch 5/10, step 50/100, loss 1.5, 1,234 steps/s"


def test_a_run_says_its_last_epoch_on_standard_error(capsys: pytest.CaptureFixture[str]):
    fit(progress="lines")
    out, err = capsys.readouterr()
    assert not out
    assert re.fullmatch(
        r"epoch 3/3, step 9/9, loss [\d.]+, accuracy [\d.]+, valid loss [\d.]+, valid accuracy [\d.]+, "
        r"[\d,]+ steps/s\n",
        err,
    ), err
    fit(progress=None)
    assert capsys.readouterr() == ("", "")
    fit(progress="auto")
    assert capsys.readouterr().err.startswith("epoch 3/3"), "no terminal: a line"


def test_the_bar_shows_steps_values_and_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    fit(progress="bar", epochs=5)
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert "compiling" in text
    last = [line for line in re.split(r"[\r\n]+", text) if line.strip()][-1]
    assert re.search(r"epoch 5/5 .*100% .*loss [\d.]+  accuracy [\d.]+  valid loss .* steps/s 0:00:00", last), last


def test_ones_own_is_told_everything():
    told: list[Any] = []

    class Mine:
        def begin(self, steps: int | None, epochs: int, done: int) -> None:
            told.append(("begin", steps, epochs, done))

        def update(self, step: int, epoch: int, row: dict[str, float], rate: float) -> None:
            told.append((step, epoch))
            assert rate > 0 and row["loss"] > 0

        def end(self) -> None:
            told.append("end")

    fit(progress=Mine())
    assert told[0] == ("begin", 9, 3, 0) and told[-2:] == [(9, 3), "end"]
    told.clear()
    fit(progress=Mine(), stream=True, chunk_steps=2)
    assert told[0] == ("begin", 9, 3, 0) and told[-2:] == [(9, 3), "end"] and len(told) == 2 + 3 * 2


def test_the_end_is_told_when_training_fails():
    told = []

    class Mine(progress.Silence):
        def update(self, step: int, epoch: int, row: dict[str, float], rate: float) -> None:
            raise RuntimeError("no more")

        def end(self) -> None:
            told.append("end")

    with pytest.raises(RuntimeError, match="no more"):
        fit(progress=Mine())
    assert told == ["end"]
