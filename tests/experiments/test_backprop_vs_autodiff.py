"""The main job, in process: it runs from end to end, it can fail, and what it writes can be read."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

import funcnn as fnn
from experiments import backprop_vs_autodiff as job
from experiments.common import record
from experiments.common.comparison import compare_curves
from experiments.common.training import Curve

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def as_a_program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """JAX as it is when the job runs by itself; and no data directory from outside."""
    monkeypatch.delenv("FUNCNN_DATA", raising=False)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def run(out: pathlib.Path, *options: str) -> tuple[int, dict[str, Any]]:
    code = job.main(["--smoke", "--out", str(out), *options])
    return code, json.loads((out / "backprop_vs_autodiff-digits.json").read_text())


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id="default"),
        pytest.param(["--net", "graph", "--loss", "mse", "--dtype", "float64", "--l2", "1e-3"], id="graph-float64"),
        pytest.param(
            ["--net", "maxout", "--dtype", "bfloat16", "--loss", "bernoulli_nll", "--dropout", "0.3"],
            id="maxout-bfloat16-dropout",
        ),
    ],
)
def test_runs_and_writes_what_it_found(
    options: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run(tmp_path / "new", *options)
    assert code == 0
    assert found["agree"] is True
    assert found["command"].endswith(" ".join(options))
    assert found["data"] == {"name": "digits", "training": 1347, "test": 450}
    assert set(found["test_correct"]) == {"autodiff", "backprop"}
    assert found["test_accuracy"]["backprop"] == pytest.approx(found["test_correct"]["backprop"] / 450, rel=1e-5)
    assert found["checker"]["before"]["passed"] is found["checker"]["after"]["passed"] is True
    assert len(found["curves"]["step"]) == len(found["curves"]["backprop"]["loss"]) == found["steps"] == 30
    assert all(found["cost"][name]["step_s"]["median"] > 0 for name in ("autodiff", "backprop"))
    assert all(delta > 0 for when in ("before", "after") for delta in found["delta"][when].values())
    figure = (tmp_path / "new" / "backprop_vs_autodiff-digits.png").read_bytes()
    assert figure.startswith(PNG)
    assert len(figure) < 150_000
    printed = capsys.readouterr().out
    assert "450" in printed
    assert "They agree." in printed


def test_fails_where_the_gradient_is_a_thousandth_off(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(objective: fnn.Objective) -> Any:
        def function(*args: Any, **kwargs: Any) -> Any:
            value, grads = fnn.backprop.value_and_grad(objective)(*args, **kwargs)
            return value, jax.tree.map(lambda g: 1.001 * g, grads)

        return function

    monkeypatch.setitem(job.GRADIENTS, "backprop", wrong)
    code, found = run(tmp_path, "--optimizer", "sgd", "--learning-rate", "3")
    assert code == 1
    assert found["agree"] is False
    assert "They do not agree." in capsys.readouterr().out


def test_unknown_options_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        job.main(["--optimiser", "adam"])
    assert exit_.value.code == 2
    assert "--optimiser" in capsys.readouterr().err


def test_an_epoch_has_each_example_at_most_once() -> None:
    batches = list(job.Config(epochs=2, batch_size=10).order(25))
    assert [len(batch) for batch in batches] == [10] * 4
    for first, second in (batches[:2], batches[2:]):
        assert len({*first.tolist(), *second.tolist()}) == 20
    assert not np.array_equal(batches[0], batches[2])


@pytest.mark.parametrize("bad", [1e-2, float("nan")], ids=["too-far", "nan"])
@pytest.mark.parametrize("field", ["loss", "apart"])
def test_one_bad_step_is_enough_to_disagree(field: str, bad: float) -> None:
    fine = Curve(loss=np.full(5, 1.0), apart=np.zeros(5), apart_max=np.zeros(5))
    spoiled = fine._replace(**{field: np.where(np.arange(5) == 3, getattr(fine, field) + bad, getattr(fine, field))})
    same = {"autodiff": fine, "backprop": fine, "control": fine}
    assert compare_curves(same, "float32")["agree"]
    assert compare_curves(same, "float32")["first_difference"] is None
    found = compare_curves({**same, "backprop": spoiled}, "float32")
    assert not found["agree"]
    assert found["first_difference"] == 4


def test_a_record_is_json_whatever_was_measured(tmp_path: pathlib.Path) -> None:
    arrays = {"b": np.float32(0.5), "c": np.arange(2), "d": jax.numpy.arange(2), "e": jax.numpy.float32(0.5)}
    record.write(tmp_path / "r.json", {"a": float("nan"), **arrays, "f": (None, True)})
    found = json.loads((tmp_path / "r.json").read_text())
    assert found == {"a": "nan", "b": 0.5, "c": [0, 1], "d": [0, 1], "e": 0.5, "f": [None, True]}
    with pytest.raises(TypeError, match="object"):
        record.write(tmp_path / "r.json", {"a": [object()]})


def test_a_record_names_no_directory_of_the_machine() -> None:
    words = ["--out", "/there", "--epochs=3", "--data-dir=/here", "--out-dir", "x", "--resume", "--smoke"]
    assert record.command("experiments.a", words) == "python -m experiments.a --epochs=3 --data-dir DIR --smoke"
    words = ["--data-dir", "/here", "--epochs", "3"]
    assert record.command("experiments.a", words) == "python -m experiments.a --data-dir DIR --epochs 3"
