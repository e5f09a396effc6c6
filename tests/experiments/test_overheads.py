"""The benchmark for a moment; its numbers are not judged here."""

import json
import pathlib

import pytest

from experiments.benchmarks import overheads

pytestmark = pytest.mark.once


def test_runs_and_writes_what_it_measured(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert overheads.main(["--smoke", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "overheads.json").read_text())
    assert found["marks"] == {"import_s": 0.15, "progress": 0.01, "watch": 0.05}
    assert 0 < found["import"]["funcnn"]["median"] < found["import"]["jax, optax"]["median"] * 10
    assert set(found["progress"]) == {"bar", "lines", "bar and log"}
    assert set(found["watched_s"]) == {"no looks", "looks"} and found["watch"]["median"] > -1
    out, err = capsys.readouterr()
    assert "import funcnn" in out and not err
