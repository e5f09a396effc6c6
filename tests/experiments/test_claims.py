"""Every experiment on a claim: it runs, its verdict follows from its numbers, and the docs show what was recorded."""

import copy
import json
import math
import pathlib
import types
from typing import Any

import numpy as np
import pytest

import funcnn as fnn
from experiments import gallery, kernels, mnist_records, regularizers, stable_softmax
from experiments.common.claims import Experiment, more, spread

pytestmark = pytest.mark.once

EXPERIMENTS = gallery.claims()
RECORDS = {one["name"]: one for one in gallery.recorded(gallery.RECORDS)}
each = pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS.keys())

# Made-up numbers: where in the recorded ones, what instead, and which of the checks has to fail then.
MadeUp = dict[str, list[tuple[tuple[Any, ...], Any, int]]]
WRONG: MadeUp = {
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
        (("which digit", "apart", "4"), [1e-7, 1e-7, 1e-7, 1e-7, 2e-5], 0),
        (("odd or even", "same predictions", "8"), [1.0, 1.0, 1.0, 1.0, 0.999], 0),
        (("which digit", "linear", "4"), [99.0, 99.1, 99.2, 99.1, 99.0], 1),
        (("odd or even", "linear", "2"), [93.0, 93.1, 93.2, 93.1, 93.0], 1),
        (("odd or even", "relu"), {"1": [90.0] * 5, "2": [92.0] * 5}, 2),
    ],
    "units_and_losses": [
        (("gradient", "sigmoid, negative log-likelihood"), [0.5] * 201, 0),
        (("gradient", "softmax, squared error"), [0.5] * 201, 1),
        (("trained", "softmax, squared error"), [[0.5, 0.95, 0.99]] * 5, 2),
        (("trained", "softmax, negative log-likelihood"), [[0.1] * 400 + [0.95]] * 5, 2),
        (("trained", "sigmoid, negative log-likelihood"), [[0.1] * 500] * 5, 2),
    ],
    "stable_softmax": [
        (("first wrong", "softmax, shifted, float32", "value"), [None, 300.0], 0),
        (("first wrong", "log-softmax, shifted, bfloat16", "gradient"), [90.0], 0),
        (("first wrong", "softmax, naive, float64"), {"value": [None], "gradient": [None]}, 1),
    ],
    "two_class_softmax": [
        (("rule", "delta2"), [1e-16, 1e-16, 1e-16, 1e-16, 1e-12], 0),
        (("autodiff", "z4"), [1e-12] * 5, 0),
        (("library",), [1e-12], 0),
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
    "features": [
        (("between",), [[0.42, 0.6, 0.6, 0.75, 0.79], [0.42, 0.6, 0.61, 0.75, 0.79], [0.42, 0.61, 0.6, 0.75, 0.79]], 0),
        (("before training", "between"), [[0.42, 0.44, 0.45, 0.46, 0.47]] * 5, 1),
        (("in the plane",), [[60.0, 65.0, 66.0, 65.0, last] for last in (60.0, 61.0, 59.0)], 2),
        (("before training", "purity"), [[60.0, 60.0, 60.0, 85.0], [60.0, 60.0, 60.0, 84.0]], 3),
        (("own average", "linear, no weight decay"), [10, 10, 9, 10, 10], 4),
        (("likeness", "linear, weight decay"), [0.44, 0.43, 0.45, 0.44, 0.43], 5),
    ],
    "kernels": [
        (("multiplications", "digits, kernel machine"), [[5000, 9000, 12000, 14000]] * 5, 0),
        (("multiplications", "plane, kernel machine"), [[200, 400, 800, 1900]] * 5, 0),
        (("multiplications", "plane, relu network"), [[256, 256, 256, 512]] * 5, 1),
        (("multiplications", "digits, relu network"), [[9000, 9000, 9000, 9000]] * 5, 1),
        (("accuracy", "digits, relu network"), [[87.0, 93.0, 96.0, 96.5]] * 5, 2),
        (("accuracy", "plane, relu network"), [[78.0, 85.0, 86.0, 87.5]] * 5, 2),
        (("microseconds", "plane, kernel machine"), [10.0, 15.0, 20.0, 25.0], 3),
        (("microseconds", "digits, relu network"), [1.0, 1.2, 1.5, 2.5], 3),
        (
            ("by units", "plane, RBF, learned centres"),
            [[at_4, 79.0, 88.0] for at_4 in (67.0, 66.0, 68.0, 67.0, 66.0)],
            4,
        ),
        (("held out", "digits, relu network, 64 units"), [97.0, 96.0, 95.0, 94.0, 93.0, 90.0, 50.0, 10.0], 5),
        (("held out", "digits, RBF, fixed centres, 16 units"), [70.0, 72.0, 73.0, 74.0, 75.0, 75.0, 75.5, 76.0], 5),
        (("held out", "plane, RBF, learned centres, 4 units"), [70.0, 72.0, 73.0, 74.0, 75.0, 75.0, 75.5, 76.0], 5),
    ],
    "optimizers": [
        (("cost", "gradient descent", "32768", "examples"), [1e5] * 5, 0),
        (("cost", "SGD", "32768", "examples"), [4e4] * 5, 0),
        (("cost", "SGD", "512", "examples"), ["inf"] * 5, 0),
        (("cost", "gradient descent", "32768", "seconds"), [0.2] * 5, 1),
        (("cost", "SGD", "32768", "seconds"), [0.5] * 5, 1),
        (("curves", "Adam", "needed"), [520.0, 530.0, 510.0, 540.0, 525.0] * 2, 2),
        (("curves", "SGD", "needed"), ["inf"] * 10, 2),
        (("curves", "Adagrad", "best"), 0, 3),
        (("cost", "SGD", "2048", "best"), 2, 3),
    ],
    "initialization": [
        (("bias 0.1", "0", "unequal"), [0.0, 0.0, 2e-4, 0.0, 0.0], 0),
        (("bias 0", "1", "unequal"), [0.0, 1.6, 1.6, 1.6, 1.6], 0),
        (("bias 0", "0", "lowest loss"), [2.3, 2.3, 2.3, 2.3, 2.25], 1),
        (("bias 0", "0.7071", "accuracy"), [89.0, 90.0, 90.5, 89.5, 90.0], 2),
        (("bias 0", "1", "learning rate"), 3.0, 2),
        (("bias 0", "0.0625", "accuracy"), [90.0, 91.0, 90.0, 90.0, 90.0], 3),
        (("bias 0", "16", "learning rate"), 1e-7, 3),
        (("bias 0", "16", "accuracy"), [95.0] * 5, 3),
        (("bias 0.1", "1", "alive"), [94.0, 94.5, 94.2, 94.3, 94.1], 4),
        (("bias 0.1", "1", "accuracy"), [97.0, 98.0, 97.5, 97.0, 98.0], 5),
    ],
    "vanishing_gradients": [
        (("measured", "relu, He"), [[0.1 * i for i in range(100)]] * 3, 0),
        (("predicted", "tanh, small"), [0.0] * 100, 0),
        (("measured", "sigmoid, Glorot"), [[-1.1 * i for i in range(100)]] * 3, 1),
        (("accuracy", "relu, He", "5"), [40.0, 45.0, 50.0], 2),
        (("accuracy", "sigmoid, small", "30"), [50.0, 60.0, 50.0], 3),
    ],
    "wide_and_regularized": [
        (("plain", "1000", "train"), [1.0, 2.0, 1.0, 1.0, 1.0], 0),
        (("plain", "1000", "test"), [11.0, 12.0, 11.0, 10.0, 11.0], 0),
        (("plain", "32", "test"), [11.0, 12.0, 11.0, 10.0, 11.0], 1),
        (("regularized", "64", "test"), [5.0, 5.1, 5.2, 5.0, 5.0], 2),
        (("regularized", "1000", "test"), [9.0, 9.0, 9.0, 9.0, float("nan")], 2),
    ],
    "maxout": [
        (("relu differs", "gradient of w"), 1, 0),
        (("curves", "$x^2$", "4", "error"), 1e-3, 1),
        (("curves", "$-x^2$", "6", "error"), 1e-3, 2),
        (("errors", "relu"), [1.0, 1.1, 1.2], 3),
        (("parameters", "relu"), 1000, 3),
        (("errors", "relu, dropout"), [1.0, 1.1, 1.2], 4),
    ],
    "depth_generalizes": [
        (("1", "test error"), [[1.0] * 15] * 3, 0),
        (("4", "parameters"), 100_000, 0),
        (("8", "test error"), [[5.0] * 15] * 3, 1),
        (("8", "test loss"), [[0.1, *[0.2] * 14]] * 3, 2),
    ],
    "regularizers": [
        (("small", "dropout", "test"), [9.5, 9.4, 9.3, 9.2, 9.8], 0),
        (("small", "label smoothing", "test"), [3.0, 3.1, 3.2, 3.1, 3.0], 1),
        (("small", "rotations", "test"), [9.5, 9.4, 9.3, 9.2, 9.8], 1),
        (("full", "none", "test"), [9.5, 9.4], 2),
        (("full", "shifts", "test"), [0.5, 0.5], 2),  # little of the points, but much of the error
    ],
    "mnist_records": [
        (("relu", "test error"), [1.7, 1.6, 1.6], 0),
        (("relu, dropout, max-norm", "test error"), [1.2, 1.1, 1.1], 1),
        (("maxout, dropout", "test error"), [1.1, 1.0, 1.0], 2),
    ],
    "mean_and_median": [
        (("learned", "squared error", "center"), [[0.0] * 191], 0),
        (("learned", "absolute error", "center"), [[0.0] * 191], 1),
        (("learned", "Gaussian likelihood", "spread"), [[1.0] * 191], 2),
        (("learned", "Laplace likelihood", "spread"), [[1.0] * 191], 3),
    ],
}
# The same for checks that do not hold: what would have had to be seen.
RIGHT: MadeUp = {
    "optimizers": [(("curves", "SGD", "needed"), [800.0, 810.0, 820.0, 830.0, 840.0] * 2, 2)],
    "initialization": [(("bias 0.1", "1", "alive"), [99.0, 99.1, 99.2, 99.3, 99.4], 4)],
    "maxout": [
        (("errors", "maxout, 2 pieces"), [1.0, 1.01, 1.02], 3),
        (("errors", "maxout, 5 pieces, dropout"), [1.0, 1.01, 1.02], 4),
    ],
    "regularizers": [
        (
            ("small",),
            {k: {"test": [one] * 5} for k, one in {"none": 9, "shifts": 5, "rotations": 6, "L2": 8}.items()},
            0,
        )
    ],
    "depth_generalizes": [
        (("2", "test error"), [[1.0] * 15, [1.1] * 15, [1.2] * 15], 0),
        (("8", "test error"), [[1.0] * 15, [1.1] * 15, [1.2] * 15], 1),
        (("8", "test loss"), [[0.2] * 14 + [0.01]] * 3, 2),
    ],
    "mnist_records": [(("maxout, dropout", "test error"), [1.01, 1.0, 0.99], 2)],
}


@each
def test_it_runs_and_says_what_it_found(
    experiment: Experiment, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment.run(["--smoke", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / f"{experiment.name}.json").read_text())
    assert found["command"] == f"python -m experiments.{experiment.name} --smoke"
    assert found["packages"]["jax"] and found["device"]["kind"] and found["config"]["seeds"] >= 1
    assert (found["verdict"] == "holds") == all(check["holds"] for check in found["checks"])
    assert "A moment's run: the numbers say nothing of the claim." in capsys.readouterr().out
    assert (tmp_path / f"{experiment.name}.png").stat().st_size < 150_000


def test_a_real_run_ends_with_the_verdict(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert EXPERIMENTS["two_class_softmax"].run(["--seeds", "1", "--out", str(tmp_path)]) == 0
    assert "The claim holds." in capsys.readouterr().out


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
    wrong, right = WRONG[experiment.name], RIGHT.get(experiment.name, [])
    checks = RECORDS[experiment.name]["checks"]
    assert {index for *_, index in wrong} == set(range(len(checks))), "each check fails once"
    assert {index for *_, index in right} >= {i for i, check in enumerate(checks) if not check["holds"]}, "... or holds"
    for made_up, holds in ((wrong, False), (right, True)):
        for path, value, index in made_up:
            numbers = copy.deepcopy(RECORDS[experiment.name]["numbers"])
            at = numbers
            for name in path[:-1]:
                at = at[name]
            assert path[-1] in at
            at[path[-1]] = value
            assert experiment.judge(numbers)[index].holds == holds, path


def spoiled(value: Any) -> Any:
    """With NaN in the place of every float."""
    if isinstance(value, dict):  # an axis is not found, but given
        return {name: one if name in ("z", "grid") else spoiled(one) for name, one in value.items()}
    if isinstance(value, list):
        return [spoiled(one) for one in value]
    return math.nan if isinstance(value, float) else value


@pytest.mark.parametrize("name", sorted(set(RECORDS) - {"stable_softmax"}))  # which records sizes, see below
def test_what_is_no_number_does_not_hold(name: str) -> None:
    checks = EXPERIMENTS[name].judge(spoiled(RECORDS[name]["numbers"]))
    assert not all(check.holds for check in checks)
    for path, _, index in WRONG[name]:  # and of the last seed alone, which `max` of Python would pass over
        numbers = copy.deepcopy(RECORDS[name]["numbers"])
        at = numbers
        for part in path[:-1]:
            at = at[part]
        found = at[path[-1]]
        at[path[-1]] = [*found[:-1], spoiled(found[-1])] if isinstance(found, list) else spoiled(found)
        if at[path[-1]] != found:  # not so for whole numbers
            assert not EXPERIMENTS[name].judge(numbers)[index].holds, path


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
    assert shown == gallery.page(list(RECORDS.values()), "figures", gallery.COURSE)


def test_all_writes_the_page(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gallery.run(["--only", "two_class_softmax", "--smoke", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "gallery.md").read_text()
    assert "only a moment's run" in page and "The claim" not in page
    assert "## two_class_softmax" in page and "![" in page and "./two_class_softmax.png" in page
    for argv, said in (
        (["--only", "perceptron"], "got 'perceptron'"),
        (["--only"], "got none"),
        (["--data-dir", "/there/is/none"], "/there/is/none"),
        (["--keep", "--smoke"], "leave one of them out"),
    ):
        with pytest.raises(SystemExit):
            gallery.run([*argv, "--out", str(tmp_path / "none")])
        assert said in capsys.readouterr().err
        assert not (tmp_path / "none").exists()  # it is told before the first one runs
    with pytest.raises(SystemExit):
        gallery.run(["--keep", "--out", str(gallery.RECORDS)])
    assert "give another --out" in capsys.readouterr().err


def test_all_tells_an_old_record_that_does_not_fit_before_it_runs(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--only", "two_class_softmax", "--smoke", "--out", str(tmp_path)]
    bad = tmp_path / "kernels.json"
    changes = [{"checks": [{}]}, {"checks": {}}, {"packages": {}}, {"device": None}, {"name": "xor"}, {"verdict": 3}]
    for text in (*(json.dumps(RECORDS["kernels"] | change) for change in changes), "[" * 200_000):
        bad.write_text(text)
        with pytest.raises(SystemExit):
            gallery.run(argv)
        assert f"{bad} is no record" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [bad.name]
    bad.unlink()


def test_all_says_what_a_script_said_without_a_traceback(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = gallery.RECORDS / "two_class_softmax.json"
    (tmp_path / real.name).write_bytes(real.read_bytes())
    assert gallery.run(["--only", "two_class_softmax", "--smoke", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "is of a real run" in said and "Failed: two_class_softmax" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("name", "argv", "said"),
    [
        ("xor", ["--widths"], "--widths takes at least 2 values, got 0"),
        ("xor", ["--widths", "4", "2"], "--widths takes numbers that grow, got 4 2"),
        ("xor", ["--widths", "1", "2"], "--widths is at least 2, got 1"),
        ("xor", ["--seeds", str(10**20)], "--seeds is at most"),
        ("composition_is_linear", ["--depths", "2", "4"], "--depths are 1 and others, got 2 4"),
        ("maxout", ["--dropout", "1"], "--dropout is below 1, got 1"),
        ("kernels", ["--few-units", "4", "4000"], "only 1000 examples to be centres, got 4000"),
        ("optimizers", ["--optimizers", "SGD", "Adamw"], "got 'Adamw'"),
        ("optimizers", ["--optimizers", "Adam", "momentum"], "--optimizers takes SGD and others"),
        ("optimizers", ["--steps", "1"], "--steps is at least 43, an epoch, got 1"),
        ("regularizers", ["--only", "shifts"], "--only takes a name besides"),
        ("wide_and_regularized", ["--wrong", "-1"], "--wrong is positive, got -1"),
        ("units_and_losses", ["--start", "1e300"], "--start is below 1e+06, got 1e+300"),
        ("kernels", ["--learning-rates", "0.1", "1"], "--learning-rates takes at least 3 values, got 2"),
        ("xor", ["--smoke", "--seeds=5"], "--smoke has numbers of its own: leave it out, or --seeds"),
        ("xor", ["--learning-rate", "1e300"], "--learning-rate is at most 3.40282e+38"),
        ("units_and_losses", ["--classes", "1"], "--classes is at least 2, got 1"),
        ("features", ["--width", "2000000000"], "--width is at most 10,000"),
    ],
)
def test_options_that_no_run_can_have(
    name: str, argv: list[str], said: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        EXPERIMENTS[name].run([*argv, "--out", str(tmp_path / "none")])
    assert exit_.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_moments_run_does_not_replace_a_real_one(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = gallery.RECORDS / "two_class_softmax.json"
    (tmp_path / real.name).write_bytes(real.read_bytes())
    with pytest.raises(SystemExit):
        EXPERIMENTS["two_class_softmax"].run(["--smoke", "--out", str(tmp_path)])
    assert "is of a real run" in capsys.readouterr().err
    assert (tmp_path / real.name).read_bytes() == real.read_bytes()


def test_trainings_are_neither_overwritten_nor_misread(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "mnist_records-trainings.json"
    for text in ("", "[]", "{}", '{"about": {"smoke": true}, "trainings": [1]}'):
        kept.write_text(text)
        for argv in ([], ["--resume"]):
            with pytest.raises(SystemExit) as exit_:
                EXPERIMENTS["mnist_records"].run(["--smoke", "--out", str(tmp_path), *argv])
            assert exit_.value.code == 2 and str(kept) in capsys.readouterr().err
            assert kept.read_text() == text


def test_a_moments_trainings_may_be_made_again(tmp_path: pathlib.Path) -> None:
    for argv in ([], [], ["--resume"]):
        assert EXPERIMENTS["mnist_records"].run(["--smoke", "--out", str(tmp_path), *argv]) in (0, 1)
    kept = tmp_path / "mnist_records-trainings.json"
    assert mnist_records.Trainings(kept, mnist_records.Config()).kept["trainings"] == []  # nor do they stop a real run
    kept.write_text(kept.read_text().replace('"smoke": true', '"smoke": false'))  # a real run's, which is a loss
    with pytest.raises(SystemExit):
        EXPERIMENTS["mnist_records"].run(["--smoke", "--out", str(tmp_path)])


def test_weights_that_are_not_finite_are_told(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--learning-rate", "1e30", "--seeds", "2", "--epochs", "2", "--linear-epochs", "2", "--width", "2"]
    with pytest.raises(SystemExit):
        EXPERIMENTS["features"].run([*argv, "--out", str(tmp_path)])
    assert "--learning-rate 1e+30 or --l2 is too large" in capsys.readouterr().err


def test_held_out_examples_choose_and_not_those_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    def learner(config: Any, rate: float, *_: Any) -> kernels.Learned:
        return kernels.Learned(lambda x: np.full(len(x), rate == 0.01), 1)  # right of held-out examples with 0.01 alone

    monkeypatch.setitem(kernels.NETWORKS, kernels.NET, learner)
    x = np.zeros((4, 2))
    task = kernels.Task(x, np.zeros(4), (x, np.ones(4)), (x, np.zeros(4)), classes=2, gamma=1.0)
    learn, right = kernels.choose(kernels.Config(), kernels.NET, [task], 4, 4)
    assert learn.args[1] == 0.01 and right == [100.0 * (rate == 0.01) for rate in kernels.Config().learning_rates]  # pyright: ignore[reportFunctionMemberAccess]

    def fit(how: Any, *_: Any) -> dict[str, float]:
        return {"held out": abs(how.strength - 2.0), "test": how.strength, "training": -how.strength}

    monkeypatch.setattr(regularizers, "fit", fit)
    config, data = regularizers.Config(), fnn.data.load_digits()
    method: Any = lambda s: types.SimpleNamespace(strength=s, stops=False)  # noqa: E731
    for choose in (regularizers.on_few, regularizers.on_all):
        found = choose(config, data, method, (1.0, 2.0, 3.0))
        assert found["strength"] == 2.0 and found["held out by strength"] == {1.0: 1.0, 2.0: 0.0, 3.0: 1.0}


def test_spread_and_more() -> None:
    assert spread([0.25]) == "0.25"
    assert spread([1.0, 3.0]) == "2 ± 1.4 (2 seeds)"
    assert more([1.0, 1.1, 0.9], [0.0, 0.1, -0.1])
    assert not more([1.0, 2.0, 0.0], [0.9, 0.0, 1.8])
    assert not more([math.nan, 1.0], [0.0, 0.1])
    assert more([1.0, 1.1], [0.5])  # a constant
    assert not more([1.0], [0.5])  # chance cannot be told from one seed
