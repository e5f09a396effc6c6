"""The experiment with K-FAC for a moment, and what it makes of given curves."""

import json
import pathlib

import numpy as np
import pytest

from experiments import kfac_autoencoder as experiment

pytestmark = pytest.mark.once


def test_smoke_run_writes_curves_and_verdict(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment.main(["--smoke", "--out", str(tmp_path)]) in (0, 1)
    found = json.loads((tmp_path / "kfac_autoencoder-digits.json").read_text())
    assert set(found["chosen"]) == set(found["seconds_a_step"]) == {"momentum", "Adam", "K-FAC"}
    assert len(found["curves"]["Adam"]) == 36 and found["target"] == min(
        min(found["curves"][name]) for name in ("momentum", "Adam")
    )
    assert (tmp_path / "kfac_autoencoder-digits.png").stat().st_size > 1000
    assert "K-FAC" in capsys.readouterr().out


def test_steps_and_seconds_to_the_target() -> None:
    fall = np.arange(12.0, 0.0, -1.0)  # 12, ..., 1: reaches 1 in step 12
    curves = {"momentum": fall + 1, "Adam": fall, "K-FAC": np.maximum(1.0, 13 - 4 * np.arange(1.0, 13.0))}
    seconds = {"momentum": np.array([1.0]), "Adam": np.array([1.0]), "K-FAC": np.array([3.0])}
    found = experiment.compared(curves, seconds)
    assert (found["best"], found["target"]) == ("Adam", 1.0)
    assert found["steps"] == {"momentum": None, "Adam": 12, "K-FAC": 3}
    assert found["marks"]["steps"]["reached"] and found["marks"]["time"]["ratio"] == 9 / 12 and found["reached"]
    slow = experiment.compared(curves, seconds | {"K-FAC": np.array([5.0])})
    assert slow["marks"]["steps"]["reached"] and not slow["marks"]["time"]["reached"] and not slow["reached"]
    never = experiment.compared(curves | {"K-FAC": fall + 2}, seconds)
    assert not never["reached"] and "missed" in experiment.verdict(never)


def test_smoothing_is_the_mean_of_the_last_steps() -> None:
    losses = np.random.default_rng(0).random(120)
    got = experiment.smoothed(losses)
    for i in (0, 10, 49, 50, 119):
        np.testing.assert_allclose(got[i], losses[max(0, i + 1 - experiment.SMOOTHED) : i + 1].mean())
