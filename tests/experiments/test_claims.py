"""Every experiment on a claim: it runs, its verdict follows from its numbers, and the docs show what was recorded."""

import copy
import json
import math
import pathlib
from typing import Any

import numpy as np
import pytest

from experiments import gallery, stable_softmax
from experiments.common.claims import Experiment, more, spread

pytestmark = pytest.mark.once

EXPERIMENTS = gallery.claims()
RECORDS = {one["name"]: one for one in gallery.recorded(gallery.RECORDS)}
each = pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS.keys())

# Made-up numbers: where in the recorded ones, what instead, and which of the checks has to fail then.
WRONG: dict[str, list[tuple[tuple[Any, ...], Any, int]]] = {
    "xor": [
        (("linear", "outputs"), [0.5, 0.5, 0.5, 0.502], 0),
        (("logistic", "outputs"), [0.1, 0.9, 0.9, 0.1], 0),
        (("known", "outputs"), [0, 1, 1, 1e-6], 1),
        (("trained", "2", "found"), [0.0] * 5, 2),
        (("trained", "2", "found"), [1.0] * 5, 2),
        (("trained", "8", "found"), [0.1, 0.2, 0.3, 0.2, 0.3], 3),
    ],
    "activations": [
        (("difference", "tanh"), [0, 0, 2e-14], 0),
        (("maxout", "maxout learns $|x|$", "errors"), [0.1, 0.03], 1),
    ],
    "composition_is_linear": [
        (("apart", "4"), [1e-7, 2e-5], 0),
        (("same predictions", "8"), [1.0, 0.999], 0),
        (("linear", "4"), [99.0, 99.1, 99.2, 99.1, 99.0], 1),
    ],
    "units_and_losses": [
        (("gradient", "sigmoid, negative log-likelihood"), [0.5] * 201, 0),
        (("gradient", "softmax, squared error"), [0.5] * 201, 1),
        (("trained", "softmax, squared error", "p"), [[0.5, 0.95, 0.99]] * 5, 2),
        (("trained", "softmax, negative log-likelihood", "p"), [[0.1] * 400 + [0.95]] * 5, 2),
    ],
    "stable_softmax": [
        (("first wrong", "softmax, shifted, float32", "value"), [None, 300.0], 0),
        (("first wrong", "log-softmax, shifted, bfloat16", "gradient"), [90.0], 0),
        (("first wrong", "softmax, naive, float64"), {"value": [None], "gradient": [None]}, 1),
    ],
    "two_class_softmax": [
        (("rule",), [1e-16, 1e-12], 0),
        (("autodiff",), [1e-12], 0),
        (("example", "delta1"), [0.5, -0.5], 1),
        (("logistic",), [1e-12], 2),
        (("trained",), [1e-8], 2),
    ],
    "chain_rule_order": [
        (("apart",), [1e-14, 1e-11], 0),
        (("count", "back, reused"), [1, 4, 16, 64, 256, 1024], 1),
        (("seconds", "back, anew for each layer"), [[1, 2, 4, 8, 16, 32]], 1),
        (("count", "each path"), [1, 2, 3, 4, 5, 6, 7], 2),
        (("seconds", "each path"), [[1, 2, 3, 4, 5, 6, 7]], 2),
        (("count", "forward"), [1, 2, 3, 4, 5, 6], 3),
    ],
    "depth_folds_space": [
        (("one layer of 10",), [56, 55], 0),
        (("one layer of 8",), [36, 36], 0),
        (("two layers of 4",), [44, 43], 1),
        (("folds", "8"), 255, 2),
        (("folds of the plane", "3"), 63, 3),
        (("one layer in the plane", "2"), 16, 3),
        (("apart",), [1e-7, 1e-4], 4),
    ],
    "universal_approximation": [
        (("built", "smooth"), [0.3, 0.2, 0.1, 0.09, 0.08, 0.07], 0),
        (("built", "stepped"), [0.3, 0.2, 0.2, 0.2, 0.2, 0.2], 0),
        (("built", "wiggly"), [0.5, 0.1, 0.2, 0.1, 0.05, 0.01], 1),
        (("trained", "wiggly, sigmoid"), [0.5, 0.5, 0.4, 0.4, 0.4, 0.3, 0.3, 0.2], 2),
    ],
    "mean_and_median": [
        (("learned", "squared error", "center"), [[0.0] * 191], 0),
        (("learned", "absolute error", "center"), [[0.0] * 191], 1),
        (("learned", "Gaussian likelihood", "spread"), [[1.0] * 191], 2),
        (("learned", "Laplace likelihood", "spread"), [[1.0] * 191], 3),
    ],
}


@each
def test_it_runs_and_says_what_it_found(
    experiment: Experiment, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment.run(["--smoke", "--out", str(tmp_path)]) in (0, 1)
    found = json.loads((tmp_path / f"{experiment.name}.json").read_text())
    assert found["command"] == f"python -m experiments.{experiment.name} --smoke"
    assert found["packages"]["jax"] and found["device"]["kind"] and found["config"]["seeds"] >= 1
    assert (found["verdict"] == "holds") == all(check["holds"] for check in found["checks"])
    assert f"The claim {found['verdict']}." in capsys.readouterr().out
    assert (tmp_path / f"{experiment.name}.png").stat().st_size < 150_000


@each
def test_the_verdict_follows_from_the_recorded_numbers(experiment: Experiment) -> None:
    found = RECORDS[experiment.name]
    assert (found["claim"], found["source"]) == (experiment.claim, experiment.source)
    checks = [{"criterion": c.criterion, "holds": c.holds} for c in experiment.judge(found["numbers"])]
    assert checks == [{name: check[name] for name in ("criterion", "holds")} for check in found["checks"]]
    assert found["verdict"] == ("holds" if all(check["holds"] for check in checks) else "does not hold")
    assert "--smoke" not in found["command"]
    assert (gallery.DOCS / "figures" / f"{experiment.name}.png").stat().st_size < 150_000


@each
def test_made_up_numbers_change_the_verdict(experiment: Experiment) -> None:
    wrong = WRONG[experiment.name]
    assert {index for _, _, index in wrong} == set(range(len(RECORDS[experiment.name]["checks"]))), (
        "each check fails once"
    )
    for path, value, index in wrong:
        numbers = copy.deepcopy(RECORDS[experiment.name]["numbers"])
        at = numbers
        for name in path[:-1]:
            at = at[name]
        assert path[-1] in at
        at[path[-1]] = value
        assert not experiment.judge(numbers)[index].holds, path


@pytest.mark.parametrize("name", sorted(set(EXPERIMENTS) - {"stable_softmax"}))  # which records sizes, see below
def test_what_is_no_number_does_not_hold(name: str) -> None:
    def spoiled(value: Any) -> Any:
        if isinstance(value, dict):  # an axis is not found, but given
            return {name: one if name in ("z", "grid") else spoiled(one) for name, one in value.items()}
        if isinstance(value, list):
            return [spoiled(one) for one in value]
        return math.nan if isinstance(value, float) else value

    checks = EXPERIMENTS[name].judge(spoiled(RECORDS[name]["numbers"]))
    assert not all(check.holds for check in checks)


def test_a_softmax_that_is_no_number_is_wrong() -> None:
    sizes = np.array([1.0, 10.0, 100.0])
    assert stable_softmax.smallest(sizes, np.array([0.0, math.nan, 0.0]), 1e-7) == 10.0
    assert stable_softmax.smallest(sizes, np.array([0.0, 8e-7, 7e-7]), 1e-7) is None
    made = np.array([[math.inf, -math.inf], [math.nan, 0.0], [1.0, math.inf]])
    found = stable_softmax.difference(made, np.array([[math.inf, -math.inf], [0.0, 0.0], [1.0, 2.0]]))
    assert found[0] == 0 and math.isnan(found[1]) and math.isinf(found[2])


@each
def test_help_and_errors(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, code, said in ((["--help"], 0, "--smoke"), (["--seeds", "0"], 2, "--seeds is positive, got 0")):
        with pytest.raises(SystemExit) as exit_:
            experiment.run(argv)
        assert exit_.value.code == code
        assert said in "".join(capsys.readouterr())


def test_the_page_is_that_of_the_records() -> None:
    assert list(RECORDS) == list(EXPERIMENTS)
    shown = (gallery.DOCS / "gallery.md").read_text(encoding="utf-8")
    assert shown == gallery.page(list(RECORDS.values()), "figures")


def test_all_writes_the_page(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gallery.run(["--only", "two_class_softmax", "--smoke", "--out", str(tmp_path)]) in (0, 1)
    page = (tmp_path / "gallery.md").read_text()
    assert "## two_class_softmax" in page and "![" in page and "./two_class_softmax.png" in page
    with pytest.raises(SystemExit):
        gallery.run(["--only", "perceptron"])
    assert "got 'perceptron'" in capsys.readouterr().err


def test_spread_and_more() -> None:
    assert spread([0.25]) == "0.25"
    assert spread([1.0, 3.0]) == "2 ± 1.4 (2 seeds)"
    assert more([1.0, 1.1, 0.9], [0.0, 0.1, -0.1])
    assert not more([1.0, 2.0, 0.0], [0.9, 0.0, 1.8])
    assert not more([math.nan, 1.0], [0.0, 0.1])
