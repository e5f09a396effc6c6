"""The benchmark for a moment; its times are not judged here, and its gradients are."""

import json
import pathlib

import pytest

from experiments.benchmarks import linear_cross_entropy

pytestmark = pytest.mark.once


def test_runs_and_writes_what_it_measured(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert linear_cross_entropy.main(["--smoke", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "linear_cross_entropy.json").read_text())
    assert found["marks"] == {"memory": pytest.approx(1 / 12, rel=1e-5), "time": 1.0}
    (row,) = found["results"]
    assert row["network"] == "Serial(Dense(8), Relu(), Dense(256))"
    assert set(row["programs"]) == {*linear_cross_entropy.PROGRAMS, "chunk 4"}
    assert row["programs"]["optax"]["against"]["optax"]["memory"] == 1.0
    assert all(program["difference"] <= 1e-5 for program in row["programs"].values())  # float32
    assert row["programs"]["chunk 4"]["against"]["softmax_cross_entropy"]["memory"] < 0.5
    assert "one by one" in capsys.readouterr().out
