"""The benchmark for a moment; what it leaves out of a step, and what it does not."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import step_parts
from experiments.benchmarks.networks import Network

pytestmark = pytest.mark.once

NETWORK = Network((12, 8, 8, 3), 4, 6, 0.0, 0.0)


def test_runs_and_writes_what_it_measured(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert step_parts.main(["--smoke", "--out", str(tmp_path)]) == 0
    (found,) = json.loads((tmp_path / "step_parts.json").read_text())["results"]
    assert set(found["share"]) == {*step_parts.PARTS, *step_parts.TRIED}
    assert found["against_step"]["step"]["median"] == 1.0
    assert "Adam over one flat vector" in capsys.readouterr().out


def test_what_was_tried_is_the_same_training() -> None:
    x, y = map(jnp.asarray, NETWORK.examples())
    programs = step_parts.programs(NETWORK)
    params, _, total = programs["step"](x, y)
    for name in ("flat", "unrolled", "transposed"):
        other, _, same = programs[name](x, y)
        np.testing.assert_allclose(same, total, rtol=1e-5)
        for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(a.T if name == "transposed" else a, b, rtol=1e-4, atol=1e-6)


def test_the_products_are_all_there() -> None:
    x, y = map(jnp.asarray, NETWORK.examples())
    run = step_parts.programs(NETWORK)["products"]
    text = run.func.lower(*run.args, x, y).compile().as_text()  # pyright: ignore[reportFunctionMemberAccess]
    assert text.count(" dot(") == 3 + 3 + 2, "forward, dw, and dx but in the first layer"
