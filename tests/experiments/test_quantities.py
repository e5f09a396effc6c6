"""The benchmark of quantities for a moment, without the libraries that it compares with; numbers are not judged."""

import json
import pathlib

import jax
import numpy as np
import pytest

import funcnn as fnn
from experiments.benchmarks import quantities
from experiments.benchmarks import quantities_report as report
from experiments.benchmarks.networks import Network
from experiments.benchmarks.quantities_peers import PEERS, Problem

pytestmark = pytest.mark.once

NETWORK = Network((6, 5, 4, 3), 8, 1, 0.0, 0.0)
NORMS = "norms, without the gradient"


@pytest.fixture
def no_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same test wherever it runs."""
    for name, peer in PEERS.items():
        if "torch" in peer.modules:
            monkeypatch.setitem(PEERS, name, peer._replace(modules=("a_library_that_nobody_has",)))


@pytest.mark.usefixtures("no_pytorch")
def test_runs_and_writes_what_it_measured(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantities.main(["--smoke", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "quantities.json").read_text())
    assert found["left_out"] == dict.fromkeys(["BackPACK", "Opacus, ghost", "Opacus, plain"], "not installed")
    assert [row["quantity"] for row in found["results"]] == [line.label for line in quantities.LINES]
    for row in found["results"]:
        assert row["over_gradient"]["median"] > 0
        assert ("over_theirs" in row) == (row["agrees"] is True) == (row["peer"] == "vmap(grad)")
    out = capsys.readouterr().out
    assert "BackPACK is left out: not installed" in out
    assert "from those of vmap(grad), allowed 1e-12: they agree" in out


@pytest.mark.usefixtures("no_pytorch")
def test_values_that_differ_are_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vmap = PEERS["vmap"]

    def off(problem: Problem, what: str) -> object:
        right = vmap.make(problem, what)
        return right._replace(values=lambda: [value * (1 + 1e-9) for value in right.values()])

    monkeypatch.setitem(PEERS, "vmap", vmap._replace(make=off))
    assert quantities.main(["--smoke", "--only", "norms", "--out", str(tmp_path)]) == 1
    *_, row = json.loads((tmp_path / "quantities.json").read_text())["results"]
    assert row["difference"] == pytest.approx(1e-9, rel=1e-3)
    assert "they do not agree" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")  # of torch, about its own hooks
@pytest.mark.parametrize("line", quantities.LINES, ids=lambda line: line.label)
def test_values_are_the_peers(line: quantities.Line) -> None:
    for module in PEERS[line.peer].modules:
        pytest.importorskip(module)
    assert quantities.agreement(line, NETWORK)["agrees"] is (None if line.same == quantities.NONE else True)


@pytest.mark.filterwarnings("ignore")  # of torch, about its own hooks
@pytest.mark.parametrize(("quantity", "exact"), [("sum_of_squares", "DiagGGNExact"), ("kronecker_factors", "KFLR")])
def test_what_is_drawn_has_the_peers_exact_values_as_its_mean(quantity: str, exact: str, x64: None) -> None:
    for module in PEERS["backpack"].modules:
        pytest.importorskip(module)
    problem = Problem.of(NETWORK.sizes, "relu", *NETWORK.examples())
    theirs = PEERS["backpack"].make(problem, exact)
    theirs.run()
    rows = fnn.backprop.rows(problem.objective, of="fisher", samples=4000)
    drawn = jax.jit(lambda *a: getattr(fnn.backprop.quantities, quantity)(rows(*a, sample_key=jax.random.key(0))))
    ours = jax.tree.leaves(drawn(problem.params, problem.batch))
    # Of 4,000 draws, the error of a mean is about 1/60 of its size; five of them.
    assert quantities.furthest(ours, theirs.values()) <= 5 / 60


def test_reused_buffers_hold_the_same_values() -> None:
    (reused,) = [line for line in quantities.LINES if line.reuse]
    problem, _ = quantities.first_batch("relu", NETWORK)
    (run, _), (again, _) = (quantities.program(line, problem) for line in (reused, reused._replace(reuse=False)))
    first = jax.tree.leaves(run())
    where = [array.unsafe_buffer_pointer() for array in first]
    second = jax.tree.leaves(run())
    assert [array.unsafe_buffer_pointer() for array in second] == where
    assert all(array.is_deleted() for array in first)
    for ours, fresh in zip(second, jax.tree.leaves(again()), strict=True):
        np.testing.assert_allclose(ours, fresh, rtol=1e-6)


def test_the_difference_is_that_of_the_worst_array() -> None:
    a = [np.array([1.0, -4.0]), np.array([2.0])]
    assert quantities.furthest(a, a) == 0
    assert quantities.furthest([a[0] + 0.2, a[1] + 0.01], a) == pytest.approx(0.05)
    assert np.isnan(quantities.furthest([a[0], a[1] * np.nan], a))
    with pytest.raises(ValueError, match="shapes differ"):
        quantities.furthest([a[0], a[0]], a)


@pytest.mark.parametrize(("mark", "reached"), [(2.0, True), (1.9, False), (None, None)])
def test_a_mark_is_the_most_that_a_median_may_be(mark: float | None, reached: bool | None) -> None:
    found = quantities.bounded(np.array([1.0, 2.0, 9.0]), mark)
    assert (found["median"], found["reached"]) == (2.0, reached)


def test_a_missed_mark_is_red_and_nan_is_no_agreement() -> None:
    ratio = {"median": 3.0, "low": 3.0, "high": 3.0, "mark": 2.0, "reached": False}
    seconds = {name: {"median": 0.004} for name in ("ours", "gradient", "theirs", "their_gradient")}
    row = {
        "quantity": "variance", "peer": "BackPACK", "peer_gradient": "PyTorch", "note": "", "seconds": seconds,
        "over_gradient": ratio, "theirs_over_gradient": ratio, "over_theirs": {**ratio, "mark": None, "reached": None},
        "difference": float("nan"), "tolerance": 1e-12, "agrees": False,
    }  # fmt: skip
    cells = [list(column.cells) for column in report.as_table([row], NETWORK).columns]
    assert cells == [["variance"], ["[bold red]3.00[/bold red]"], ["2"], ["BackPACK"], ["3.00"], ["3.00"], [""]]
    said = report.verdict([row, row | {"over_gradient": ratio | {"reached": True}}])
    assert "funcnn 4.00 ms, PyTorch 4.00 ms" in said
    assert "nan from those of BackPACK" in said and "do not agree" in said
    assert "marks: 1 of 2 reached; [bold red]missed[/bold red]: variance, over a gradient 3 > 2" in said
