"""The experiment for a moment; its verdict on made-up numbers."""

import json
import pathlib

import pytest

from experiments import mixed_precision

pytestmark = pytest.mark.once


def test_runs_and_writes_what_it_found(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mixed_precision.main(["--smoke", "--out", str(tmp_path)]) in (0, 1)
    path = tmp_path / "mixed_precision-digits"
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    found = json.loads(path.with_suffix(".json").read_text())
    assert {(run["dtype"], run["gradient"]) for run in found["runs"]} == {
        (dtype, gradient) for dtype in mixed_precision.DTYPES for gradient in mixed_precision.GRADIENTS
    }
    full, mixed = (next(r for r in found["runs"] if r["dtype"] == dtype) for dtype in mixed_precision.DTYPES)
    assert full["loss"] != mixed["loss"], "the network did run in bfloat16"
    assert "At most 0.2 points apart" in capsys.readouterr().out


def test_the_verdict_is_of_the_means() -> None:
    runs = [
        {"dtype": dtype, "gradient": gradient, "accuracy": value}
        for gradient, (full, mixed) in {"autodiff": ([98.0, 98.4], [98.1, 98.3]), "backprop": ([98.0], [98.3])}.items()
        for dtype, values in (("float32", full), ("bfloat16", mixed))
        for value in values
    ]
    found = mixed_precision.compare(runs)
    assert found["autodiff"] == pytest.approx(0.0, abs=1e-9) and found["backprop"] == pytest.approx(0.3)
    assert "does not hold" in mixed_precision.verdict(found)
