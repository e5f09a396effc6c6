"""On eight pretended devices: the gradients of one device, each where its parameter lives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import funcnn as fnn
from funcnn import backprop
from tests.backprop.agree import TOLERANCES, assert_agree, draw_layer
from tests.problems import NETWORKS, LayerProblem

EACH_MODE = pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
AUTO = ["relu-mlp-l1-l2", "rbf-network", "image-prelu-net"]
EXPLICIT = [*AUTO, "maxout-mlp", "residual-tower", "graph-shared", "noisy"]
CHOSEN = [(name, AxisType.Auto) for name in AUTO] + [(name, AxisType.Explicit) for name in EXPLICIT]


def mesh_of(mode: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(mode, mode))


def place(mesh: jax.sharding.Mesh, tree: Any, *axes: str | None) -> Any:
    return jax.device_put(tree, jax.NamedSharding(mesh, jax.P(*axes)))


def assert_where(gradients: Any, like: Any) -> None:
    """Each leaf has the sharding of its counterpart."""
    for (path, g), p in zip(jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(like), strict=True):
        assert g.sharding.is_equivalent_to(p.sharding, g.ndim), (jax.tree_util.keystr(path), g.sharding, p.sharding)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "mode"), CHOSEN)
def test_data_over_devices_and_parameters_on_all(name: str, mode: AxisType, key: jax.Array):
    problem = NETWORKS[name]
    params, (x, y) = problem.draw(key, n=8)
    weight = jnp.arange(8.0) + 1
    run = jax.jit(lambda params, batch: backprop.value_and_grad(problem.objective)(params, batch, key=key, train=True))
    alone = run(params, (x, y, weight))
    mesh = mesh_of(mode)
    with jax.set_mesh(mesh):
        spread = place(mesh, params)
        together = run(spread, place(mesh, (x, y, weight), "data"))
    assert_agree(together, alone, TOLERANCES["float64"])
    assert_where(together[1], spread)


@EACH_MODE
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_without_jit_too(mode: AxisType, jit: bool, key: jax.Array, rng: np.random.Generator):
    """Operation by operation, where sharding cannot be inferred from what comes later; for x as well."""
    net = fnn.Serial(fnn.Dense(4), fnn.Tanh(), fnn.Parallel(fnn.Dense(2), fnn.Maxout(2, 3)), fnn.Softmax())
    args = draw_layer(rng, net, (3,), 8)

    def gradients(params, x, dy):
        return backprop.vjp(net, params, x)[1](dy)

    run = jax.jit(gradients) if jit else gradients
    mesh = mesh_of(mode)
    with jax.set_mesh(mesh):
        spread = place(mesh, args[0]), *place(mesh, args[1:], "data")
        together = run(*spread)
    assert_agree(together, jax.jit(gradients)(*args), TOLERANCES["float32"])
    assert_where(together, spread[:2])


BY_FEATURE = {
    "dense": LayerProblem(fnn.Dense(4), (3,)),
    "mlp": LayerProblem(fnn.Serial(fnn.Dense(4), fnn.Silu(), fnn.Dense(6), fnn.Softmax()), (3,)),
    "maxout": LayerProblem(fnn.Maxout(4, pieces=3), (3,)),
    "rbf": LayerProblem(fnn.Rbf(4, epsilon=0.6), (3,)),
    "prelu": LayerProblem(fnn.Serial(fnn.Dense(4), fnn.Prelu()), (3,)),
    "parallel": LayerProblem(fnn.Parallel(fnn.Dense(4), fnn.Dense(6)), (3,)),
    "log_softmax": LayerProblem(fnn.Serial(fnn.Dense(4), fnn.LogSoftmax()), (3,)),
}


@pytest.mark.parametrize("problem", BY_FEATURE.values(), ids=BY_FEATURE.keys())
def test_parameters_over_devices_by_feature(problem: LayerProblem, rng: np.random.Generator):
    """With explicit axes, where a sum over examples has to be told where its result lives."""
    layer, mesh = problem.layer, mesh_of(AxisType.Explicit)
    params, x, dy = draw_layer(rng, *problem, 8)

    def spread(path, leaf):  # the units' axis: the last one, but the first of an Rbf's centres
        return place(mesh, leaf, *([] if path[-1].key == "c" else [None] * (leaf.ndim - 1)), "model")

    @jax.jit
    def gradients(params, x, dy):
        return backprop.vjp(layer, params, x)[1](dy)

    with jax.set_mesh(mesh):
        params_over = jax.tree_util.tree_map_with_path(spread, params)
        x_over = place(mesh, x, "data")
        dy_over = jax.device_put(dy, jax.jit(layer.apply)(params_over, x_over).sharding)
        together = gradients(params_over, x_over, dy_over)
    assert_agree(together, gradients(params, x, dy), TOLERANCES["float32"])
    assert_where(together, (params_over, x_over))


def test_a_sharded_training_step_keeps_its_placement(key: jax.Array):
    """Three steps of gradient descent, compiled once: nothing wanders to other devices on the way."""
    problem = NETWORKS["relu-mlp-l1-l2"]
    params, batch = problem.draw(key, n=8)
    traces = []

    @jax.jit
    def step(params, batch):
        traces.append(1)
        _, grads = backprop.value_and_grad(problem.objective)(params, batch)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        start = now = place(mesh, params)
        for _ in range(3):
            now = step(now, place(mesh, batch, "data"))
    assert len(traces) == 1
    assert_where(now, start)
