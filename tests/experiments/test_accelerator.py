"""The benchmark of accelerators, rehearsed on a CPU for a moment; its numbers are not judged here."""

import json
import os
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from experiments.benchmarks import accelerator, accelerator_report, peers
from experiments.benchmarks.workers import LIBRARIES, WorkerError

pytestmark = pytest.mark.once


def test_smoke_run_is_a_rehearsal(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert accelerator.main(["--smoke", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    png = (tmp_path / "accelerator.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(png) < 150_000
    found = json.loads((tmp_path / "accelerator.json").read_text())
    assert found["device"]["platform"] == "cpu"
    assert found["device"]["kind"]
    assert found["rehearsal"]
    assert "rehearsal" in printed
    (network,) = found["peers"]
    assert network["libraries"].keys() == {"funcnn-autodiff", "scan"}
    wide = found["utilisation"]
    assert wide["matmul_flops_per_s"].keys() == {"bfloat16", "float32"}
    for row in wide["rows"]:
        ratio = (
            wide["flops_per_step"] * row["steps_per_s"]["median"] / wide["matmul_flops_per_s"][row["dtype"]]["median"]
        )
        assert 0 < row["share"]["low"] <= row["share"]["median"] <= row["share"]["high"]
        assert ratio == pytest.approx(row["share"]["median"], rel=1)  # medians of other rounds
        assert row["reached"] is (row["share"]["median"] >= 0.85)
    assert [size["all"] > 0 for size in found["ensembles"]["memory"]["bytes"]] == [True, True]
    checked = found["gradcheck"]
    assert checked["pinned"]["passed"]
    assert checked["unpinned"]["passed"]
    assert max(checked["by_hand_to_autodiff"]["highest"].values()) <= 2e-5


@pytest.mark.parametrize(
    ("ratios", "reached"),
    [([0.1, 0.85, 0.99], True), ([0.1, 0.849, 0.99], False), ([np.nan] * 3, False)],
    ids=["at", "below", "nan"],
)
def test_the_mark_is_for_the_median(ratios: list[float], reached: bool) -> None:
    assert accelerator_report.share(np.array(ratios))["reached"] is reached


def test_a_wrong_gradient_is_seen() -> None:
    a = {"w": jnp.array([1.0, -4.0]), "b": jnp.array([2.0])}
    assert accelerator.apart(a, a) == {"b": 0.0, "w": 0.0}
    found = accelerator.apart({"w": jnp.array([1.0, -4.002]), "b": jnp.array([2.0])}, a)
    assert found == {"b": 0.0, "w": pytest.approx(5e-4, rel=1e-3)}


def test_both_gradients_are_those_of_the_objective() -> None:
    objective = fnn.Objective(fnn.Dense(1), fnn.losses.squared_error)
    params = {"w": jnp.ones((2, 1)), "b": jnp.zeros(1)}
    for gradient in accelerator.gradients(objective, params, (jnp.eye(2), jnp.zeros((2, 1)))):
        np.testing.assert_allclose(gradient["w"], np.ones((2, 1)))
        np.testing.assert_allclose(gradient["b"], [2.0])


def test_products_keep_their_size() -> None:
    run = accelerator.products(32, "float32")
    found = run(2)
    assert 0 < found.step == pytest.approx(found.all / 2)


def test_workers_share_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    monkeypatch.delenv(name, raising=False)
    with accelerator.shared_memory():
        assert os.environ[name] == "false"
    assert name not in os.environ
    monkeypatch.setenv(name, "true")
    with accelerator.shared_memory():
        assert os.environ[name] == "true"
    assert os.environ[name] == "true"


def test_a_network_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(network: Any, *_: Any) -> dict[str, Any]:
        if network.name == "64-32-10":
            raise WorkerError("out of memory")
        return {"network": network.name}

    monkeypatch.setattr(peers, "measured", fails)
    found = accelerator.peers_on_device(accelerator.Config(), accelerator.record.console())
    assert found[0] == {"network": "64-32-10", "failed": "out of memory", "libraries": {}}
    assert len(found) == 4
    assert "failed" not in found[1]


def test_jax_libraries_and_pytorch_are_compared() -> None:
    assert set(LIBRARIES) - set(accelerator.PEERS) == {"scikit-learn"}
