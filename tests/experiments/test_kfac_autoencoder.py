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
    steps = {run["optimizer"]: len(run["curve"]) for run in found["runs"]}
    assert steps == {"momentum": 36, "Adam": 36, "K-FAC": 12}
    assert found["target"] == min(run["lowest"] for run in found["runs"] if run["optimizer"] != "K-FAC")
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


def test_the_best_setting_of_each_is_chosen() -> None:
    def curve(*losses: float) -> np.ndarray:
        return np.array(losses)

    slow, fast = ({"least_damping": value} for value in (1.0, 2.0))
    others = {
        "momentum": [({"learning_rate": 1.0}, curve(9, np.nan, np.nan)), ({"learning_rate": 2.0}, curve(9, 8, 7))],
        "Adam": [({"learning_rate": 1.0}, curve(9, 6, 5)), ({"learning_rate": 2.0}, curve(9, 8, 7))],
    }
    chosen = experiment.choose(others | {"K-FAC": [(slow, curve(6, 6, 2)), (fast, curve(6, 4, 4))]})
    assert chosen["momentum"][0] == {"learning_rate": 2.0} and chosen["Adam"][0] == {"learning_rate": 1.0}
    assert chosen["K-FAC"][0] == fast  # first at 5
    assert experiment.choose(others | {"K-FAC": [(slow, curve(9, 6)), (fast, curve(8, 8))]})["K-FAC"][0] == slow
    assert experiment.lowest(curve(np.nan, np.nan)) == np.inf


def test_smoothing_is_the_mean_of_the_last_steps() -> None:
    losses = np.random.default_rng(0).random(120)
    got = experiment.smoothed(losses)
    for i in (0, 10, 49, 50, 119):
        np.testing.assert_allclose(got[i], losses[max(0, i + 1 - experiment.SMOOTHED) : i + 1].mean())
