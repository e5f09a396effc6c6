"""On eight pretended devices: the run of one device, in every placement, mode and gradient; no needless traffic."""

import re
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import funcnn as fnn
from funcnn.train import loop
from funcnn.train.fit import monitoring
from funcnn.train.placement import place
from funcnn.train.steps import Recipe
from tests.train.problems import ROUNDING, assert_close

pytestmark = pytest.mark.once

NET = fnn.Serial(fnn.Dense(16), fnn.Relu(), fnn.Dense(8), fnn.Tanh(), fnn.Dropout(0.25), fnn.Dense(4))
OBJECTIVE = fnn.Objective(NET, fnn.losses.softmax_cross_entropy, fnn.penalties.l2(1e-3))
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
PLACEMENTS: dict[str, Any] = {
    "replicated": None,
    "fully-sharded": fnn.train.fully_sharded("data"),
    "by-features": fnn.train.by_features("model"),
}
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}  # of the largest parameter: the sums over N are taken in other orders
MODES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


def mesh_of(mode: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(mode, mode))


def digits(rng: np.random.Generator, n: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    return rng.standard_normal((n, 6)).astype(dtype), rng.integers(0, 4, n).astype(np.int32)


@pytest.mark.parametrize("gradient", ["autodiff", "backprop"])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("sharding", PLACEMENTS.values(), ids=PLACEMENTS.keys())
def test_every_placement_trains_as_one_device_does(
    sharding: Any, mode: AxisType, gradient: str, dtype: str, rng: np.random.Generator, key: jax.Array
):
    data, valid = digits(rng, 44, dtype), digits(rng, 10, dtype)  # batches of 16: the last is filled up
    params = NET.init(jax.random.fold_in(key, 1), (6,))

    def run(**where: Any) -> Any:
        return fnn.train.fit(
            OBJECTIVE, OPTIMIZER, params, data, epochs=2, batch_size=16, key=key, valid=valid, gradient=gradient,
            metrics={"accuracy": fnn.train.accuracy}, progress=None, **where,
        )  # fmt: skip

    alone, history = run()
    spread, seen = run(mesh=mesh_of(mode), param_sharding=sharding)
    assert_close(spread.params, alone.params, TOLERANCE[dtype])
    for name in history:
        if name != "seconds":
            np.testing.assert_allclose(seen[name], history[name], rtol=TOLERANCE[dtype])
    split = {leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(spread.params)}
    assert (False in split) == (sharding is not None)
    adam = spread.opt_state[1][0]
    for moment, parameter in zip(jax.tree.leaves(adam.mu), jax.tree.leaves(spread.params), strict=True):
        assert moment.sharding.is_equivalent_to(parameter.sharding, parameter.ndim), "the optimizer's state goes along"


# Bytes of a step on 16 examples, over 4 x 2 devices, of 6-16-8 (992 bytes of parameters) by hand, in float32:
NEEDED = {
    # one sum of all gradients, and of the loss
    "replicated": {"all-reduce": [992 + 4]},
    # each parameter put together once; and the sum (whose scattered form the CPU compiler does not choose)
    "fully-sharded": {"all-gather": [16 * 8 * 4, 8 * 4, 16 * 4, 6 * 16 * 4], "all-reduce": [992 + 4]},
    # the pair's sum over features, of each device's 4 examples; one sum of its part of the gradients, and of the loss
    "by-features": {"all-reduce": [4 * 8 * 4, (6 * 8 + 8 + 8 * 8 + 8) * 4 + 4]},
}


OPTIMIZERS: dict[str, optax.GradientTransformation] = {
    "max norm": optax.chain(optax.adam(1e-2), fnn.train.max_norm(1.0)),
    "lbfgs": optax.lbfgs(memory_size=2),
    "parts": optax.multi_transform({"a": optax.adam(1e-2), "b": optax.set_to_zero()}, ("a", "a", "b", "b", "b", "a")),
    "masked": optax.masked(optax.adam(1e-2), lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
    "adafactor": optax.adafactor(1e-2, min_dim_size_to_factor=4),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_a_mesh(name: str, rng: np.random.Generator, key: jax.Array):
    data, params = digits(rng, 32, "float32"), NET.init(key, (6,))
    state, _ = fnn.train.fit(
        OBJECTIVE, OPTIMIZERS[name], params, data, epochs=1, batch_size=16, key=key, progress=None,
        mesh=mesh_of(AxisType.Auto), param_sharding=fnn.train.fully_sharded("data"),
    )  # fmt: skip
    alone, _ = fnn.train.fit(OBJECTIVE, OPTIMIZERS[name], params, data, epochs=1, batch_size=16, key=key, progress=None)
    assert_close(state.params, alone.params, ROUNDING["float32"])


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("sharding", PLACEMENTS.values(), ids=PLACEMENTS.keys())
def test_what_comes_back_from_a_mesh_is_evaluated_and_exported(
    sharding: Any, mode: AxisType, rng: np.random.Generator, key: jax.Array
):
    data = digits(rng, 32, "float32")
    state, _ = fnn.train.fit(
        OBJECTIVE, OPTIMIZER, NET.init(key, (6,)), data, epochs=1, batch_size=16, key=key, progress=None,
        mesh=mesh_of(mode), param_sharding=sharding,
    )  # fmt: skip
    alone = jax.device_get(state.params)
    found, want = (fnn.train.evaluate(OBJECTIVE, params, data, batch_size=10) for params in (state.params, alone))
    assert found == want
    program = fnn.export(NET, state.params, (6,))
    np.testing.assert_allclose(program(data[0]), NET.apply(alone, jax.numpy.asarray(data[0])), rtol=1e-5, atol=1e-6)


def test_the_state_of_an_optimizer_goes_where_its_own_parameter_is():
    """Not where another one of the same shape is."""
    params = {"a": {"w": np.zeros((8, 8))}, "b": {"w": np.zeros((8, 8))}}
    specs = {"a": {"w": jax.P("data")}, "b": {"w": jax.P(None, "model")}}
    where = place(mesh_of(AxisType.Auto), None, specs, params, optax.adam(1e-2))
    assert where.opt_state == (jax.P(), *where.params, *where.params) and where.params[0] != where.params[1]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "batch": ({"batch_size": 6}, "batch_size 6 cannot be split over the 4 devices of axis 'data'"),
    "axis": ({"batch_axis": "rows"}, r"one of the mesh's axes \('data', 'model'\), got 'rows'"),
    "spec": ({"param_sharding": jax.P("data", "model", "x")}, "has 3 entries"),
    "divides": ({"param_sharding": jax.P(("data", "model"))}, r"cannot split into 8 equal parts"),
    "tree": ({"param_sharding": (jax.P(),) * 5}, r"alone: \[\"\[0\]\['b'\]\""),
    "missing axis": ({"param_sharding": fnn.train.by_features("rows")}, "no 'rows'"),
    "not a mesh": ({"mesh": 8}, "mesh is a mesh of devices"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_a_mesh_is_named(name: str, rng: np.random.Generator, key: jax.Array):
    changes, message = BAD[name]
    options: dict[str, Any] = {"batch_size": 8, "mesh": mesh_of(AxisType.Auto)} | changes
    with pytest.raises((ValueError, TypeError), match=message):
        fnn.train.fit(
            OBJECTIVE, OPTIMIZER, NET.init(key, (6,)), digits(rng, 32, "float32"), epochs=1, key=key, **options
        )


def test_augmentation_and_bytes_on_a_mesh(rng: np.random.Generator, key: jax.Array):
    """Functions that know nothing of shardings, under Explicit axes too."""
    x, y = rng.integers(0, 17, (32, 3, 2), np.uint8), rng.integers(0, 4, 32).astype(np.int32)
    augment = [fnn.data.augment.Shift(1, shape=(3, 2)), fnn.data.augment.FlipLabels(0.1, 4)]

    def run(**where: Any) -> Any:
        return fnn.train.fit(
            OBJECTIVE, OPTIMIZER, NET.init(key, (6,)), (x, y), epochs=1, batch_size=16, key=key, progress=None,
            prepare=fnn.data.Pixels(16), augment=augment, valid=(x, y), **where,
        )  # fmt: skip

    alone, history = run()
    for mode in MODES.values():
        spread, seen = run(mesh=mesh_of(mode))
        assert_close(spread.params, alone.params, TOLERANCE["float32"])
        np.testing.assert_allclose(seen["valid loss"], history["valid loss"], rtol=1e-5)


def collectives(sharding: Any, mode: AxisType) -> dict[str, list[int]]:
    """The collective operations of a compiled step, each with the number of bytes that it moves."""
    mesh = mesh_of(mode)
    objective = fnn.Objective(fnn.Serial(fnn.Dense(16), fnn.Relu(), fnn.Dense(8)), fnn.losses.squared_error)
    params = objective.net.init(jax.random.key(0), (6,))
    optimizer = optax.sgd(0.1)
    recipe = Recipe.of(objective, optimizer, "backprop", {}, (), None)
    where = place(mesh, None, sharding, params, optimizer)
    recipe = Recipe(**{**vars(recipe), "placement": where})
    plan = loop.Plan(recipe, 16, 16, True, 1, **monitoring(None, None, ()))
    state = fnn.train.start(optimizer, where.device_put(params, where.params), where.device_put(jax.random.key(0)))
    batch = where.put_chunk((np.zeros((1, 16, 6), np.float32), np.zeros((1, 16, 8), np.float32)))
    with where.active():
        state = jax.tree.map(lambda leaf: leaf if leaf.ndim else where.device_put(leaf), state)
        text: Any = loop.advance_chunk.lower(plan, loop.begin(plan, state), batch, {}, 1).compile().as_text()
    found: dict[str, list[int]] = {}
    for result, name in re.findall(
        r"= (\(?[^=]*?\)?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)\(", text
    ):
        sizes = [
            4 * int(np.prod([int(d) for d in shape.split(",") if d]))
            for shape in re.findall(r"f32\[([\d,]*)\]", result)
        ]
        found.setdefault(name, []).append(sum(sizes))
    return found


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_step_moves_no_more_than_it_needs(name: str, mode: AxisType):
    found = collectives(PLACEMENTS[name], mode)
    print(f"{name}: {found}")
    assert found == NEEDED[name]
