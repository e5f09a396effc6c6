"""Many runs in one program are the runs of `fit`, whatever way they are computed."""

from typing import Any

import jax
import numpy as np
import optax
import pytest

import funcnn as fnn
from funcnn.train import many
from tests.train.problems import BATCH, METRICS, NET, OBJECTIVE, ROUNDING, assert_close, examples

pytestmark = pytest.mark.once

GRID = {"scale": [0.5, 2.0], "learning_rate": [1e-3, 1e-2]}


def init(key: jax.Array, scale: Any) -> Any:
    return jax.tree.map(lambda p: p * scale, NET.init(key, (5,)))


def fit_many(**changes: Any) -> fnn.train.Ensemble:
    x, y = examples()
    options: dict[str, Any] = {
        "epochs": 3, "batch_size": BATCH, "metrics": METRICS, "valid": examples(10, seed=1), "progress": None,
        "seeds": 3, "grid": GRID, "params": init, "data": (x.astype(jax.numpy.result_type(float)), y),
    } | changes  # fmt: skip
    return fnn.train.fit_many(OBJECTIVE, optax.adam, options.pop("params"), options.pop("data"), **options)


@pytest.mark.parametrize("strategy", ["vmap", "map", 2, "auto"])
def test_each_run_is_a_run_of_fit(strategy: Any, dtype: str):
    data = examples()[0].astype(dtype), examples()[1]
    ensemble = fit_many(strategy=strategy)
    assert list(ensemble.axes) == ["scale", "learning_rate", "seed"]
    assert ensemble["valid loss"].shape == (2, 2, 3, 3)
    assert bool(ensemble.measured) == (strategy == "auto")
    for scale, rate, seed in ((0.5, 1e-2, 0), (2.0, 1e-3, 2)):
        hyper = {"scale": scale, "learning_rate": rate}
        single, history = fnn.train.fit(
            OBJECTIVE, optax.adam, init, data, epochs=3, batch_size=BATCH, key=jax.random.key(seed), hyper=hyper,
            valid=examples(10, seed=1), metrics=METRICS, progress=None,
        )  # fmt: skip
        state, got = ensemble.run(**hyper, seed=seed)
        assert_close(state.params, single.params, ROUNDING[dtype])
        for name in ("loss", "accuracy", "valid loss", "valid accuracy"):
            np.testing.assert_allclose(got[name], history[name], rtol=ROUNDING[dtype])


def test_seeds_and_groups_may_be_any_number(monkeypatch: pytest.MonkeyPatch):
    """Groups of one size: with 5 runs on 2 cores the last is filled up, and what fills it is thrown away."""
    for cores in (1, 2, 3):
        monkeypatch.setattr(many.os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        groups = many.Groups(5)
        assert groups.count * groups.size >= 5 and groups.count <= cores
        parts = groups.split({"a": np.arange(10.0).reshape(5, 2)})
        assert len({part["a"].shape for part in parts}) == 1
        np.testing.assert_array_equal(groups.join(parts)["a"], np.arange(10.0).reshape(5, 2))
    monkeypatch.setattr(many.jax, "default_backend", lambda: "gpu")
    assert many.Groups(5).count == 1


def test_early_stopping_is_each_runs_own():
    stopping = fnn.train.EarlyStopping(2, "valid accuracy", maximize=True)
    ensemble = fit_many(
        epochs=30, early_stopping=stopping, strategy="vmap", grid={"scale": [1.0], "learning_rate": [3e-2]}
    )
    lengths = set()
    for seed in range(3):
        state, history = ensemble.run(scale=1.0, learning_rate=3e-2, seed=seed)
        values = history["valid accuracy"]
        best = int(values.argmax())
        lengths.add(len(values))
        assert len(values) == min(best + 3, 30)
        outputs = NET.apply(state.params, jax.numpy.asarray(examples(10, seed=1)[0]))
        np.testing.assert_allclose(np.mean(outputs.argmax(1) == examples(10, seed=1)[1]), values[best], rtol=1e-6)
    assert len(lengths) > 1, "they stopped at different times"


def test_table_plot_and_best_show_runs_that_diverged():
    ensemble = fit_many(grid={"scale": [1.0], "learning_rate": [1e-2, 1e30]}, strategy="vmap")
    text = str(ensemble)
    assert "not finite)" in text and "±" in text and "learning_rate" in text
    assert ensemble.best() == {"scale": 1.0, "learning_rate": 1e-2}
    assert ensemble.best("accuracy", maximize=True)["learning_rate"] == 1e-2
    assert len(ensemble.plot("valid accuracy").axes[0].lines) == 2
    assert (
        repr(ensemble)
        == "<Ensemble of 1 scale x 2 learning_rate x 3 seed: epoch, step, loss, accuracy, valid loss, valid accuracy>"
    )
    with pytest.raises(KeyError, match="there are"):
        ensemble.run(scale=1.0, learning_rate=0.5, seed=0)
    with pytest.raises(TypeError, match="value for each of"):
        ensemble.run(seed=0)


def test_a_run_is_found_by_its_own_seed_and_nothing_near():
    ensemble = fit_many(seeds=[1234567, 1234568], epochs=1, grid={"scale": [1.0], "learning_rate": [1e-2]})
    where = {"scale": 1.0, "learning_rate": 1e-2}
    for i, seed in enumerate((1234567, 1234568)):
        assert ensemble.run(**where, seed=seed)[1]["loss"][0] == ensemble["loss"][0, 0, i, 0]
    with pytest.raises(KeyError, match="seed 1234569"):
        ensemble.run(**where, seed=1234569)


def test_where_no_validation_is_finite_the_last_state_comes_back_as_from_fit():
    x, y = examples(10, seed=1)
    poisoned = (np.concatenate([x[:8], np.full_like(x[8:], np.nan)]), y)  # beyond the batch that is looked at first
    stopping = fnn.train.EarlyStopping(2)
    options: dict[str, Any] = {"epochs": 9, "early_stopping": stopping, "valid": poisoned}
    ensemble = fit_many(**options, seeds=[4], grid={"scale": [1.0], "learning_rate": [1e-2]}, strategy="map")
    with pytest.warns(UserWarning, match="the validation loss after epoch 1 is nan"):
        state, history = fnn.train.fit(
            OBJECTIVE, optax.adam, init, examples(), batch_size=BATCH, key=jax.random.key(4), metrics=METRICS,
            hyper={"scale": 1.0, "learning_rate": 1e-2}, progress=None, **options,
        )  # fmt: skip
    got, seen = ensemble.run(scale=1.0, learning_rate=1e-2, seed=4)
    assert history["epoch"].tolist() == seen["epoch"].tolist() == [1, 2], "a NaN is no better value"
    assert history.best_epoch is None and seen.best_epoch is None
    assert got.step >= 6 and state.step >= 6, "the trained state, and not that of the beginning"
    with pytest.raises(ValueError, match="no point of the grid has a finite 'valid loss'"):
        ensemble.best("valid loss")


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "strategy": ({"strategy": "pmap"}, ValueError, '"auto", "vmap", "map" or a number'),
    "params": ({"params": ()}, TypeError, "a function of a key"),
    "grid": ({"grid": {"rate": [1.0], "scale": [1.0]}}, TypeError, "'rate'"),
    "empty": ({"grid": {"scale": []}}, ValueError, "grid's 'scale' is a list of numbers"),
    "text": ({"grid": {"scale": ["a"]}}, ValueError, "grid's 'scale' is a list of numbers"),
    "no number": ({"grid": {"scale": [1.0, float("nan")]}}, ValueError, "grid's 'scale' is a list of numbers"),
    "no list": ({"grid": {"scale": 1.0}}, ValueError, "grid's 'scale' is a list of numbers"),
    "no mapping": ({"grid": [1.0]}, TypeError, "grid is a mapping"),
    "seed": ({"grid": {"seed": [1]}}, ValueError, "seeds says which"),
    "seeds": ({"seeds": 0}, ValueError, "seeds is a positive integer, got 0"),
    "seeds of text": ({"seeds": "12"}, ValueError, "seeds is how many, or a list of whole numbers, got '12'"),
    "seeds between": ({"seeds": [1.5]}, ValueError, "list of whole numbers"),
    "seeds twice": ({"seeds": [3, 3]}, ValueError, "each once"),
    "truth": ({"strategy": True}, ValueError, "got True"),
    "stream": ({"data": [examples()]}, TypeError, "data is"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str):
    changes, error, message = BAD[name]
    with pytest.raises(error, match=message):
        fit_many(**changes)
