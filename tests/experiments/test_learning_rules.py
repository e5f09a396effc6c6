"""The experiment for a moment; its learners, its angles, and its verdict on made-up numbers."""

import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from experiments import learning_rules
from experiments.common import learning, record
from funcnn.backprop import value_and_grad

pytestmark = pytest.mark.once

CONFIG = learning_rules.Config(hidden=(5, 4), logistic=6)
LEARNERS = learning_rules.learners(CONFIG, 10)


def test_runs_and_goes_on_from_its_record(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--smoke", "--out", str(tmp_path), "--resume"]
    assert learning_rules.main(options) in (0, 1)
    path = tmp_path / "learning_rules-digits"
    png = path.with_suffix(".png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n") and len(png) < 150_000
    found = json.loads(path.with_suffix(".json").read_text())
    direct, rounded = found["runs"]
    assert (direct["name"], rounded["name"]) == ("direct feedback", "4 bits")
    assert len(direct["error"]) == 2 and np.shape(direct["angle"]) == (3, 3)  # layers, before and after each epoch
    assert min(direct["angle"][0]) > 60 and max(direct["angle"][2]) < 0.1  # the output layer has the gradient
    assert min(rounded["angle"][0]) > 0.1 and max(rounded["angle"][0]) < 60

    monkeypatch.setattr(learning_rules, "train", None)  # nothing is left to train
    assert learning_rules.main(options) in (0, 1)
    with pytest.raises(SystemExit):
        learning_rules.main([*options, "--seed", "1"])  # another run's record


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_has_a_gradient(name: str, key: jax.Array) -> None:
    learner = LEARNERS[name]
    objective = fnn.Objective(learner.net, fnn.losses.softmax_cross_entropy)
    gradient = functools.partial(value_and_grad(objective, rules=learner.rules), key=key, train=True)
    params = learner.net.init(key, (7,))
    value, grads = jax.eval_shape(gradient, params, (jnp.ones((3, 7)), jnp.zeros(3, int)))
    assert value.shape == () and jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)


def test_all_of_a_network_begin_alike(key: jax.Array) -> None:
    first = LEARNERS["backprop"].net.init(key, (7,))
    for learner in LEARNERS.values():
        if "logistic" not in learner.panels:
            for layer, other in zip(first, learner.net.init(key, (7,)), strict=True):
                assert all(np.array_equal(layer[name], other[name]) for name in layer), learner


def test_learning_rates_are_tried_on_training_examples() -> None:
    data = fnn.data.load_digits()
    held_out = learning_rules.without_test_examples(data)
    assert len(held_out.x_train) == 1122 and len(held_out.x_test) == 225
    np.testing.assert_array_equal(np.concatenate([held_out.x_train, held_out.x_test]), data.x_train)
    np.testing.assert_array_equal(np.concatenate([held_out.y_train, held_out.y_test]), data.y_train)
    tried = list(learning_rules.trainings(learning_rules.Config(tune=(0.5, 2.0)), 10))
    assert len(tried) == 2 * len(learning_rules.RATES)
    assert [(name, learner.rate) for name, learner in tried[:2]] == [("backprop", 0.05), ("backprop", 0.2)]


@pytest.mark.parametrize("angle", [0.0, 1e-3, 30.0, 90.0, 179.0])
def test_small_angles_are_not_rounded_away(angle: float) -> None:
    radians = np.radians(angle)
    a, b = jnp.array([[2.0, 0.0]]), jnp.array([[np.cos(radians), np.sin(radians)]], jnp.float32)
    assert float(learning_rules.degrees(a, b)) == pytest.approx(angle, rel=1e-4)
    assert np.isnan(learning_rules.degrees(a, jnp.zeros((1, 2))))


def made_up(name: str, error: float, angle: float, published: float | None = None, family: str = "") -> dict[str, Any]:
    angles = [[90.0, angle], [90.0, angle / 2], [0.0, 0.0]]
    return {"name": name, "family": family, "error": [9.0, error], "published": published, "angle": angles}


def test_the_verdict_is_of_the_worst() -> None:
    runs = [made_up("good", 1.5, 10.0, 1.6), made_up("bad", 2.0, 95.0, 1.6), made_up("new", 9.0, 0.0)]
    marks = learning.judge(runs[::2], published=True)
    assert all(mark["reached"] for mark in marks.values())
    marks = learning.judge(runs, published=True)
    assert marks["error"]["rule"] == marks["angle"]["rule"] == "bad"
    assert marks["error"]["above"] == pytest.approx(0.4) and not marks["error"]["reached"]
    assert marks["angle"]["angle"] == 95.0 and not marks["angle"]["reached"]
    assert learning.verdict(marks).count("missed") == 2
    assert "error" not in learning.judge(runs, published=False)


def test_what_is_no_number_reaches_no_mark() -> None:
    marks = learning.judge(
        [made_up("a", 1.5, 10.0, 1.6), made_up("b", float("nan"), float("nan"), 1.6)], published=True
    )
    assert not marks["error"]["reached"] and not marks["angle"]["reached"]
    assert not learning.judge([made_up("step", 1.0, float("nan"), family="step")], published=True)


def test_a_record_of_other_settings_is_not_gone_on_with(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "record.json"
    assert learning_rules.recorded(path, {"epochs": 1}) == []
    record.write(path, {"config": {"epochs": 1, "hidden": (1, 2)}, "runs": [made_up("a", 1.0, float("nan"))]})
    (run,) = learning_rules.recorded(path, {"epochs": 1, "hidden": (1, 2)})
    assert np.isnan(learning.hidden_angles(run)[0, 1])
    with pytest.raises(record.UsageError, match="other settings"):
        learning_rules.recorded(path, {"epochs": 2, "hidden": (1, 2)})
