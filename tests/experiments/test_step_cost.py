"""The benchmark, in process and for a moment; its numbers are not judged here."""

import json
import pathlib

import pytest

from experiments import step_cost
from experiments.common import measure


@pytest.mark.parametrize("step", [False, True], ids=["gradients", "step"])
def test_runs_and_writes_what_it_measured(
    step: bool, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert step_cost.main(["--smoke", "--out", str(tmp_path), *(["--step"] if step else [])]) == 0
    path = tmp_path / ("step_cost-adam" if step else "step_cost")
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    found = json.loads(path.with_suffix(".json").read_text())
    assert found["marks"] == {"time": 1.05, "memory": 1.0}
    (row,) = found["results"]
    assert (row["network"], row["dtype"]) == ("784-128-10 relu", "float32")
    assert row["time_ratio"]["low"] <= row["time_ratio"]["median"] <= row["time_ratio"]["high"]
    assert row["memory_ratio"] <= 1.0
    assert row["autodiff"]["flops"] > 0
    assert "784-128-10 relu" in capsys.readouterr().out


@pytest.mark.parametrize("case", step_cost.CASES.values(), ids=step_cost.CASES.keys())
def test_memory_mark_is_met(case: step_cost.Case) -> None:
    """What the compiler plans does not depend on the machine's load, so that a test can hold it."""
    row = step_cost.compare(case, "float32", step_cost.Config(rounds=1, block_ms=1))
    assert row["memory_ratio"] <= step_cost.MEMORY_MARK


def test_blocks_take_turns_in_swapped_order() -> None:
    calls: list[str] = []
    seconds = measure.interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, block_s=0.0)
    assert calls == ["a", "b", "a", "b", *"ba", *"ab"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
