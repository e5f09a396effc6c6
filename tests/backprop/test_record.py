"""`record`: what passed through each layer, against autodiff of the network taken apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn import backprop
from funcnn.backprop import RULES, Rules
from tests.backprop.agree import TOLERANCES, assert_agree, draw_layer
from tests.problems import NETWORKS

LAYERS = (fnn.Dense(5), fnn.Tanh(), fnn.Dropout(0.3), fnn.Maxout(4, 2), fnn.Prelu(), fnn.Dense(2))
SERIAL = fnn.Objective(fnn.Serial(*LAYERS), fnn.losses.squared_error, fnn.penalties.l2(0.1))


def test_in_a_chain_each_entry_is_what_autodiff_gives(key: jax.Array, rng: np.random.Generator, dtype: str):
    """dy of a layer is the gradient for something added to its output; its grads leave the penalty out."""
    params, x, y = draw_layer(rng, SERIAL.net, (3,), 5)
    record = jax.jit(lambda *a: backprop.record(SERIAL)(*a, key=key, train=True))(params, (x, y))
    assert list(record) == ["0", "1", "2", "3", "4", "5"]

    @jax.jit
    def taps_apart(params, x, y):
        values = [x]
        for i, layer in enumerate(LAYERS):
            values.append(layer.apply(params[i], values[-1], key=jax.random.fold_in(key, i), train=True))

        def loss(params, taps):
            z = x + taps[0]
            for i, layer in enumerate(LAYERS):
                z = layer.apply(params[i], z, key=jax.random.fold_in(key, i), train=True) + taps[i + 1]
            return jnp.mean(SERIAL.loss(z, y))

        return values, *jax.grad(loss, (0, 1))(params, [jnp.zeros_like(v) for v in values])

    values, grads, deltas = taps_apart(params, x, y)
    for i, entry in enumerate(record.values()):
        got = entry.x, entry.y, entry.dx, entry.dy, entry.grads
        assert_agree(got, (values[i], values[i + 1], deltas[i], deltas[i + 1], grads[i]), TOLERANCES[dtype])
        assert entry.layer == LAYERS[i]
        assert entry.autodiff is False


def test_in_a_graph_delta_is_the_sum_over_the_uses(rng: np.random.Generator):
    net = fnn.Graph(
        {
            "h": fnn.Node(fnn.Dense(4), "input"),
            "left": fnn.Node(fnn.Serial(fnn.Tanh(), fnn.Dense(4)), "h"),
            "y": fnn.Node(fnn.Dense(4), ("left", "h"), params_of="h"),
        },
        output="y",
    )
    objective = fnn.Objective(net, fnn.losses.squared_error)
    params, x, y = draw_layer(rng, net, (4,), 5)
    record = jax.jit(backprop.record(objective))(params, (x, y))
    assert list(record) == ["h", "left/0", "left/1", "y"]
    dense = fnn.Dense(4)

    def loss(taps, h_params, y_params):
        h = dense.apply(h_params, x) + taps["h"]
        left = dense.apply(params["left"][1], jnp.tanh(h) + taps["left/0"]) + taps["left/1"]
        return jnp.mean(objective.loss(dense.apply(y_params, left + h) + taps["y"], y))

    taps = {path: jnp.zeros((5, 4)) for path in record}
    deltas, *uses = jax.grad(loss, (0, 1, 2))(taps, params["h"], params["h"])
    assert_agree({path: entry.dy for path, entry in record.items()}, deltas, TOLERANCES["float32"])
    assert_agree([record["h"].grads, record["y"].grads], uses, TOLERANCES["float32"])  # each use its own
    assert_agree(record["left/0"].dx, record["left/0"].dy * (1 - record["left/0"].y ** 2), TOLERANCES["float32"])


@pytest.mark.parametrize("name", ["residual-tower", "graph-shared", "image-prelu-net", "noisy"])
def test_the_entries_fit_the_layers_and_make_up_the_gradient(name: str, key: jax.Array):
    problem = NETWORKS[name]
    params, batch = problem.draw(key)
    objective = problem.objective.replace(penalty=None)
    entries, grads = jax.jit(lambda *a: (backprop.record(objective)(*a), jax.grad(objective)(*a)))(params, batch)
    for entry in entries.values():
        assert (entry.dy.shape, entry.dx.shape) == (entry.y.shape, entry.x.shape)
    total = sum(float(jnp.sum(g)) for entry in entries.values() for g in jax.tree.leaves(entry.grads))
    want = sum(float(jnp.sum(g)) for g in jax.tree.leaves(grads))
    size = sum(float(jnp.sum(jnp.abs(g))) for g in jax.tree.leaves(grads))
    assert abs(total - want) <= TOLERANCES["float32"] * size


def test_paths_name_the_way_in(key: jax.Array):
    params, batch = NETWORKS["residual-tower"].draw(key)
    paths = list(jax.eval_shape(backprop.record(NETWORKS["residual-tower"].objective), params, batch))
    assert paths == [
        *("0", "1/body/0", "1/body/1", "1/shortcut", "2/body/0", "2/body/1", "2/shortcut", "3/0", "3/1", "4")
    ]
    params, batch = NETWORKS["linear-regression"].draw(key)
    assert list(jax.eval_shape(backprop.record(NETWORKS["linear-regression"].objective), params, batch)) == [""]
    params, batch = NETWORKS["noisy"].draw(key)  # weight noise has no step of its own in a path
    assert list(jax.eval_shape(backprop.record(NETWORKS["noisy"].objective), params, batch)) == list("01234")


def test_where_autodiff_stood_in_the_entry_says_so(rng: np.random.Generator):
    sine = fnn.lift(lambda key, in_shape: (), lambda params, x: jnp.sin(x))
    objective = fnn.Objective(fnn.Serial(fnn.Dense(4), sine, fnn.Dense(2)), fnn.losses.mse)
    params, x, y = draw_layer(rng, objective.net, (3,), 5)
    record = backprop.record(objective, rules=Rules(RULES, missing="autodiff"))(params, (x, y))
    assert [entry.autodiff for entry in record.values()] == [False, True, False]
    assert_agree(record["1"].dx, record["1"].dy * jnp.cos(record["1"].x), TOLERANCES["float32"])


def test_a_combinator_without_a_rule_is_one_entry(rng: np.random.Generator):
    objective = fnn.Objective(fnn.Serial(fnn.Dense(4), fnn.Residual(fnn.Dense(4))), fnn.losses.mse)
    params, x, y = draw_layer(rng, objective.net, (3,), 5)
    rules = Rules({kind: rule for kind, rule in RULES.items() if kind is not fnn.Residual}, missing="autodiff")
    record = backprop.record(objective, rules=rules)(params, (x, y))
    assert list(record) == ["0", "1"]
    assert record["1"].autodiff
    assert_agree((record["0"].grads, record["1"].grads), jax.grad(objective)(params, (x, y)), TOLERANCES["float32"])


@pytest.mark.parametrize("jit", [False, True])
def test_bytes_have_no_gradient(jit: bool, rng: np.random.Generator):
    objective = fnn.Objective(fnn.Cast(fnn.Serial(fnn.Dense(4), fnn.Relu(), fnn.Dense(2)), "float32"), fnn.losses.mse)
    params, _, y = draw_layer(rng, objective.net, (3,), 5)
    x = jnp.asarray(rng.integers(0, 256, (5, 3)), "uint8")
    run = backprop.record(objective)
    record = (jax.jit(run) if jit else run)(params, (x, y))
    assert record["0"].dx is None
    assert record["1"].dx is not None
    got = (record["0"].grads, record["1"].grads, record["2"].grads)
    assert_agree(got, jax.grad(objective)(params, (x, y)), TOLERANCES["float32"])
