"""Whole networks: `value_and_grad` against `jax.value_and_grad`, and `vjp` against `jax.vjp`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn import backprop
from tests.backprop.agree import TOLERANCES, assert_agree, draw_layer, objective_gradients, tolerance
from tests.problems import NETWORKS, NetworkProblem, each_network

MLP = fnn.Serial(fnn.Dense(4), fnn.Tanh(), fnn.Dense(2))


@each_network
def test_value_and_grad_is_jaxs(problem: NetworkProblem, key: jax.Array):
    params, batch = problem.draw(key)
    by_hand, by_autodiff = jax.jit(objective_gradients(problem.objective))(params, batch)
    assert_agree(by_hand, by_autodiff, TOLERANCES["float32"])


@pytest.mark.usefixtures("x64")
@each_network
def test_in_training_with_example_weights_it_is_jaxs(problem: NetworkProblem, key: jax.Array, rng: np.random.Generator):
    params, (x, y) = problem.draw(key)
    both = jax.jit(partial(objective_gradients(problem.objective), key=key, train=True))
    by_hand, by_autodiff = both(params, (x, y, jnp.asarray(rng.uniform(size=len(x)))))
    assert_agree(by_hand, by_autodiff, tolerance(problem.objective, "float64"))


@each_network
def test_value_and_grad_has_the_types_of_jaxs(problem: NetworkProblem, key: jax.Array):
    """Down to the weak types, which would compile a second program at the second step. In bfloat16 too."""
    params, (x, y) = problem.draw(key)
    for dtype in ("float32", "bfloat16"):
        args = jax.tree.map(lambda a, dtype=dtype: a.astype(dtype), (params, x))
        by_hand, by_autodiff = jax.eval_shape(objective_gradients(problem.objective), args[0], (args[1], y))
        assert by_hand == by_autodiff
        for got, want in zip(jax.tree.leaves(by_hand), jax.tree.leaves(by_autodiff), strict=True):
            assert got.weak_type == want.weak_type


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name",
    ["relu-mlp-l1-l2", "learned-variance", "maxout-mlp", "rbf-network", "image-prelu-net", "graph-shared", "noisy"],
)
def test_under_vmap(name: str, key: jax.Array):
    """Over examples, whose gradients have the batch's as their mean; and over the parameters of an ensemble."""
    problem = NETWORKS[name]
    params, (x, y) = problem.draw(key)
    ensemble = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a, -a]), params)
    gradient = backprop.value_and_grad(problem.objective)

    @jax.jit
    def run(params, ensemble, x, y):
        singles = jax.vmap(lambda x, y: gradient(params, (x[None], y[None])))(x, y)
        alone = jax.lax.map(lambda params: gradient(params, (x, y)), ensemble)
        return (
            (jax.tree.map(lambda a: jnp.mean(a, axis=0), singles), gradient(params, (x, y))),
            (jax.vmap(gradient, (0, None))(ensemble, (x, y)), alone),
        )

    for got, want in run(params, ensemble, x, y):
        assert_agree(got, want, tolerance(problem.objective, "float64"))


@pytest.mark.parametrize("name", ["graph-shared", "noisy"])
def test_without_jit_it_is_the_same(name: str, key: jax.Array):
    problem = NETWORKS[name]
    params, batch = problem.draw(key)

    def run(params, batch):
        return backprop.value_and_grad(problem.objective)(params, batch, key=key, train=True)

    assert_agree(run(params, batch), jax.jit(run)(params, batch), TOLERANCES["float32"])


def test_aux_comes_along(key: jax.Array):
    def accuracy(outputs, batch):
        return {"accuracy": jnp.mean(jnp.argmax(outputs, axis=-1) == batch[1]), "outputs": outputs}

    problem = NETWORKS["relu-mlp-l1-l2"]
    objective = problem.objective.replace(aux=accuracy)
    params, batch = problem.draw(key)
    by_hand, by_autodiff = jax.jit(objective_gradients(objective, has_aux=True))(params, batch)
    assert by_hand[0][1]["outputs"].shape == (7, 3)
    assert_agree(by_hand, by_autodiff, TOLERANCES["float32"])


@pytest.mark.parametrize("has_aux", [False, True])
def test_aux_is_asked_for_where_there_is_one(has_aux: bool):
    objective = fnn.Objective(MLP, fnn.losses.mse, aux=None if has_aux else lambda outputs, batch: 0)
    with pytest.raises(TypeError, match="aux"):
        backprop.value_and_grad(objective, has_aux=has_aux)


@pytest.mark.parametrize("make", [backprop.value_and_grad, backprop.record])
def test_a_bare_function_is_refused_with_the_way_out(make):
    with pytest.raises(TypeError, match=r"jax\.value_and_grad.*fnn\.backprop\.vjp"):
        make(lambda params, batch: 0.0)


def test_a_users_own_loss_and_penalty_need_a_rule_or_autodiff(key: jax.Array):
    def quartic(outputs, targets):
        return jnp.sum((outputs - targets) ** 4, axis=-1)

    def cubic(params):
        return jnp.sum(params[0]["w"] ** 3)

    args = draw_problem(key)
    for objective in (fnn.Objective(MLP, quartic), fnn.Objective(MLP, fnn.losses.mse, cubic)):  # type: ignore[arg-type]
        with pytest.raises(backprop.RuleError, match="no backward rule for <function"):
            backprop.value_and_grad(objective)(*args)
        by_hand = backprop.value_and_grad(objective, rules=backprop.Rules(backprop.RULES, missing="autodiff"))(*args)
        assert_agree(by_hand, jax.value_and_grad(objective)(*args), TOLERANCES["float32"])

    rule = backprop.Rule(
        lambda loss, targets, f, ctx: (loss(f, targets), f - targets),
        lambda loss, targets, difference, dv, ctx: (None, 4 * difference**3 * dv[:, None]),
    )
    objective = fnn.Objective(MLP, quartic)
    by_hand = backprop.value_and_grad(objective, rules=backprop.RULES | {quartic: rule})(*args)
    assert_agree(by_hand, jax.value_and_grad(objective)(*args), TOLERANCES["float32"])


def draw_problem(key: jax.Array):
    return NetworkProblem(fnn.Objective(MLP, fnn.losses.mse), (3,), "real").draw(key)


# ---------------------------------------------------------------------------------------------------------------------


def test_the_pullback_passes_through_jit_and_vmap(rng: np.random.Generator):
    params, x, _ = draw_layer(rng, MLP, (3,), 5)
    dys = jnp.asarray(rng.normal(size=(4, 5, 2)))
    y, pullback = jax.jit(lambda params, x: backprop.vjp(MLP, params, x))(params, x)  # out of a jit
    y_auto, by_autodiff = jax.vjp(MLP.apply, params, x)
    assert_agree(y, y_auto, TOLERANCES["float32"])
    want = jax.vmap(by_autodiff)(dys)
    assert_agree(jax.vmap(pullback)(dys), want, TOLERANCES["float32"])
    into = jax.jit(lambda pullback, dys: jax.vmap(pullback)(dys))  # and into another
    assert_agree(into(pullback, dys), want, TOLERANCES["float32"])


def test_a_pullback_of_every_example_at_once(rng: np.random.Generator):
    """The residuals go through vmap, too."""
    params, x, dy = draw_layer(rng, MLP, (3,), 5)
    _, pullbacks = jax.vmap(lambda x: backprop.vjp(MLP, params, x))(x)
    grads, dx = jax.vmap(lambda pullback, dy: pullback(dy))(pullbacks, dy)
    want, dx_auto = jax.vjp(MLP.apply, params, x)[1](dy)
    assert_agree((jax.tree.map(lambda g: jnp.sum(g, axis=0), grads), dx), (want, dx_auto), TOLERANCES["float32"])


@pytest.mark.parametrize("x_dtype", ["uint8", "int32", "bool"])
def test_an_input_of_integers_has_a_gradient_of_type_float0(x_dtype: str, rng: np.random.Generator):
    net = fnn.Cast(fnn.Serial(fnn.Flatten(), fnn.Dense(3), fnn.Relu(), fnn.Dense(2)), "float32")
    params, _, dy = draw_layer(rng, net, (2, 3), 5)
    x = jnp.asarray(rng.integers(0, 2, (5, 2, 3)), x_dtype)
    y, pullback = backprop.vjp(net, params, x)
    y_auto, by_autodiff = jax.vjp(net.apply, params, x)
    assert_agree((y, pullback(dy)), (y_auto, by_autodiff(dy)), TOLERANCES["float32"])
    through_jit = jax.jit(lambda params, x: backprop.vjp(net, params, x))(params, x)[1]
    assert_agree(through_jit(dy), by_autodiff(dy), TOLERANCES["float32"])


def test_a_list_will_do_for_x():
    y, pullback = backprop.vjp(fnn.Tanh(), (), [[0.0, 0.0]])  # type: ignore[arg-type]
    np.testing.assert_array_equal(pullback(jnp.ones_like(y))[1], [[1.0, 1.0]])


def test_second_derivatives_run_through_the_rules(rng: np.random.Generator):
    """The rules are plain JAX: forward mode over them gives the products of the Hessian."""
    objective = fnn.Objective(MLP, fnn.losses.squared_error, fnn.penalties.l2(0.1))
    params, x, y = draw_layer(rng, MLP, (3,), 5)
    tangent = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)

    def product(gradient):
        return jax.jit(lambda p, t: jax.jvp(lambda p: gradient(p, (x, y))[1], (p,), (t,))[1])(params, tangent)

    assert_agree(
        product(backprop.value_and_grad(objective)), product(jax.value_and_grad(objective)), TOLERANCES["float32"]
    )
