"""Exported networks, and training steps that lower for every platform: what shows here that funcnn runs on a TPU."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcnn as fnn
from funcnn.train import loop
from funcnn.train.fit import monitoring
from funcnn.train.steps import Recipe
from tests.problems import NETWORKS

PLATFORMS = ("cpu", "cuda", "tpu")
NET = fnn.Serial(fnn.Dense(8), fnn.Silu(), fnn.Maxout(4, pieces=2), fnn.Dropout(0.5), fnn.Softmax())


def test_an_exported_network_computes_the_same_for_any_number_of_examples(tmp_path: pathlib.Path, key: jax.Array):
    params = NET.init(key, (6,))
    exported = fnn.export(NET, params, (6,))
    exported.save(tmp_path / "net")
    again = fnn.Exported.load(tmp_path / "net")
    assert exported.platforms == again.platforms == PLATFORMS and again.in_shape == (6,)
    for n in (1, 3, 100):
        x = jax.random.normal(key, (n, 6))
        for program in (exported, again):
            np.testing.assert_allclose(program(x), NET.apply(params, x), rtol=1e-6)
    assert repr(again) == "<Exported float32['N', 6] -> float32['N', 4] for ('cpu', 'cuda', 'tpu')>"


@pytest.mark.parametrize("name", ["graph-shared", "image-prelu-net", "rbf-network"])
def test_networks_of_every_kind_export(name: str, key: jax.Array):
    problem = NETWORKS[name]
    params, (x, *_) = problem.draw(key)
    exported = fnn.export(problem.objective.net, params, x.shape[1:], dtype=x.dtype)
    np.testing.assert_allclose(exported(x), problem.objective.net.apply(params, x), rtol=1e-5, atol=1e-6)


def test_wrong_input_and_damaged_files_are_named(tmp_path: pathlib.Path, key: jax.Array):
    exported = fnn.export(NET, NET.init(key, (6,)), (6,), platforms=("cpu",))
    with pytest.raises(ValueError, match=r"takes float32\['N', 6\], got float32\[2, 5\]"):
        exported(jnp.ones((2, 5)))
    with pytest.raises(ValueError, match=r"got int32\[2, 6\]"):
        exported(jnp.ones((2, 6), jnp.int32))
    with pytest.raises(TypeError, match="takes a network"):
        fnn.export(fnn.losses.mse, (), (6,))  # pyright: ignore[reportArgumentType]
    exported.save(tmp_path / "net")
    content = (tmp_path / "net").read_bytes()
    for damaged in (content[:-8], content[:200], content[:-1] + b"?", b""):
        (tmp_path / "bad").write_bytes(damaged)
        with pytest.raises(fnn.StorageError, match=r"bad: (cut short or damaged|not a file)"):
            fnn.Exported.load(tmp_path / "bad")


@pytest.mark.parametrize("gradient", ["autodiff", "backprop"])
@pytest.mark.parametrize("compute_dtype", [None, "bfloat16"])
def test_the_training_program_lowers_for_cpu_cuda_and_tpu(gradient: str, compute_dtype: str | None, key: jax.Array):
    """Whole epochs with dropout, shuffling, a filled-up last batch and validation."""
    net = NET if compute_dtype is None else fnn.Cast(NET, compute_dtype)
    objective = fnn.Objective(net, fnn.losses.squared_error, fnn.penalties.l2(1e-3))
    optimizer = optax.adam(1e-3)
    recipe = Recipe.of(objective, optimizer, gradient, {}, (), None)
    plan = loop.Plan(recipe, 8, 8, True, 1, **monitoring(None, (), ()))
    with jax.numpy_dtype_promotion("standard"):  # for optax
        run = loop.begin(plan, fnn.train.start(optimizer, net.init(key, (6,)), key))
        data = jnp.ones((20, 6)), jnp.ones((20, 4))
        exported = jax.export.export(loop.advance, platforms=PLATFORMS)(plan, run, data, data, {}, 0, 6, 2)
    assert exported.platforms == PLATFORMS
    text = exported.mlir_module()
    assert "stablehlo.dot_general" in text and ("bf16" in text) == (compute_dtype is not None)


def test_the_step_lowers_for_cpu_cuda_and_tpu(key: jax.Array):
    objective, optimizer = fnn.Objective(NET, fnn.losses.squared_error), optax.adam(1e-3)
    with jax.numpy_dtype_promotion("standard"):
        state = fnn.train.start(optimizer, NET.init(key, (6,)), key)
        step = fnn.train.step(objective, optimizer, "backprop")
        exported = jax.export.export(step, platforms=PLATFORMS)(state, (jnp.ones((8, 6)), jnp.ones((8, 4))))
    assert exported.platforms == PLATFORMS
