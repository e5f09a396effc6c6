"""How training grows, measured for a moment; the numbers of a smoke run are not judged, its arithmetic is."""

import json
import pathlib

import numpy as np
import pytest

from experiments.benchmarks import laws, scaling, scaling_report
from experiments.benchmarks.networks import Network
from experiments.benchmarks.trainings import Training, ensemble_bytes, seconds_of
from funcnn.train import History

pytestmark = pytest.mark.once


def test_smoke_run_records_everything(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert scaling.main(["--smoke", "--out", str(tmp_path)]) == 0
    png = (tmp_path / "scaling.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(png) < 150_000
    found = json.loads((tmp_path / "scaling.json").read_text())
    assert [sweep["sweep"] for sweep in found["sweeps"]] == ["width", "depth", "batch", "runs"]
    for sweep in found["sweeps"]:
        for curve in sweep["curves"].values():
            assert all(1e-6 < seconds < 1 for seconds in curve["seconds"])
            assert np.median(curve["rounds"], axis=1) == pytest.approx(curve["seconds"], rel=1e-5)
    gain = found["throughput"]
    assert gain["losses"]["reached"]
    assert gain["whole"]["fit_s"]["median"] > gain["inside"]["fit_s"]["median"] > 0
    assert gain["whole"]["fit_many_s"]["median"] > gain["inside"]["fit_many_s"]["median"] > 0
    assert "2 runs of 126 steps" in capsys.readouterr().out


def test_exponent_is_that_of_the_upper_half() -> None:
    sizes = [1, 2, 4, 8, 16, 32]
    assert laws.exponent(sizes, [3.0 * size**1.7 for size in sizes]) == pytest.approx(1.7)
    assert laws.exponent(sizes, [5.0, 5.0, 5.0, *(size**2.0 for size in sizes[3:])]) == pytest.approx(2.0)
    assert laws.exponent(sizes, [size**2.0 for size in sizes[:4]] + [64.0, 64.0]) < 1.0


@pytest.mark.parametrize(("count", "first"), [(2, 0), (3, 1), (4, 2), (5, 2), (9, 4)])
def test_upper_half_has_two_sizes_at_least(count: int, first: int) -> None:
    assert laws.upper(range(count)) == first


def test_a_slope_needs_two_sizes() -> None:
    with pytest.raises(ValueError, match="two sizes"):
        laws.exponent([8], [1.0])


def test_line_knows_what_is_fixed() -> None:
    sizes = [1, 2, 4, 8, 16]
    line = laws.line(sizes, [7.0 + 3.0 * size for size in sizes])
    assert line == pytest.approx((7.0, 3.0, 1.0))
    assert laws.line(sizes, [2.0] * 5) == pytest.approx((2.0, 0.0, 1.0))


@pytest.mark.parametrize(("power", "reached"), [(1.0, True), (0.9, True), (1.2, False), (2.0, False)])
def test_linear_growth_is_told_from_faster(power: float, reached: bool) -> None:
    sizes = scaling.RUNS
    assert scaling.linear(sizes, [2.0 * size**power for size in sizes])["reached"] is reached


def test_scatter_is_not_linear() -> None:
    sizes = [1, 2, 4, 8, 16, 32]
    found = scaling.linear(sizes, [1.0, 20.0, 4.0, 30.0, 8.0, 32.0])
    assert found["exponent"] < scaling_report.EXPONENT_MARK
    assert not found["reached"]


def test_slopes_are_taken_within_rounds() -> None:
    """In the second round the machine was ten times slower."""
    found = scaling.curve([1, 2, 4, 8], [[1.0, 10.0], [2.0, 20.0], [4.0, 40.0], [8.0, 80.0]])
    assert found["slope"] == pytest.approx({"median": 1.0, "low": 1.0, "high": 1.0})
    assert found["slope_from"] == 4
    assert found["seconds"] == [5.5, 11.0, 22.0, 44.0]


@pytest.mark.parametrize(("off", "reached"), [(0.5e-4, True), (2e-4, False), (np.nan, False)])
def test_losses_are_compared_run_by_run(off: float, reached: bool) -> None:
    alone = np.geomspace(2.0, 0.1, 12).reshape(2, 6)
    many = alone.copy()
    many[:, -1] *= 1.01  # after the first epochs, rounding has grown
    many[1, 2] *= 1 + off
    found = scaling_report.compare_losses(many, alone)
    assert found["reached"] is reached
    assert np.isnan(off) or found["all"] == pytest.approx(0.01)


def test_time_for_a_step_leaves_out_the_first_epoch() -> None:
    history = History({"seconds": np.array([5.0, 6.0, 7.0]), "step": np.array([10, 20, 30])}, np.zeros(30))
    assert seconds_of(history) == (7.0, 0.1)
    first = History({"seconds": np.array([5.0]), "step": np.array([10])}, np.zeros(10))
    assert seconds_of(first) == (5.0, 0.5)


def test_planned_memory_holds_the_states_of_all_runs() -> None:
    training = Training(Network((8, 4, 3), 4, 2, 0.0, 0.0))
    found = ensemble_bytes(training, 16)
    params = 4 * (8 * 4 + 4 + 4 * 3 + 3)
    assert found["data"] == 4 * 8 * (8 + 1)
    assert 16 * 3 * params <= found["arguments"] < 2 * 16 * 3 * params  # Adam keeps two moments
    assert found["all"] == sum(value for name, value in found.items() if name != "all")
