"""Tangents and second derivatives of every rule, and the products with curvature matrices that are made of them."""

from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax.flatten_util import ravel_pytree

import funcnn as fnn
from funcnn.backprop import RULES
from funcnn.backprop.rule import Context, need_second
from funcnn.compose import Combinator, Part
from tests.backprop import dense
from tests.backprop.agree import draw_layer, draw_like, inner
from tests.backprop.test_quantities import WHOLE, all_close, close, weighted
from tests.backprop.test_random_networks import SEEDS, draw_regression, fewer, graphs, layers
from tests.problems import (
    LAYERS,
    NETWORKS,
    LayerProblem,
    LossProblem,
    NetworkProblem,
    draw_targets,
    each_layer,
    each_loss,
)


@each_layer
def test_the_tangent_is_that_of_jvp_and_the_transpose_of_bwd(
    problem: LayerProblem, key: jax.Array, rng: np.random.Generator
):
    """In training: what draws no random numbers is the same there."""
    layer, train = problem.layer, True

    def both(params: Any, x: Any, v: Any, vx: Any, dy: Any) -> Any:
        part = Part(None, None, layer, params)
        ctx = Context(RULES, key=key, train=train)
        _, residuals = ctx.fwd(part, x)
        vy = ctx.tangent(part, residuals, v, vx)
        dparams, dx = ctx.bwd(part, residuals, dy, True)
        _, want = jax.jvp(lambda p, a: layer.apply(p, a, key=key, train=train), (params, x), (v, vx))
        alone = ctx.tangent(part, residuals, v, None)  # of the parameters alone
        _, alone_want = jax.jvp(lambda p: layer.apply(p, x, key=key, train=train), (params,), (v,))
        alone = jnp.zeros_like(alone_want) if alone is None else alone
        got, wanted = [vy, alone, inner(vy, dy)], [want, alone_want, inner((dparams, dx), (v, vx))]
        if not isinstance(layer, Combinator):  # of the input alone
            got.append(RULES[type(layer)].tangent(layer, params, residuals[0], None, vx, ctx))  # pyright: ignore[reportOptionalCall]
            wanted.append(jax.jvp(lambda a: layer.apply(params, a, key=key, train=train), (x,), (vx,))[1])
        return got, wanted

    with jax.enable_x64(True):
        params, x, dy = draw_layer(rng, layer, problem.in_shape, 4)
        got, want = jax.jit(both)(params, x, draw_like(rng, params), draw_like(rng, x), dy)
    for g, w in zip(got, want, strict=True):
        close(g, w)


LEAVES = {name: problem for name, problem in LAYERS.items() if not isinstance(problem.layer, Combinator)}


@pytest.mark.parametrize("problem", LEAVES.values(), ids=LEAVES.keys())
def test_the_second_derivative_is_that_of_bwd(problem: LayerProblem, rng: np.random.Generator):
    layer = problem.layer

    def both(params: Any, x: Any, v: Any, vx: Any, dy: Any) -> Any:
        def back(p: Any, a: Any) -> Any:
            _, residuals = rule.fwd(layer, p, a, ctx)
            return rule.bwd(layer, p, residuals, dy, ctx)

        def second(v: Any, vx: Any) -> Any:
            dparams, dx = need_second(rule, layer)(layer, params, residuals, dy, v, vx, ctx)
            zeros = jax.tree.map(jnp.zeros_like, (params, x))
            return zeros[0] if dparams is None else dparams, zeros[1] if dx is None else dx

        rule, ctx = RULES[type(layer)], Context(RULES)
        _, residuals = rule.fwd(layer, params, x, ctx)
        _, want = jax.jvp(back, (params, x), (v, vx))
        _, of_params = jax.jvp(lambda p: back(p, x), (params,), (v,))
        _, of_x = jax.jvp(lambda a: back(params, a), (x,), (vx,))
        return (second(v, vx), second(v, None), second(None, vx)), (want, of_params, of_x)

    with jax.enable_x64(True):
        params, x, dy = draw_layer(rng, layer, problem.in_shape, 4)
        got, want = jax.jit(both)(params, x, draw_like(rng, params), draw_like(rng, x), dy)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        close(g, w)


@each_loss
def test_the_hessian_of_a_loss_and_its_root(problem: LossProblem, key: jax.Array, rng: np.random.Generator):
    loss = problem.loss
    rule: Any = RULES[type(loss)]

    def both(f: Any, y: Any, u: Any) -> Any:
        def total(a: Any) -> Any:
            return loss(a, y).sum()

        want = jax.jvp(jax.grad(total), (f,), (u,))[1]
        got = [rule.hessian(loss, y, f, u)]
        if "learned" not in repr(loss):  # which has none
            root = rule.root(loss, y, f)
            got.append(jnp.einsum("cn...,cn->n...", root, jnp.einsum("cn...,n...->cn", root, u)))
        return got, want

    with jax.enable_x64(True):
        f, u = (jnp.asarray(rng.normal(size=(5, *problem.out_shape))) for _ in range(2))
        y = draw_targets(problem.targets, key, 5, problem.out_shape)
        got, want = jax.jit(both)(f, y, u)
    for product in got:
        close(product, want)


def products(objective: fnn.Objective, params: Any, batch: Any, v: Any, **options: Any) -> tuple[Any, Any]:
    got = {"hessian": dense.flat(fnn.backprop.hessian_product(objective)(params, batch, v, **options))}
    gradient = jax.grad(lambda p: objective(p, batch, **options))
    return got, {"hessian": dense.flat(jax.jvp(gradient, (params,), (v,))[1])}


@pytest.mark.parametrize("name", WHOLE)
def test_products(name: str, key: jax.Array, rng: np.random.Generator):
    objective = NETWORKS[name].objective

    def both(params: Any, batch: Any, v: Any) -> Any:
        got, want = products(objective, params, batch, v)
        got["gauss_newton"] = dense.flat(fnn.backprop.gauss_newton_product(objective)(params, batch, v))
        matrix = dense.gauss_newton(objective, params, batch)
        want["gauss_newton"] = matrix @ dense.flat(v)
        directions = v, params
        got["form"] = fnn.backprop.gauss_newton_form(objective)(params, batch, directions)
        columns = jnp.stack([dense.flat(one) for one in directions], axis=1)
        want["form"] = columns.T @ matrix @ columns
        return got, want

    with jax.enable_x64(True):
        params, batch = NETWORKS[name].draw(key, 5)
        got, want = jax.jit(both)(params, weighted(batch, rng), draw_like(rng, params))
    all_close(got, want, name)


@fewer
@given(net=st.one_of(layers(depth=2), graphs(depth=1)), seed=SEEDS)
def test_products_of_random_networks_in_training(net: fnn.Layer, seed: int):
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    with jax.enable_x64(True):
        objective, params, batch = draw_regression(net, seed)
        both = jax.jit(lambda p, v: products(objective, p, batch, v, key=key, train=True))
        got, want = both(params, draw_like(rng, params))
    all_close(got, want)


def test_the_form_in_training_is_of_the_same_noise(key: jax.Array, rng: np.random.Generator):
    net = fnn.Serial(fnn.Dense(6), fnn.Tanh(), fnn.Dropout(0.5), fnn.Dense(2))
    objective = fnn.Objective(net, fnn.losses.squared_error)

    def both(params: Any, batch: Any, v: Any) -> Any:
        got = fnn.backprop.gauss_newton_form(objective)(params, batch, (v,), key=key, train=True)
        change = jax.jvp(lambda p: net.apply(p, batch[0], key=key, train=True), (params,), (v,))[1]
        return got[0, 0], jnp.mean(2 * jnp.sum(jnp.square(change), axis=1))

    with jax.enable_x64(True):
        batch = jnp.asarray(rng.normal(size=(5, 3))), jnp.asarray(rng.normal(size=(5, 2)))
        params = net.init(key, (3,))
        got, want = jax.jit(both)(params, batch, draw_like(rng, params))
    close(got, want)


def test_what_is_missing_is_named(key: jax.Array):
    problem = NETWORKS["sigmoid-mlp-mse"]
    params, batch = problem.draw(key)
    tanh = RULES[fnn.Sigmoid]
    rules = RULES | {fnn.Sigmoid: fnn.backprop.Rule(tanh.fwd, tanh.bwd)}
    with pytest.raises(fnn.backprop.RuleError, match=r"the rule for Sigmoid\(\) at '1' has no tangent"):
        fnn.backprop.gauss_newton_product(problem.objective, rules=rules)(params, batch, params)
    rules = RULES | {"3": fnn.backprop.Rule(tanh.fwd, tanh.bwd, tangent=tanh.tangent)}
    with pytest.raises(fnn.backprop.RuleError, match=r"the rule for Sigmoid\(\) at '3' has no second derivative"):
        fnn.backprop.hessian_product(problem.objective, rules=rules)(params, batch, params)
    with pytest.raises(ValueError, match="the direction v has the structure, shapes and dtypes of params"):
        fnn.backprop.hessian_product(problem.objective)(params, batch, params[0])
    with pytest.raises(ValueError, match="the direction v has the structure, shapes and dtypes of params"):
        fnn.backprop.gauss_newton_form(problem.objective)(params, batch, (params, params[0]))
    with pytest.raises(ValueError, match="directions are one tree like params or several"):
        fnn.backprop.gauss_newton_form(problem.objective)(params, batch, ())
    own = fnn.Objective(problem.objective.net, lambda f, y: ((f - y) ** 2).sum(-1))
    for wanted in (fnn.backprop.gauss_newton_product(own, rules=fnn.backprop.Rules(RULES, missing="autodiff")),):
        with pytest.raises(fnn.backprop.RuleError, match="autodiff stands in for the rule of"):
            wanted(params, batch, params)


def hessian_diagonals(objective: fnn.Objective, params: Any, batch: Any, **options: Any) -> tuple[Any, Any]:
    got = {"diagonal": dense.flat(fnn.backprop.hessian_diagonal(objective)(params, batch, **options))}
    flat, unravel = ravel_pytree(params)
    return got, {"diagonal": jnp.diag(jax.hessian(lambda p: objective(unravel(p), batch, **options))(flat))}


@pytest.mark.parametrize("name", WHOLE)
def test_hessian_diagonal(name: str, key: jax.Array, rng: np.random.Generator):
    with jax.enable_x64(True):
        params, batch = NETWORKS[name].draw(key, 5)
        both = jax.jit(lambda *arguments: hessian_diagonals(NETWORKS[name].objective, *arguments))
        got, want = both(params, weighted(batch, rng))
    all_close(got, want, name)


@fewer
@given(net=st.one_of(layers(depth=2), graphs(depth=1)), seed=SEEDS)
def test_hessian_diagonal_of_random_networks_in_training(net: fnn.Layer, seed: int):
    key = jax.random.key(seed)
    with jax.enable_x64(True):
        objective, params, batch = draw_regression(net, seed)
        if not jax.tree.leaves(params):
            return
        got, want = jax.jit(lambda p: hessian_diagonals(objective, p, batch, key=key, train=True))(params)
    all_close(got, want)


_NAMES = ["logistic-regression", "sigmoid-mlp-mse", "relu-mlp-l1-l2", "silu-mlp-smoothed", "maxout-mlp", "rbf-network"]
_PRELU = fnn.Serial(fnn.Dense(4), fnn.Prelu(), fnn.Dense(3))
CHAINS = {name: NETWORKS[name] for name in _NAMES} | {
    "prelu-mlp": NetworkProblem(fnn.Objective(_PRELU, fnn.losses.softmax_cross_entropy), (4,), "label")
}


def by_definition(objective: fnn.Objective, params: Any, batch: Any) -> list[dict[str, jax.Array]]:
    """B of parameters of a chain's layers, from G of the layer's output: G <- sum_n m_n J_n^T G J_n, from the last on.

    Of a bias or slope it is G seen in it; the weights that are multiplied with the input have the bias's.
    """
    net = objective.net if isinstance(objective.net, fnn.Serial) else fnn.Serial(objective.net)
    params = params if isinstance(objective.net, fnn.Serial) else (params,)
    m, values = dense.shares(batch), [batch[0]]
    for layer, p in zip(net.layers, params, strict=True):
        values.append(layer.apply(p, values[-1]))
    _, h = dense.output_jacobians(objective, params if isinstance(objective.net, fnn.Serial) else params[0], batch)
    g, found = jnp.einsum("n,nkl->kl", m, h), []
    for layer, p, x in zip(net.layers[::-1], params[::-1], values[-2::-1], strict=True):
        of_params, of_x = jax.vmap(
            jax.jacrev(lambda p, a, layer=layer: layer.apply(p, a[None])[0], (0, 1)), (None, 0)
        )(p, x)  # fmt: skip
        seen = {}
        for leaf in {"b", "slope"} & set(p):
            j = of_params[leaf].reshape(len(x), len(g), -1)
            seen[leaf] = jnp.einsum("n,nki,kl,nlj->ij", m, j, g, j)
        found.insert(0, seen | ({"w": seen["b"]} if "b" in seen else {}))
        g = jnp.einsum("n,nki,kl,nlj->ij", m, of_x, g, of_x)
    return found


@pytest.mark.parametrize("name", CHAINS)
def test_kfra(name: str, key: jax.Array, rng: np.random.Generator):
    objective = CHAINS[name].objective

    def both(params: Any, batch: Any) -> Any:
        return fnn.backprop.kfra_factors(objective)(params, batch), by_definition(objective, params, batch)

    with jax.enable_x64(True):
        params, batch = CHAINS[name].draw(key, 5)
        batch = weighted(batch, rng)
        factors, wanted = jax.jit(both)(params, batch)
        factors = factors if isinstance(objective.net, fnn.Serial) else (factors,)
        for found, want in zip(factors, wanted, strict=True):
            for leaf, b in want.items():
                close(found[leaf].b, b)
        x = batch[0]
        if isinstance(factors[0], dict) and "w" in factors[0]:
            close(factors[0]["w"].a, jnp.einsum("n,nd,ne->de", dense.shares(batch), x, x))


@pytest.mark.parametrize("name", ["residual-tower", "graph-shared", "repeated-blocks"])
def test_kfra_is_for_chains(name: str, key: jax.Array):
    with pytest.raises(fnn.backprop.RuleError, match="defined for chains"):
        jax.eval_shape(fnn.backprop.kfra_factors(NETWORKS[name].objective), *NETWORKS[name].draw(key))
