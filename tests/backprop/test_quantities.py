"""Quantities of examples and of curvature against their slow definitions, which form every matrix whole."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import funcnn as fnn
from funcnn.backprop import RULES, Outer, quantities
from funcnn.backprop.outer import activity_moment
from tests.backprop import dense
from tests.backprop.agree import draw_like
from tests.backprop.test_random_networks import LOSSES, SEEDS, draw_problem, fewer, noisy
from tests.problems import NETWORKS, NetworkProblem

pytestmark = pytest.mark.once

# In float64, of the largest number of the quantity (of 1, where all are smaller). Both sides sum some hundred numbers.
TOLERANCE = 1e-10
# The networks that are compared with whole matrices, which take long to compile: of each kind of layer, loss and graph.
WHOLE = [
    "logistic-regression", "log-softmax-nll", "sigmoid-mlp-mse", "relu-mlp-l1-l2", "learned-variance", "maxout-mlp",
    "rbf-network", "image-prelu-net", "residual-tower", "every-activation", "graph-shared", "repeated-blocks",
]  # fmt: skip
FLOAT32 = {"every-activation": 1e-6}  # runs one of its layers in float32


def close(got: Any, want: Any, tolerance: float = TOLERANCE) -> None:
    """Equal to a tolerance; NaN never is."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    error = np.abs(got - want).max(initial=0) / max(1, np.abs(want).max(initial=0))
    assert error <= tolerance, error


def all_close(got: dict[str, Any], want: dict[str, Any], network: str = "") -> None:
    """`close` for each quantity."""
    for name, value in want.items():
        try:
            close(got[name], value, FLOAT32.get(network, TOLERANCE))
        except AssertionError as error:
            raise AssertionError(name) from error


def weighted(batch: Any, rng: np.random.Generator) -> Any:
    """The batch with weights, of which one is 0."""
    weight = rng.uniform(0.5, 2, len(batch[0]))
    weight[1] = 0
    return (*batch, jnp.asarray(weight))


def of_examples(objective: fnn.Objective, params: Any, batch: Any, **noise: Any) -> tuple[Any, Any]:
    """Everything that is computed of the rows of the loss; and the same by `vmap(grad)`."""
    rows = fnn.backprop.rows(objective)(params, batch, **noise)
    g, m = dense.each_gradient(objective, params, batch, **noise), dense.shares(batch)
    g = jnp.where((m > 0)[:, None], g, 0)
    norms = jnp.linalg.norm(g, axis=1)
    bound = jnp.median(norms)
    clipped = (g * jnp.minimum(1, bound / jnp.where(norms > 0, norms, 1))[:, None]).sum(0)
    value, grads = jax.value_and_grad(objective)(params, batch, **noise)
    got = {
        "gradients": dense.flat_rows(quantities.gradients(rows)),
        "squared_norms": quantities.squared_norms(rows),
        "norms": quantities.norms(rows),
        "dot_products": quantities.dot_products(rows),
        "sum_of_squares": dense.flat(quantities.sum_of_squares(rows)),
        "variance": dense.flat(quantities.variance(rows)),
        "clipped_sum": dense.flat(quantities.clipped_sum(rows, bound)),
        "clipped_mean": dense.flat(quantities.clipped_mean(rows, bound)),
        "value": rows.value,
        "grads": dense.flat(rows.grads),
    }
    want = {
        "gradients": g,
        "squared_norms": jnp.square(norms),
        "norms": norms,
        "dot_products": g @ g.T,
        "sum_of_squares": jnp.square(g).sum(0),
        "variance": (m[:, None] * jnp.square(g - (m @ g)[None])).sum(0),
        "clipped_sum": clipped,
        "clipped_mean": clipped / (m > 0).sum(dtype=m.dtype),
        "value": value,
        "grads": dense.flat(grads),
    }
    return got, want


@pytest.mark.parametrize(("name", "weights"), [*((name, True) for name in NETWORKS), ("sigmoid-mlp-mse", False)])
def test_examples(name: str, weights: bool, key: jax.Array, rng: np.random.Generator):
    problem = NETWORKS[name]
    with jax.enable_x64(True):
        params, batch = problem.draw(key, 5)
        batch = weighted(batch, rng) if weights else batch
        got, want = jax.jit(lambda *arguments: of_examples(problem.objective, *arguments))(params, batch)
    all_close(got, want, name)


@fewer
@given(net=noisy(depth=1), loss=LOSSES, seed=SEEDS)
def test_examples_of_random_networks_in_training(net: fnn.Layer, loss: fnn.losses.Loss, seed: int):
    key = jax.random.key(seed)
    with jax.enable_x64(True):
        objective, params, batch = draw_problem(net, seed, loss)
        got, want = jax.jit(lambda *a: of_examples(objective, *a, key=key, train=True))(params, batch)
    all_close(got, want)


@pytest.mark.parametrize("name", [name for name in WHOLE if name != "learned-variance"])
def test_gauss_newton(name: str, key: jax.Array, rng: np.random.Generator):
    problem = NETWORKS[name]

    def both(params: Any, batch: Any) -> tuple[Any, Any]:
        rows = fnn.backprop.rows(problem.objective, of="gauss_newton")(params, batch)
        each = dense.flat_rows(quantities.gradients(rows), 2)
        matrix = dense.gauss_newton(problem.objective, params, batch)
        g = each.reshape(-1, each.shape[-1])
        got = {
            "matrix": g.T @ g,
            "diagonal": dense.flat(quantities.sum_of_squares(rows)),
            "traces": quantities.squared_norms(rows).sum(),
            "gram": quantities.dot_products(rows),
        }
        return got, {"matrix": matrix, "diagonal": jnp.diag(matrix), "traces": jnp.trace(matrix), "gram": g @ g.T}

    with jax.enable_x64(True):
        params, batch = problem.draw(key, 4)
        got, want = jax.jit(both)(params, weighted(batch, rng))
    all_close(got, want, name)


@fewer
@given(net=noisy(depth=1), loss=LOSSES, seed=SEEDS)
def test_curvature_of_random_networks_in_training(net: fnn.Layer, loss: fnn.losses.Loss, seed: int):
    """The Gauss-Newton matrix; and the rows of the Fisher matrix, sqrt(m_n) J_n^T s_nc.

    The columns s_nc are what comes to the biases of a layer that gives the same outputs: their rows.
    """
    rng, noise = np.random.default_rng(seed), {"key": jax.random.key(seed), "train": True}
    sample = {"sample_key": jax.random.key(seed + 1)}

    def both(params: Any, batch: Any, v: Any) -> Any:
        exact = fnn.backprop.rows(objective, of="gauss_newton")(params, batch, **noise)
        drawn = fnn.backprop.rows(objective, of="fisher", samples=2)(params, batch, **noise, **sample)
        g = dense.flat_rows(quantities.gradients(exact), 2)
        got = {
            "matrix": jnp.einsum("cnp,cnq->pq", g, g),
            "diagonal": dense.flat(quantities.sum_of_squares(exact)),
            "traces": quantities.squared_norms(exact).sum(),
            "fisher": dense.flat_rows(quantities.gradients(drawn), 2),
            "product": dense.flat(fnn.backprop.gauss_newton_product(objective)(params, batch, v, **noise)),
        }
        j, _ = dense.output_jacobians(objective, params, batch, **noise)
        outputs, like = objective.net.apply(params, batch[0], **noise), fnn.Objective(fnn.Dense(2), loss)
        last = fnn.backprop.rows(like, of="fisher", samples=2)
        columns = quantities.gradients(last({"w": jnp.eye(2), "b": jnp.zeros(2)}, (outputs, *batch[1:]), **sample))["b"]
        matrix = dense.gauss_newton(objective, params, batch, **noise)
        want = {"matrix": matrix, "diagonal": jnp.diag(matrix), "traces": jnp.trace(matrix)}
        want |= {"fisher": jnp.einsum("cnk,nkp->cnp", columns, j), "product": matrix @ dense.flat(v)}
        return got, want

    with jax.enable_x64(True):
        objective, params, batch = draw_problem(net, seed, loss)
        got, want = jax.jit(both)(params, weighted(batch, rng), draw_like(rng, params))
    all_close(got, want)


def test_a_learned_variance_has_no_gauss_newton_matrix(key: jax.Array):
    problem = NETWORKS["learned-variance"]
    with pytest.raises(fnn.backprop.RuleError, match=r"not convex in its outputs.*of='fisher'"):
        jax.eval_shape(fnn.backprop.rows(problem.objective, of="gauss_newton"), *problem.draw(key))


@pytest.mark.parametrize("name", ["softmax-regression-l2", "logistic-regression", "learned-variance", "tanh-mlp-mae"])
def test_the_mean_of_the_fisher_rows_is_the_fisher_matrix(name: str, key: jax.Array, rng: np.random.Generator):
    """E sum_nc g_nc g_nc^T = sum_n m_n J_n^T F_n J_n, F_n the variance of the score of each loss's distribution."""
    problem, count = NETWORKS[name], 4000

    def both(params: Any, batch: Any, sample_key: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = fnn.backprop.rows(problem.objective, of="fisher", samples=count)
        g = dense.flat_rows(quantities.gradients(rows(params, batch, sample_key=sample_key)), 2)
        j, h = dense.output_jacobians(problem.objective, params, batch)
        f = problem.objective.net.apply(params, batch[0])
        if name == "learned-variance":
            variance = jnp.concatenate([jnp.exp(-f[:, 2:]), jnp.full((len(f), 2), 0.5)], axis=1)
            h = jax.vmap(jnp.diag)(variance)
        elif name == "tanh-mlp-mae":  # the Laplace distribution of scale K = 3 has the score +-1/3
            h = jnp.broadcast_to(jnp.eye(3) / 9, h.shape)
        return jnp.einsum("cnp,cnq->pq", g, g), jnp.einsum("n,nkp,nkl,nlq->pq", dense.shares(batch), j, h, j)

    with jax.enable_x64(True):
        params, batch = problem.draw(key, 4)
        got, want = jax.jit(both)(params, weighted(batch, rng), key)
    # Of 4,000 draws, the error of a mean is about 1/60 of its size; five of them.
    assert np.abs(got - want).max() <= 5 / 60 * np.abs(want).max()
    assert np.abs(want).max() > 0


def blocks(objective: fnn.Objective, params: Any, batch: Any) -> tuple[list[Any], list[Any]]:
    """Kronecker factors multiplied out, and the Gauss-Newton matrix's own blocks, one for each parameter."""

    def both(params: Any, batch: Any) -> Any:
        rows = fnn.backprop.rows(objective, of="gauss_newton")(params, batch)
        return quantities.kronecker_factors(rows), dense.gauss_newton(objective, params, batch)

    factors, matrix = jax.jit(both)(params, batch)
    each = jax.tree.leaves(factors, is_leaf=lambda node: isinstance(node, quantities.Kronecker))
    sizes = np.cumsum([0, *(leaf.size for leaf in jax.tree.leaves(params))])
    return [one.matrix() for one in each], [matrix[a:b, a:b] for a, b in itertools.pairwise(sizes)]


def test_kronecker_factors_are_exact_in_deep_linear_networks_with_squared_error(key: jax.Array, x64: None):
    """There the deltas of the Gauss-Newton matrix do not depend on the example."""
    net = fnn.Serial(fnn.Dense(4), fnn.Dense(3), fnn.Dense(2))
    objective = fnn.Objective(net, fnn.losses.squared_error)
    params, batch = NetworkProblem(objective, (3,), "real").draw(key)
    for got, want in zip(*blocks(objective, params, batch), strict=True):
        close(got, want)


@pytest.mark.parametrize("name", ["silu-mlp-smoothed", "sigmoid-mlp-mse", "maxout-mlp", "image-prelu-net"])
def test_kronecker_factors_are_exact_for_one_example_and_one_column(name: str, key: jax.Array, x64: None):
    """And for several columns, since A does not depend on the column."""
    problem = NETWORKS[name]
    params, batch = problem.draw(key, 1)
    for got, want in zip(*blocks(problem.objective, params, batch), strict=True):
        close(got, want)


def test_layers_without_rows_of_which_nothing_is_known(key: jax.Array, x64: None):
    """A rule whose residuals have no axis of examples, and autodiff's, with as many examples as inputs and units."""

    def bwd(layer: Any, params: Any, kept: Any, dy: jax.Array, ctx: Any) -> Any:
        units, x = kept
        assert units.shape == (4,)
        return {"w": x.T @ dy, "b": jnp.sum(dy, axis=0)}, dy @ params["w"].T

    mine = fnn.backprop.Rule(lambda layer, params, x, ctx: (layer.apply(params, x), (params["b"], x)), bwd)
    own = fnn.lift(lambda key, in_shape: {"m": jnp.ones(in_shape)}, lambda params, x: jnp.sin(x * params["m"][None]))
    objective = fnn.Objective(fnn.Serial(fnn.Dense(4), own, fnn.Dense(4)), fnn.losses.squared_error)
    params, batch = objective.net.init(key, (4,)), tuple(jax.random.normal(key, (2, 4, 4)))
    rules = fnn.backprop.Rules(RULES | {"0": mine}, missing="autodiff")
    got = dense.flat_rows(quantities.gradients(fnn.backprop.rows(objective, rules=rules)(params, batch)))
    np.testing.assert_allclose(got, dense.each_gradient(objective, params, batch), atol=1e-12)


def test_the_moment_of_shifted_activities(rng: np.random.Generator, x64: None):
    """A of radial basis functions: the mean over examples and units of (a_n - s_b) (a_n - s_b)^T."""
    a, s, m = rng.normal(size=(5, 1, 3)), rng.normal(size=(4, 3)), rng.dirichlet(np.ones(5))
    outer = Outer(jnp.asarray(a), jnp.zeros((5, 1, 4)), jnp.asarray(s), (4, 3), True)
    gap = a - s[None]
    close(activity_moment(outer, jnp.asarray(m)), np.einsum("n,nbi,nbj->ij", m, gap, gap) / 4)


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_integer_inputs_are_numbers(dtype: str, key: jax.Array, x64: None):
    """Such as the bytes of an image, whose squares and products do not fit into a byte."""
    net = fnn.Serial(fnn.Dense(4), fnn.Tanh(), fnn.Dense(3))
    objective = fnn.Objective(net, fnn.losses.softmax_cross_entropy)
    params = jax.tree.map(lambda leaf: 0.05 * leaf, net.init(key, (5,)))
    x, y = jax.random.randint(key, (6, 5), 0, 256), jnp.arange(6) % 3

    @jax.jit
    def all_of(params: Any, x: Any) -> Any:
        got, want = of_examples(objective, params, (x, y))
        exact, drawn = (
            fnn.backprop.rows(objective, of=of)(params, (x, y), sample_key=key) for of in ("gauss_newton", "fisher")
        )
        got["diagonal"] = dense.flat(quantities.sum_of_squares(exact))
        got["kfac"] = dense.flat(quantities.kronecker_factors(drawn))
        got["kfra"] = dense.flat(fnn.backprop.kfra_factors(objective)(params, (x, y)))
        got["hessian"] = dense.flat(fnn.backprop.hessian_diagonal(objective)(params, (x, y)))
        return got, want

    with jax.numpy_dtype_promotion("standard"):  # as a user's is
        got, want = all_of(params, x.astype(dtype))
    floating, _ = all_of(params, x.astype(float))
    all_close(got, floating)
    all_close({name: got[name] for name in want}, want)


@pytest.mark.parametrize("blocks", ["Serial", "Repeat"])
def test_no_gradient_of_an_example_is_formed_for_its_norm(blocks: str, key: jax.Array):
    block, n, d, examples = fnn.Serial(fnn.Dense(64), fnn.Relu()), 8, 64, 128
    net = fnn.Repeat(block, n) if blocks == "Repeat" else fnn.Serial(*[block] * n)
    objective = fnn.Objective(net, fnn.losses.squared_error)
    batch = jnp.ones((examples, d)), jnp.ones((examples, d))
    norms = jax.jit(lambda params: quantities.norms(fnn.backprop.rows(objective)(params, batch)))
    compiled = norms.lower(jax.eval_shape(lambda: net.init(key, (d,)))).compile()
    formed = examples * n * d * d * 4
    memory: Any = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < formed / 4


def test_norms_of_small_dtypes_do_not_overflow():
    """In float16, whose largest number is 65504: a gradient (300, 400) has the norm 500, and its square is more."""
    objective = fnn.Objective(fnn.Dense(1, bias=False), fnn.losses.squared_error)
    x = jnp.array([[0.75, 1.0]], jnp.float16)
    batch, params = (x, jnp.array([[-200.0]], jnp.float16)), {"w": jnp.zeros((2, 1), jnp.float16)}
    rows = fnn.backprop.rows(objective)(params, batch)
    np.testing.assert_allclose(quantities.norms(rows), [500.0], rtol=1e-3)
    np.testing.assert_allclose(quantities.dot_products(rows), [[250000.0]], rtol=1e-3)
    np.testing.assert_allclose(quantities.clipped_sum(rows, 5.0)["w"], [[3.0], [4.0]], rtol=1e-2)


def test_a_variance_is_never_negative():
    objective = fnn.Objective(fnn.Dense(2), fnn.losses.squared_error)
    params, x = objective.net.init(jax.random.key(0), (7,)), jnp.full((9, 7), 1 / 3)
    rows = jax.jit(fnn.backprop.rows(objective))(params, (x, jnp.full((9, 2), 0.1)))
    assert dense.flat(quantities.variance(rows)).min() >= 0


def test_bfloat16_networks_have_all_curvatures(key: jax.Array):
    """Whose decompositions are of float32: to the precision of bfloat16 they are those of the float32 network."""
    net = fnn.Serial(fnn.Dense(4), fnn.Softmax(), fnn.Dense(3))
    params, batch = net.init(key, (5,)), (jax.random.normal(key, (6, 5)), jnp.arange(6) % 3)

    def curvatures(net: Any) -> Any:
        objective = fnn.Objective(net, fnn.losses.softmax_cross_entropy)
        both = fnn.backprop.kfra_factors(objective), fnn.backprop.hessian_diagonal(objective)
        return jax.jit(lambda p: [dense.flat(function(p, batch)) for function in both])(params)

    for got, want in zip(curvatures(fnn.Cast(net, "bfloat16")), curvatures(net), strict=True):
        close(got, want, 0.03)


@pytest.mark.parametrize(
    "name", ["gradients", "norms", "dot_products", "sum_of_squares", "variance", "clipped_sum", "kronecker_factors"]
)
def test_quantities_are_of_rows(name: str):
    bound = (1.0,) if name == "clipped_sum" else ()
    objective = fnn.Objective(fnn.Dense(1), fnn.losses.squared_error)
    for wrong in (None, fnn.backprop.rows(objective), {"w": jnp.ones(3)}):
        with pytest.raises(TypeError, match=rf"{name} is of the rows that backprop\.rows\(objective\)"):
            getattr(quantities, name)(wrong, *bound)


@pytest.mark.parametrize("bound", ["1", None, True, -1.0, np.ones(2)])
def test_a_bound_is_a_positive_number(bound: Any):
    objective = fnn.Objective(fnn.Dense(1), fnn.losses.squared_error)
    batch = jnp.ones((3, 2)), jnp.ones((3, 1))
    rows = fnn.backprop.rows(objective)(objective.net.init(jax.random.key(0), (2,)), batch)
    with pytest.raises(ValueError, match="bound is the largest norm, a positive number"):
        quantities.clipped_sum(rows, bound)


def test_kronecker_factors_of_several_positions(rng: np.random.Generator, x64: None):
    """Dense on examples (T, D): A is the mean over the positions, B the sum of what comes back to each of them."""
    net, m = fnn.Dense(2), rng.dirichlet(np.ones(5))
    objective = fnn.Objective(net, fnn.losses.squared_error)
    params, x, y = net.init(jax.random.key(0), (3, 4)), rng.normal(size=(5, 3, 4)), jnp.zeros((5, 3, 2))
    rows = fnn.backprop.rows(objective, of="gauss_newton")(params, (jnp.asarray(x), y, jnp.asarray(m)))
    found = quantities.kronecker_factors(rows)["w"]
    close(found.a, np.einsum("n,nti,ntj->ij", m, x, x) / 3)
    close(found.b, 3 * 2 * np.eye(2))  # the Hessian is 2 I at each of three positions, and m sums to 1


def test_the_score_of_targets_that_do_not_sum_to_one(key: jax.Array, x64: None):
    """Its variance is the loss's Hessian, sum_k y_k (diag(p) - p p^T)."""
    loss, count = fnn.losses.softmax_cross_entropy, 20_000
    rule: Any = fnn.backprop.RULES[type(loss)]
    z, y = jnp.array([[0.3, -1.0, 0.8]]), jnp.array([[1.0, 0.5, 1.5]])
    scores = jax.vmap(lambda k: rule.score(loss, y, z, k)[0])(jax.random.split(key, count))
    want = jax.vmap(lambda u: rule.hessian(loss, y, z, u[None])[0])(jnp.eye(3))
    assert np.abs(scores.T @ scores / count - want).max() < 5 * 3 / np.sqrt(count)  # each product is 3 at most
