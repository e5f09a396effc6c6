"""Tangents and second derivatives of every rule, and the products with curvature matrices that are made of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax.flatten_util import ravel_pytree

import funcnn as fnn
from funcnn.backprop import RULES, quantities
from funcnn.backprop.rule import Context, need_second
from funcnn.compose import Combinator, Part
from funcnn.layer import fold
from tests.backprop import dense
from tests.backprop.agree import draw_layer, draw_like, inner
from tests.backprop.test_quantities import WHOLE, all_close, close, weighted
from tests.backprop.test_random_networks import LOSSES, SEEDS, chains, draw_problem, fewer, noisy
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

pytestmark = pytest.mark.once


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
@given(net=noisy(depth=1), loss=LOSSES, seed=SEEDS)
def test_products_of_random_networks_in_training(net: fnn.Layer, loss: fnn.losses.Loss, seed: int):
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    with jax.enable_x64(True):
        objective, params, batch = draw_problem(net, seed, loss)
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
@given(net=noisy(depth=1), loss=LOSSES, seed=SEEDS)
def test_hessian_diagonal_of_random_networks_in_training(net: fnn.Layer, loss: fnn.losses.Loss, seed: int):
    key = jax.random.key(seed)
    with jax.enable_x64(True):
        objective, params, batch = draw_problem(net, seed, loss)
        got, want = jax.jit(lambda p: hessian_diagonals(objective, p, batch, key=key, train=True))(params)
    all_close(got, want)


_NAMES = [
    "logistic-regression", "log-softmax-nll", "sigmoid-mlp-mse", "relu-mlp-l1-l2", "silu-mlp-smoothed", "maxout-mlp",
    "rbf-network", "image-prelu-net",
]  # fmt: skip
_RBFS = fnn.Serial(fnn.Dense(4), fnn.Rbf(3, epsilon=0.4), fnn.Prelu(), fnn.Rbf(2, epsilon=0.7), fnn.Maxout(3, pieces=2))
CHAINS = {name: NETWORKS[name] for name in _NAMES} | {
    "deep-rbf": NetworkProblem(fnn.Objective(_RBFS, fnn.losses.softmax_cross_entropy), (4,), "label")
}


def by_definition(objective: fnn.Objective, params: Any, batch: Any, **noise: Any) -> list[dict[str, Any]]:
    """(A, B) of parameters of a chain's layers, from G of the layer's output: G <- sum_n m_n J_n^T G J_n, backwards.

    A is of what a delta is multiplied with: the input of a layer of weights, and x - c_b of centres, a mean over them.
    B is G seen in that delta: in the bias; or, of centres, in u where c_b changes by (x - c_b) u_b. Biases and slopes
    have B alone.
    """
    net = objective.net if isinstance(objective.net, fnn.Serial) else fnn.Serial(objective.net)
    params = params if isinstance(objective.net, fnn.Serial) else (params,)
    m, values, train = dense.shares(batch), [batch[0]], noise.get("train", False)
    keys = [fold(noise.get("key"), i) for i in range(len(net.layers))]
    for layer, p, key in zip(net.layers, params, keys, strict=True):
        values.append(layer.apply(p, values[-1], key=key, train=train))
    g = jnp.einsum("n,nkl->kl", m, dense.loss_hessians(objective, values[-1], batch[1]))
    found = []
    for layer, p, x, key in zip(net.layers[::-1], params[::-1], values[-2::-1], keys[::-1], strict=True):
        j, j_x = jax.jacrev(lambda *a, f=layer.apply, key=key: f(*a, key=key, train=train), (0, 1))(p, x)
        j = {leaf: array.reshape(len(x), len(g), -1) for leaf, array in j.items()} if p else {}
        activity = {"w": x[:, None]}
        if "c" in j:
            gap = activity["c"] = x[:, None] - p["c"][None]
            change = j["c"].reshape(len(x), len(g), *p["c"].shape) * gap[:, None]
            j["c"] = jnp.sum(change, axis=-1) / jnp.sum(jnp.square(gap), axis=-1)[:, None]
        j |= {"w": j["b"]} if "b" in j else {}
        factors = {}
        for leaf in {"b", "slope", "c", "w"} & set(j):
            a = activity.get(leaf)
            first = None if a is None else jnp.einsum("n,nbd,nbe->de", m, a, a) / a.shape[1]
            factors[leaf] = first, jnp.einsum("n,nki,kl,nlj->ij", m, j[leaf], g, j[leaf])
        found.insert(0, factors)
        each = jnp.arange(len(x))
        j_x = j_x.reshape(len(x), len(g), len(x), -1)[each, :, each]
        g = jnp.einsum("n,nki,kl,nlj->ij", m, j_x, g, j_x)
    return found


def check_kfra(objective: fnn.Objective, params: Any, batch: Any, **noise: Any) -> None:
    """The factors of `kfra_factors` are those by definition."""

    def both(params: Any, batch: Any) -> Any:
        found = fnn.backprop.kfra_factors(objective)(params, batch, **noise)
        return found, by_definition(objective, params, batch, **noise)

    factors, wanted = jax.jit(both)(params, batch)
    factors = factors if isinstance(objective.net, fnn.Serial) else (factors,)
    for found, want in zip(factors, wanted, strict=True):
        for leaf, (a, b) in want.items():
            close(found[leaf].b, b)
            assert (found[leaf].a is None) == (a is None)
            if a is not None:
                close(found[leaf].a, a)


@pytest.mark.parametrize("name", CHAINS)
def test_kfra(name: str, key: jax.Array, rng: np.random.Generator):
    with jax.enable_x64(True):
        params, batch = CHAINS[name].draw(key, 5)
        check_kfra(CHAINS[name].objective, params, weighted(batch, rng))


@fewer
@given(net=chains(), loss=LOSSES, seed=SEEDS)
def test_kfra_of_random_chains_in_training(net: fnn.Serial, loss: fnn.losses.Loss, seed: int):
    with jax.enable_x64(True):
        objective, params, batch = draw_problem(net, seed, loss)
        check_kfra(
            objective, params, weighted(batch, np.random.default_rng(seed)), key=jax.random.key(seed), train=True
        )


def test_factors_of_centres_are_exact_for_one_example_and_unit_alone(key: jax.Array, x64: None):
    """Where A, a mean over the units, is that of the only one; of two units the product is another matrix."""

    def both(objective: fnn.Objective, params: Any, batch: Any) -> Any:
        kflr = quantities.kronecker_factors(fnn.backprop.rows(objective, of="gauss_newton")(params, batch))
        kfra, size = fnn.backprop.kfra_factors(objective)(params, batch), params[0]["c"].size
        want = dense.gauss_newton(objective, params, batch)[:size, :size]
        return [factors[0]["c"].matrix() for factors in (kflr, kfra)], want

    for units in (1, 2):
        objective = fnn.Objective(fnn.Serial(fnn.Rbf(units, epsilon=0.4), fnn.Dense(2)), fnn.losses.squared_error)
        problem = NetworkProblem(objective, (3,), "real")
        matrices, want = jax.jit(both, static_argnums=0)(objective, *problem.draw(key, 1))
        for got in matrices:
            assert np.allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max()) == (units == 1)


@pytest.mark.parametrize("name", ["residual-tower", "graph-shared", "repeated-blocks"])
def test_kfra_is_for_chains(name: str, key: jax.Array):
    with pytest.raises(fnn.backprop.RuleError, match="defined for chains"):
        jax.eval_shape(fnn.backprop.kfra_factors(NETWORKS[name].objective), *NETWORKS[name].draw(key))
