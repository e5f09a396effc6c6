"""The benchmark of saving policies for a moment; numbers are not judged."""

import json
import pathlib

import pytest

from experiments.benchmarks import memory

pytestmark = pytest.mark.once


def test_smoke_run_measures_every_policy(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.main(["--smoke", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "memory.json").read_text())
    rows = {row["policy"]: row for row in found["results"]}
    assert list(rows) == ["autodiff", *memory.POLICIES]
    for name, row in rows.items():
        assert row["time"]["median"] > 0 < row["temp_bytes"]
        assert row["error"] < (1e-2 if "bfloat16" in name else 1e-6), name
    assert rows["bfloat16"]["error"] > 1e-6
    assert [row["blocks"] for row in found["depths"]] == [2, 4]
    assert found["depths"][0]["program_lines"] == found["depths"][1]["program_lines"]
    out = capsys.readouterr().out
    assert "of autodiff's memory" in out and "StableHLO" in out
