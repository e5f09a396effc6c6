"""Each number of a diagnosis against its definition."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn import backprop
from funcnn.backprop import RULES
from tests.backprop import dense
from tests.problems import NETWORKS

pytestmark = pytest.mark.once

NET = fnn.Serial(fnn.Dense(6), fnn.Relu(), fnn.Dense(5), fnn.Tanh(), fnn.Dense(3))
OBJECTIVE = fnn.Objective(NET, fnn.losses.softmax_cross_entropy)


def problem(key: jax.Array, n: int = 40) -> tuple[Any, Any]:
    x = jax.random.normal(key, (n, 4))
    return NET.init(key, (4,)), (x, jnp.where(x[:, 0] > 0, jnp.where(x[:, 1] > 1, 2, 1), 0))


def test_sizes_are_those_of_the_record(key: jax.Array):
    params, batch = problem(key)
    params[0]["b"] = params[0]["b"].at[2].set(-100)  # a dead unit
    params[2]["b"] = params[2]["b"].at[1].set(50)  # a saturated one
    found, record = backprop.diagnose(OBJECTIVE, params, batch), jax.jit(backprop.record(OBJECTIVE))(params, batch)
    assert list(found.layers) == list(record) == ["0", "1", "2", "3", "4"]
    for path, one in found.layers.items():
        for name, array in (("y", record[path].y), ("dy", record[path].dy)):
            np.testing.assert_allclose(getattr(one, f"{name}_norm"), np.linalg.norm(array), rtol=1e-5)
            np.testing.assert_allclose(getattr(one, f"{name}_mean_square"), np.mean(np.square(array)), rtol=1e-5)
            np.testing.assert_allclose(getattr(one, f"{name}_zeros"), np.mean(array == 0), rtol=1e-5)
    assert found.layers["1"].dead == pytest.approx(1 / 6) == found.layers["1"].saturated
    assert found.layers["3"].dead == 0 and found.layers["3"].saturated == pytest.approx(1 / 5)
    assert found.layers["0"].saturated is None and found.layers["0"].dead == 0
    np.testing.assert_allclose(found.loss, OBJECTIVE(params, batch), rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["log-softmax-nll", "silu-mlp-smoothed", "maxout-mlp", "rbf-network", "image-prelu-net"]
)
def test_the_jacobians_norm(name: str, key: jax.Array):
    problem = NETWORKS[name]
    net = problem.objective.net
    params, batch = problem.draw(key, 5)
    found = backprop.diagnose(problem.objective, params, batch)
    record = jax.jit(backprop.record(problem.objective))(params, batch)
    assert list(found.layers) == list(record)
    checked = 0
    for (path, entry), part in zip(record.items(), leaves(net, params), strict=True):
        j = jax.vmap(jax.jacrev(lambda a, part=part: part.layer.apply(part.params, a[None])[0]))(entry.x)
        sizes = np.linalg.norm(np.asarray(j, np.float64).reshape(5, entry.y[0].size, -1), 2, axis=(1, 2))
        got = found.layers[path].jacobian_norm
        assert got <= sizes.mean() * 1.001  # a power iteration comes from below
        assert got >= sizes.mean() * 0.9, path
        checked += 1
    assert checked == len(record)


def leaves(layer: fnn.Layer, params: Any) -> Any:
    """The parts that are not made of others, in forward order."""
    for part in layer.parts(params) if isinstance(layer, fnn.Combinator) else (fnn.Part(None, None, layer, params),):
        if isinstance(part.layer, fnn.Combinator):
            yield from leaves(part.layer, part.params)
        else:
            yield part


@pytest.mark.parametrize("weights", [False, True])
def test_the_noise_scale(weights: bool, key: jax.Array, x64: None):
    params, batch = problem(key)
    batch = (*batch, jax.random.uniform(key, (40,)).at[3].set(0)) if weights else batch
    found = backprop.diagnose(OBJECTIVE, params, batch)
    g, m = (
        np.asarray(jax.jit(lambda *a: dense.each_gradient(OBJECTIVE, *a))(params, batch)),
        np.asarray(dense.shares(batch)),
    )
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]

    def scale(g: np.ndarray) -> float:
        mean = m @ g
        covariance = (m[:, None] * (g - mean) ** 2).sum() / (1 - (m**2).sum())  # without bias
        return covariance / ((mean**2).sum() - (m**2).sum() * covariance)

    np.testing.assert_allclose(found.noise_scale, scale(g), rtol=1e-9)
    np.testing.assert_allclose(found.layers["0"].noise_scale, scale(g[:, : sizes[0] + sizes[1]]), rtol=1e-9)
    assert found.layers["1"].noise_scale is None


def test_a_batch_that_is_too_small_to_tell_has_an_infinite_noise_scale():
    params, (x, _) = problem(jax.random.key(3))
    opposite = jnp.concatenate([x[:1], x[:1]]), jnp.array([0, 1])
    last = {"w": jnp.zeros((5, 3)), "b": jnp.zeros(3)}  # both classes are as likely: the gradients nearly cancel
    found = backprop.diagnose(OBJECTIVE, (*params[:4], last), opposite)
    assert np.isposinf(found.noise_scale) and "inf" in str(found)


def test_updates_beside_weights(key: jax.Array):
    params, batch = problem(key)
    grads = jax.jit(jax.grad(OBJECTIVE))(params, batch)
    for updates, used in ((None, grads), (jax.tree.map(lambda p: -0.01 * p, params), None)):
        found = backprop.diagnose(OBJECTIVE, params, batch, updates=updates)
        for i in (0, 2, 4):
            size = 0.01 if used is None else dense_norm(used[i]) / dense_norm(params[i])
            np.testing.assert_allclose(found.layers[str(i)].update_ratio, size, rtol=1e-5)


def test_updates_are_like_the_parameters(key: jax.Array):
    params, batch = problem(key)
    for wrong in (params[:2], jax.tree.map(lambda p: p[:1], params)):
        with pytest.raises(ValueError, match="updates has the structure, shapes and dtypes of params"):
            backprop.diagnose(OBJECTIVE, params, batch, updates=wrong)


def test_squares_of_small_dtypes_do_not_overflow():
    """In float16, whose largest number is 65504: outputs of 300."""
    net = fnn.Serial(fnn.Dense(1, bias=False), fnn.Dense(1, bias=False))
    params = tuple({"w": jnp.full((1, 1), w, jnp.float16)} for w in (1.0, 1e-3))
    batch = jnp.full((8, 1), 300, jnp.float16), jnp.zeros((8, 1), jnp.float16)
    found = backprop.diagnose(fnn.Objective(net, fnn.losses.squared_error), params, batch)
    np.testing.assert_allclose(found.layers["0"].y_mean_square, 9e4, rtol=1e-3)
    np.testing.assert_allclose(found.layers["0"].y_norm, 300 * 8**0.5, rtol=1e-3)


def dense_norm(tree: Any) -> Any:
    return jnp.linalg.norm(dense.flat(tree))


# sigma_w^2 E f'^2 in closed form: He's start is made for relu; of the identity-like, sigma_w^2 itself.
@pytest.mark.parametrize(
    ("activation", "init", "chi"),
    [
        (fnn.Relu(), "he_normal", 1.0),
        (fnn.Relu(), "lecun_normal", 0.5),
        (fnn.LeakyRelu(0.5), "he_normal", 1.25),
        (fnn.Identity(), "lecun_normal", 1.0),
        (fnn.Absolute(), "glorot_normal", 1.0),
    ],
)
def test_chi_as_theory_has_it(activation: fnn.Layer, init: str, chi: float, key: jax.Array):
    net = fnn.Serial(*[fnn.Dense(400, w_init=init), activation] * 3, fnn.Dense(400, w_init=init))
    objective = fnn.Objective(net, fnn.losses.squared_error)
    # Targets far larger than outputs: theory takes the deltas to be independent of the weights, as f - y is of y alone.
    x, y = jax.random.normal(key, (64, 400)), 1e3 * jax.random.normal(jax.random.fold_in(key, 1), (64, 400))
    found = backprop.diagnose(objective, net.init(key, (400,)), (x, y))
    for path in ("2", "4", "6"):
        one = found.layers[path]
        np.testing.assert_allclose(one.chi_predicted, chi, rtol=0.02)  # the variance of 160,000 drawn weights
        np.testing.assert_allclose(one.chi, chi, rtol=0.15)  # of one network
    assert found.layers["0"].chi is None and found.layers["1"].chi is None


def test_chi_does_not_depend_on_the_widths(key: jax.Array):
    """The mean square of deltas grows by chi times outputs over inputs: as many deltas come together in each."""
    net = fnn.Serial(*(part for k in (300, 900, 300) for part in (fnn.Dense(k), fnn.Relu())))
    objective = fnn.Objective(net.replace(layers=net.layers[:-1]), fnn.losses.squared_error)
    x, y = jax.random.normal(key, (64, 300)), 1e3 * jax.random.normal(jax.random.fold_in(key, 1), (64, 300))
    found = backprop.diagnose(objective, objective.net.init(key, (300,)), (x, y))
    for path in ("2", "4"):
        np.testing.assert_allclose(found.layers[path].chi, found.layers[path].chi_predicted, rtol=0.15)


def test_chi_is_a_layers_own_where_others_use_its_input(key: jax.Array):
    body = fnn.Dense(300, w_init="lecun_normal")
    net = fnn.Serial(fnn.Dense(300), fnn.Tanh(), fnn.Residual(body), fnn.Dense(300))
    objective = fnn.Objective(net, fnn.losses.squared_error)
    x, y = jax.random.normal(key, (64, 300)), 1e3 * jax.random.normal(jax.random.fold_in(key, 1), (64, 300))
    one = backprop.diagnose(objective, net.init(key, (300,)), (x, y)).layers["2/body"]
    np.testing.assert_allclose(one.chi, one.chi_predicted, rtol=0.15)
    assert one.chi_predicted < 0.6  # that of tanh, and not of the shortcut, which hands on the same array


@pytest.mark.parametrize("name", ["noisy", "residual-tower", "graph-shared"])
def test_in_training_under_jit_and_as_text(name: str, key: jax.Array):
    objective = NETWORKS[name].objective
    params, batch = NETWORKS[name].draw(key)
    found = jax.jit(lambda p, b: backprop.diagnose(objective, p, b, key=key, train=True))(params, batch)
    record = backprop.record(objective)(params, batch, key=key, train=True)
    text, numbers = str(found), found.to_dict()
    for path in record:
        assert path in text
        if found.layers[path].dy_norm is None:
            assert (name, path) == ("noisy", "0")  # before the first layer that learns, where no delta is needed
        else:
            np.testing.assert_allclose(numbers[f"layers/{path}/dy_norm"], np.linalg.norm(record[path].dy), rtol=1e-4)
    assert len(text.splitlines()) == len(record) + 4
    figure = found.plot()
    assert len(figure.axes) == 4


def test_examples_of_weight_zero_count_nothing(key: jax.Array):
    params, (x, y) = problem(key)
    more = jnp.concatenate([x, 1e3 + x[:3]]), jnp.concatenate([y, y[:3]]), jnp.ones(len(x) + 3).at[-3:].set(0)
    wanted = backprop.diagnose(OBJECTIVE, params, (x, y)).to_dict()
    found = backprop.diagnose(OBJECTIVE, params, more).to_dict()
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, err_msg=name)


def test_one_example_and_examples_of_weight_zero_in_front(key: jax.Array):
    net = fnn.Serial(fnn.Dense(4), fnn.Softmax(), fnn.Dense(3))
    objective = fnn.Objective(net, fnn.losses.softmax_cross_entropy)
    params, x = net.init(key, (5,)), jax.random.normal(key, (40, 5))
    y = jnp.arange(40) % 3
    alone = fnn.backprop.diagnose(objective, params, (x[:1], y[:1]))
    assert np.isinf(alone.noise_scale) and all(np.isinf(alone.layers[path].noise_scale) for path in "02")
    some = fnn.backprop.diagnose(objective, params, (x, y, (jnp.arange(40) >= 20).astype(jnp.float32)))
    want = fnn.backprop.diagnose(objective, params, (x[20:], y[20:]))
    np.testing.assert_allclose(some.layers["1"].jacobian_norm, want.layers["1"].jacobian_norm, rtol=1e-3)


def test_what_is_not_finite_is_marked(key: jax.Array):
    params, (x, y) = problem(key)
    found = backprop.diagnose(OBJECTIVE, params, (x.at[0, 0].set(jnp.nan), y))
    assert np.isnan(found.layers["0"].y_norm) and "! nan" in str(found)


def test_a_rule_without_a_tangent_has_no_norm(key: jax.Array):
    rule = RULES[fnn.Dense]
    rules = RULES | {fnn.Dense: backprop.Rule(rule.fwd, rule.bwd)}
    found = backprop.diagnose(OBJECTIVE, *problem(key), rules=rules)
    assert found.layers["0"].jacobian_norm is None and found.layers["1"].jacobian_norm == 1
