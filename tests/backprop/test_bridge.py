"""`with_rules`: a layer like any other, whose `jax.grad` runs the rules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcnn as fnn
from funcnn import backprop
from funcnn.backprop import RULES, Rule
from tests.backprop.agree import TOLERANCES, assert_agree, draw_layer
from tests.problems import NETWORKS

NET = fnn.Serial(fnn.Dense(4), fnn.Tanh(), fnn.Dropout(0.4), fnn.Dense(2))
TANH = fnn.Serial(fnn.Dense(3), fnn.Tanh(), fnn.Dense(2))


def doubled(kind: type[fnn.Layer]) -> backprop.Rules:
    """Rules under which the gradient that passes through a layer of that type is doubled: one sees whether they ran."""
    rule = RULES[kind]

    def bwd(layer, params, residuals, dy, ctx):
        return rule.bwd(layer, params, residuals, 2 * dy, ctx)

    return RULES | {kind: Rule(rule.fwd, bwd)}


@pytest.mark.parametrize(
    "name", ["relu-mlp-l1-l2", "maxout-mlp", "rbf-network", "image-prelu-net", "graph-shared", "noisy"]
)
def test_under_jax_grad_it_is_the_network(name: str, key: jax.Array):
    problem = NETWORKS[name]
    params, batch = problem.draw(key)
    objective = problem.objective.replace(net=backprop.with_rules(problem.objective.net))

    @jax.jit
    def both(params, batch):
        return [jax.value_and_grad(f)(params, batch, key=key, train=True) for f in (objective, problem.objective)]

    assert_agree(*both(params, batch), within=TOLERANCES["float32"])


@pytest.mark.parametrize("argnums", [0, 1, (0, 1)], ids=["params", "x", "both"])
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_for_the_parameters_for_x_and_for_both(argnums, jit: bool, key: jax.Array, rng: np.random.Generator):
    params, x, dy = draw_layer(rng, NET, (3,), 5)

    def loss(net):
        return lambda params, x: jnp.sum(dy * net.apply(params, x, key=key, train=True))

    got, want = (jax.grad(loss(net), argnums) for net in (backprop.with_rules(NET), NET))
    assert_agree((jax.jit(got) if jit else got)(params, x), want(params, x), TOLERANCES["float32"])


TRANSFORMED = {
    "grad of jit": lambda loss: jax.grad(jax.jit(loss)),
    "grad of vmap over keys": lambda loss: jax.grad(
        lambda params, x, key: jnp.sum(jax.vmap(loss, (None, None, 0))(params, x, jax.random.split(key, 3)))
    ),
    "vmap over keys of grad": lambda loss: (
        lambda params, x, key: jax.vmap(jax.grad(loss), (None, None, 0))(params, x, jax.random.split(key, 3))
    ),
    "grad of scan over keys": lambda loss: jax.grad(
        lambda params, x, key: jax.lax.scan(
            lambda total, k: (total + loss(params, x, k), None), jnp.zeros(()), jax.random.split(key, 3)
        )[0]
    ),
    "grad of checkpoint": lambda loss: jax.grad(jax.checkpoint(loss)),
    "vmap over examples": lambda loss: (
        lambda params, x, key: jax.vmap(jax.grad(loss), (None, 0, None))(params, x[:, None], key)
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMED.values(), ids=TRANSFORMED.keys())
def test_in_training_under_every_transformation(transform, key: jax.Array, rng: np.random.Generator):
    """The key is then a value of the transformation that the rules run inside."""
    params, x, _ = draw_layer(rng, NET, (3,), 4)

    def loss(net):
        return lambda params, x, key: jnp.sum(jnp.sin(net.apply(params, x, key=key, train=True)))

    by_hand, by_autodiff = (jax.jit(transform(loss(net))) for net in (backprop.with_rules(NET), NET))
    assert_agree(by_hand(params, x, key), by_autodiff(params, x, key), TOLERANCES["float32"])


def test_the_rules_are_what_runs(rng: np.random.Generator):
    params, x, dy = draw_layer(rng, TANH, (3,), 5)
    layer = backprop.with_rules(TANH, doubled(fnn.Tanh))
    got = jax.vjp(layer.apply, params, x)[1](dy)
    true = jax.vjp(TANH.apply, params, x)[1](dy)
    twice = jax.tree.map(lambda g: 2 * g, true)
    assert_agree(got, ((twice[0][0], (), true[0][2]), twice[1]), TOLERANCES["float32"])


def test_inside_another_network(rng: np.random.Generator):
    """Under autodiff the part runs by its own rules; where the whole runs by rules, it needs the stand-in."""
    outer = fnn.Serial(fnn.Dense(4), backprop.with_rules(TANH, doubled(fnn.Tanh)), fnn.Tanh())
    plain = fnn.Serial(fnn.Dense(4), TANH, fnn.Tanh())
    params, x, dy = draw_layer(rng, outer, (3,), 5)
    got = jax.vjp(outer.apply, params, x)[1](dy)
    true = jax.vjp(plain.apply, params, x)[1](dy)
    assert_agree(got[0][1][2], true[0][1][2], TOLERANCES["float32"])  # behind the tanh
    assert_agree(got[0][0], jax.tree.map(lambda g: 2 * g, true[0][0]), TOLERANCES["float32"])  # before it
    assert_agree(got[1], 2 * true[1], TOLERANCES["float32"])
    with pytest.raises(backprop.RuleError, match="WithRules"):
        backprop.vjp(outer, params, x)
    mixed = backprop.vjp(outer, params, x, rules=backprop.Rules(RULES, missing="autodiff"))[1](dy)
    assert_agree(mixed, got, TOLERANCES["float32"])


def test_it_is_a_layer_like_its_own():
    layer = backprop.with_rules(NET)
    params = layer.init(jax.random.key(0), (3,))
    assert_agree(params, NET.init(jax.random.key(0), (3,)), 0.0)
    assert layer.out_shape((3,)) == (2,)
    assert layer.multiply_adds((3,)) == NET.multiply_adds((3,)) == 3 * 4 + 4 * 2
    assert layer == backprop.with_rules(NET)
    assert hash(layer) == hash(backprop.with_rules(NET))
    np.testing.assert_array_equal(layer.apply(params, jnp.ones((4, 3))), NET.apply(params, jnp.ones((4, 3))))


def test_it_trains_with_optax(key: jax.Array):
    problem = NETWORKS["silu-mlp-smoothed"]
    params, batch = problem.draw(key)
    optimizer = optax.adam(0.03)

    def train(objective):
        def step(state, _):
            params, opt_state = state
            value, grads = jax.value_and_grad(objective)(params, batch)
            with jax.numpy_dtype_promotion("standard"):
                updates, opt_state = optimizer.update(grads, opt_state)
                return (optax.apply_updates(params, updates), opt_state), value

        return jax.jit(lambda: jax.lax.scan(step, (params, optimizer.init(params)), None, 20)[1])()

    values = train(problem.objective.replace(net=backprop.with_rules(problem.objective.net)))
    assert values[-1] < 0.9 * values[0]
    assert_agree(values, train(problem.objective), 1e-4)  # see test_training.py for how fast roundings grow


@pytest.mark.usefixtures("x64")
def test_the_hessian_is_autodiffs(rng: np.random.Generator):
    """The rules are plain JAX, so that both modes differentiate them once more."""
    params, x, dy = draw_layer(rng, TANH, (2,), 3)

    def loss(net):
        return lambda params: jnp.sum(dy * net.apply(params, x) ** 2)

    want = jax.jit(jax.hessian(loss(TANH)))(params)
    layer = backprop.with_rules(TANH)
    assert_agree(jax.jit(jax.hessian(loss(layer)))(params), want, TOLERANCES["float64"])
    assert_agree(jax.jit(jax.jacrev(jax.grad(loss(layer))))(params), want, TOLERANCES["float64"])


def test_forward_mode_is_not_defined_and_says_so():
    with pytest.raises(TypeError, match="forward-mode autodiff"):
        jax.jvp(lambda x: backprop.with_rules(fnn.Tanh()).apply((), x), (jnp.ones(3),), (jnp.ones(3),))


def test_a_layer_without_a_rule_is_an_error_when_it_is_differentiated():
    layer = backprop.with_rules(fnn.Serial(fnn.lift(lambda key, in_shape: (), lambda params, x: 2 * x)))
    np.testing.assert_array_equal(layer.apply(((),), jnp.ones((1, 2))), [[2.0, 2.0]])
    with pytest.raises(backprop.RuleError, match="at '0'"):
        jax.grad(lambda x: jnp.sum(layer.apply(((),), x)))(jnp.ones((1, 2)))


def test_an_output_that_nobody_uses_has_gradient_zero(rng: np.random.Generator):
    """The cotangent is then a symbolic zero."""
    params, x, dy = draw_layer(rng, TANH, (3,), 5)
    layer = backprop.with_rules(TANH)

    def loss(params):
        y = layer.apply(params, x)
        return jnp.sum(jax.lax.stop_gradient(y) * dy) + jnp.sum(params[0]["w"])

    got = jax.grad(loss)(params)
    assert_agree(got[2], jax.tree.map(jnp.zeros_like, params[2]), 0.0)
    assert_agree(got[0], {"w": jnp.ones((3, 3)), "b": jnp.zeros(3)}, 0.0)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_bytes_go_in_too(jit: bool, rng: np.random.Generator):
    net = fnn.Cast(fnn.Serial(fnn.Flatten(), fnn.Dense(2)), "float32")
    params, _, dy = draw_layer(rng, net, (2, 3), 5)
    x = jnp.asarray(rng.integers(0, 256, (5, 2, 3)), "uint8")
    grads = [jax.grad(lambda params, n=n: jnp.sum(dy * n.apply(params, x))) for n in (backprop.with_rules(net), net)]
    assert_agree(*((jax.jit(g) if jit else g)(params) for g in grads), within=TOLERANCES["float32"])
