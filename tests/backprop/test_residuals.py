"""What is kept between forward and backward is the least that suffices, and what nobody needs is not computed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn import backprop
from funcnn.backprop import RULES, Context, Rule
from funcnn.compose import Combinator
from tests.backprop.agree import count, draw_layer
from tests.problems import LAYERS, NETWORKS, LayerProblem, each_layer

OUTPUT, INPUT, NOTHING = "output", "input", "nothing"

# Everything that a layer keeps: the very array that is its output or its input, or arrays of these types.
KEPT: dict[type, Any] = {
    fnn.Sigmoid: OUTPUT,
    fnn.Tanh: OUTPUT,
    fnn.Relu: OUTPUT,
    fnn.Softplus: OUTPUT,
    fnn.Elu: OUTPUT,
    fnn.Softmax: OUTPUT,
    fnn.LogSoftmax: OUTPUT,
    fnn.Swish: INPUT,
    fnn.Silu: INPUT,
    fnn.HardSwish: INPUT,
    fnn.Gelu: INPUT,
    fnn.Prelu: INPUT,
    fnn.Dense: INPUT,
    fnn.FeedbackDense: INPUT,
    fnn.LeakyRelu: [("bool", (6, 5))],
    fnn.Absolute: [("int8", (6, 5))],
    fnn.Identity: NOTHING,
    fnn.Step: NOTHING,
    fnn.Dropout: NOTHING,
    fnn.GaussianNoise: NOTHING,
    fnn.Flatten: NOTHING,
    fnn.Reshape: NOTHING,
}
TRIED = {name: p for name, p in LAYERS.items() if type(p.layer) in KEPT}


@pytest.mark.parametrize("problem", TRIED.values(), ids=TRIED.keys())
def test_a_layer_keeps_exactly_this(problem: LayerProblem, key: jax.Array, rng: np.random.Generator):
    params, x, _ = draw_layer(rng, *problem, 6)
    y, kept = RULES[type(problem.layer)].fwd(problem.layer, params, x, Context(RULES, key=key, train=True))
    want, leaves = KEPT[type(problem.layer)], jax.tree.leaves(kept)
    if isinstance(want, list):
        assert [(leaf.dtype.name, leaf.shape) for leaf in leaves] == want
    else:
        assert [id(leaf) for leaf in leaves] == {OUTPUT: [id(y)], INPUT: [id(x)], NOTHING: []}[want]


def test_all_layers_but_these_are_in_that_list():
    """Maxout and rbf keep two arrays, which their own tests look at; combinators and Repeat what their layers keep."""
    types = {type(problem.layer) for problem in LAYERS.values()}
    combinators = {kind for kind in types if issubclass(kind, Combinator)}
    assert types - combinators - set(KEPT) == {fnn.Maxout, fnn.Rbf, fnn.Repeat}


@each_layer
def test_no_rule_keeps_a_parameter(problem: LayerProblem, key: jax.Array, rng: np.random.Generator):
    """Nothing that is kept could be had without x: neither the parameters nor what follows from them alone."""
    params, x, _ = draw_layer(rng, *problem, 6)
    ctx = Context(RULES, key=key, train=True)
    program = jax.make_jaxpr(lambda x, params: RULES[type(problem.layer)].fwd(problem.layer, params, x, ctx)[1])(
        x, params
    )
    from_x = {program.jaxpr.invars[0]}
    for equation in program.jaxpr.eqns:
        if any(isinstance(v, type(program.jaxpr.invars[0])) and v in from_x for v in equation.invars):
            from_x.update(equation.outvars)
    assert all(v in from_x for v in program.jaxpr.outvars)


def test_neighbours_share_what_they_keep(rng: np.random.Generator):
    """tanh keeps its output, which is what the dense layer after it keeps as its input: one array."""
    net = fnn.Serial(fnn.Dense(4), fnn.Tanh(), fnn.Dense(3), fnn.Relu(), fnn.Dense(2))
    params, x, _ = draw_layer(rng, net, (3,), 5)
    _, kept = RULES[fnn.Serial].fwd(net, params, x, Context(RULES))
    arrays = {id(leaf): leaf.shape for leaf in jax.tree.leaves(kept)}
    assert sorted(arrays.values()) == [(5, 3), (5, 3), (5, 4)]  # x, the relu's output, the tanh's


# ---------------------------------------------------------------------------------------------------------------------


def counting(calls: list[tuple[str, bool]]) -> backprop.Rules:
    """The rules, each writing down its path and whether the gradient for its input was asked for and given."""

    def listening(rule: Rule) -> Rule:
        def bwd(layer, params, residuals, dy, ctx):
            grads, dx = rule.bwd(layer, params, residuals, dy, ctx)
            if not isinstance(layer, Combinator):
                assert (dx is not None) or not ctx.need_dx
                calls.append(("/".join(ctx.path), ctx.need_dx))
            return grads, dx

        return Rule(rule.fwd, bwd)

    layers = {kind: listening(rule) for kind, rule in RULES.items() if issubclass(kind, fnn.Layer)}
    return RULES | layers


SPARED = {
    # The first layer that learns needs no dx, and what comes before it is not run at all.
    "chain": (
        fnn.Serial(fnn.Flatten(), fnn.Tanh(), fnn.Dense(3), fnn.Relu(), fnn.Dense(2)),
        [("4", True), ("3", True), ("2", False)],
    ),
    "nested": (
        fnn.Serial(fnn.Serial(fnn.Tanh(), fnn.Serial(fnn.Dense(3), fnn.Tanh())), fnn.Dense(2)),
        [("1", True), ("0/1/1", True), ("0/1/0", False)],
    ),
    "branches": (
        fnn.Parallel(fnn.Dense(2), fnn.Tanh(), fnn.Serial(fnn.Tanh(), fnn.Dense(2))),
        [("0", False), ("2/1", False)],
    ),
    "residual": (fnn.Residual(fnn.Serial(fnn.Dense(3), fnn.Tanh())), [("body/1", True), ("body/0", False)]),
    "behind-a-layer": (
        fnn.Serial(fnn.Dense(3), fnn.Residual(fnn.Dense(3))),
        [("1/body", True), ("1/shortcut", True), ("0", False)],
    ),
    # Of two ways to one node, only the one with something to learn on it.
    "graph": (
        fnn.Graph(
            {
                "a": fnn.Node(fnn.Tanh(), "input"),
                "b": fnn.Node(fnn.Dense(3), "a"),
                "c": fnn.Node(fnn.Sigmoid(), "a"),
                "d": fnn.Node(fnn.Relu(), ("b", "c")),
                "y": fnn.Node(fnn.Dense(2), "d"),
            },
            output="y",
        ),
        [("y", True), ("d", True), ("b", False)],
    ),
}


@pytest.mark.parametrize(("net", "wanted"), SPARED.values(), ids=SPARED.keys())
def test_gradients_that_nobody_needs_are_not_asked_for(net: fnn.Layer, wanted: list, rng: np.random.Generator):
    objective = fnn.Objective(net, fnn.losses.mse)
    params, x, y = draw_layer(rng, net, (3,), 5)
    calls: list[tuple[str, bool]] = []
    jax.eval_shape(backprop.value_and_grad(objective, rules=counting(calls)), params, (x, y))
    assert calls == wanted
    calls.clear()
    jax.eval_shape(lambda *a: backprop.vjp(net, *a, rules=counting(calls))[1](y), params, x)
    assert all(need for _, need in calls)  # here someone wants dx
    assert {path for path, _ in wanted} < {path for path, _ in calls} or len(calls) == len(wanted)


# Dense layers and others of one matrix product; Rbf is left out, whose rule makes products of what autodiff does not.
PRODUCTS = [name for name in NETWORKS if "Rbf" not in repr(NETWORKS[name].objective)]


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_program_has_no_more_matrix_products_than_autodiffs(name: str, key: jax.Array):
    problem = NETWORKS[name]
    params, batch = problem.draw(key)
    by_hand = count("dot_general", backprop.value_and_grad(problem.objective), params, batch)
    assert by_hand == count("dot_general", jax.value_and_grad(problem.objective), params, batch)


def test_a_dense_layer_costs_two_products_backward_and_the_first_one(rng: np.random.Generator):
    layers = 4
    net = fnn.Serial(*[layer for _ in range(layers) for layer in (fnn.Dense(3), fnn.Tanh())])
    params, x, y = draw_layer(rng, net, (3,), 5)
    objective = fnn.Objective(net, fnn.losses.mse)
    assert count("dot_general", backprop.value_and_grad(objective), params, (x, y)) == layers + 2 * layers - 1
    with_dx = count("dot_general", lambda *a: backprop.vjp(net, *a)[1](y), params, x)
    assert with_dx == 3 * layers


def test_with_rules_computes_only_what_is_differentiated(rng: np.random.Generator):
    layers = 3
    net = fnn.Serial(*[layer for _ in range(layers) for layer in (fnn.Dense(3), fnn.Tanh())])
    layer = backprop.with_rules(net)
    params, x, dy = draw_layer(rng, net, (3,), 5)

    def loss(params, x):
        return jnp.sum(layer.apply(params, x) * dy)

    assert count("dot_general", jax.grad(loss), params, x) == 3 * layers - 1
    assert count("dot_general", jax.grad(loss, (0, 1)), params, x) == 3 * layers


def test_the_kept_bytes_of_a_step_are_no_more_than_autodiffs(key: jax.Array):
    """Residuals by hand against those of `jax.vjp`, each array counted once, the parameters and the batch left out."""
    net = fnn.Serial(fnn.Dense(50), fnn.Sigmoid(), fnn.Maxout(40, 4), fnn.Dropout(0.5), fnn.Dense(30), fnn.Relu())
    params, x, _ = draw_layer(np.random.default_rng(0), net, (20,), 100)

    def kept(run) -> int:
        pullback = run()[1]
        leaves = {id(leaf): leaf for leaf in jax.tree.leaves(pullback) if leaf is not key}
        given = {leaf.shape for leaf in (x, *jax.tree.leaves(params))}
        return sum(leaf.nbytes for leaf in leaves.values() if leaf.shape not in given)

    by_hand = kept(lambda: backprop.vjp(net, params, x, key=key, train=True))
    by_autodiff = kept(lambda: jax.vjp(lambda p, a: net.apply(p, a, key=key, train=True), params, x))
    assert 0 < by_hand <= by_autodiff
    assert by_hand == 4 * 100 * (50 + 40 + 30) + 100 * 40  # three layers' outputs, and maxout's bytes
