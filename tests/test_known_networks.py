"""Networks whose answer is known: the perceptron, logistic regression, the two-class softmax, XOR."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn import losses

CORNERS = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]], jnp.float32)
EXACT = 1e-12  # float64, sums of a few numbers of order 1


@pytest.mark.parametrize(
    ("bias", "answers"),
    [(-1.5, [0, 0, 0, 1]), (-0.5, [0, 1, 1, 1]), (-2.0, [0, 0, 0, 0])],
    ids=["and", "or", "on-the-line"],
)
def test_the_perceptron_computes_and_and_or(bias: float, answers: list[int]):
    perceptron = fnn.Serial(fnn.Dense(1), fnn.Step())
    params = ({"w": jnp.ones((2, 1)), "b": jnp.array([bias])}, ())
    np.testing.assert_array_equal(perceptron.apply(params, CORNERS)[:, 0], answers)
    grads = jax.grad(lambda p: jnp.sum(perceptron.apply(p, CORNERS)))(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))  # which is why it does not learn by gradients


def test_the_perceptron_rule_learns_what_is_linearly_separable():
    """w += (y - f) x for each example, the gradient of no loss; 20 rounds do for NAND."""
    perceptron = fnn.Serial(fnn.Dense(1, w_init="zeros"), fnn.Step())
    answers = np.array([1, 1, 1, 0], np.float32)[:, None]

    @jax.jit
    def learn(params: Any) -> Any:
        def one(params: Any, example: Any) -> Any:
            x, y = example
            error = y - perceptron.apply(params, x[None])[0]
            (linear, nothing) = params
            return ({"w": linear["w"] + x[:, None] * error[None], "b": linear["b"] + error}, nothing), error

        data = jnp.tile(CORNERS, (20, 1)), jnp.tile(answers, (20, 1))
        return jax.lax.scan(one, params, data)

    params, errors = learn(perceptron.init(jax.random.key(0), (2,)))
    np.testing.assert_array_equal(perceptron.apply(params, CORNERS), answers)
    assert np.any(errors[:4])
    assert not np.any(errors[-4:])


def test_the_known_xor_network():
    """f(x) = w^T max(W^T x + c, 0) + b with W = [[1, 1], [1, 1]], c = [0, -1], w = [1, -2], b = 0.

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), section 6.1.
    """
    net = fnn.Serial(fnn.Dense(2), fnn.Relu(), fnn.Dense(1))
    params = (
        {"w": jnp.ones((2, 2)), "b": jnp.array([0.0, -1.0])},
        (),
        {"w": jnp.array([[1.0], [-2.0]]), "b": jnp.zeros(1)},
    )
    expected = np.array([[0], [1], [1], [0]], np.float32)
    np.testing.assert_array_equal(net.apply(params, CORNERS), expected)
    np.testing.assert_array_equal(jax.jit(net.apply)(params, CORNERS), expected)
    hidden = fnn.Serial(*net.layers[:2]).apply(params[:2], CORNERS)
    np.testing.assert_array_equal(hidden, [[0, 0], [1, 0], [1, 0], [2, 1]])
    value, grads = jax.value_and_grad(fnn.Objective(net, losses.mse))(params, (CORNERS, expected))
    assert float(value) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_no_line_computes_xor():
    """The best linear model answers 1/2 everywhere: the normal equations' solution, where the gradient is zero."""
    objective = fnn.Objective(fnn.Dense(1), losses.mse)
    params = {"w": jnp.zeros((2, 1)), "b": jnp.array([0.5])}
    value, grads = jax.value_and_grad(objective)(params, (CORNERS, np.array([[0], [1], [1], [0]], np.float32)))
    assert float(value) == 0.25
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_logistic_regression_has_no_hidden_layer(x64: None, rng: np.random.Generator):
    """Its loss and gradient by hand, x^T (sigmoid(x w + b) - y) / N; and Newton's step takes it to its minimum."""
    x, w, b = rng.normal(size=(40, 3)), rng.normal(size=(3, 1)), rng.normal(size=1)
    y = rng.integers(0, 2, (40, 1))
    objective = fnn.Objective(fnn.Dense(1), losses.bernoulli_nll)
    params = {"w": jnp.asarray(w), "b": jnp.asarray(b)}
    value, grads = jax.jit(jax.value_and_grad(objective))(params, (x, y))
    p = 1 / (1 + np.exp(-(x @ w + b)))
    np.testing.assert_allclose(value, -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(), rtol=EXACT)
    np.testing.assert_allclose(grads["w"], x.T @ (p - y) / 40, rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(grads["b"], (p - y).mean(0), rtol=EXACT, atol=EXACT)

    @jax.jit
    def newton(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        def cost(v: jax.Array) -> jax.Array:
            return objective({"w": v[:3, None], "b": v[3:]}, (x, y))

        return v - jnp.linalg.solve(jax.hessian(cost)(v), jax.grad(cost)(v)), jax.grad(cost)(v)

    v, slope = jnp.zeros(4), jnp.ones(4)
    for _ in range(9):
        v, slope = newton(v)
    assert np.abs(slope).max() < EXACT


def test_the_two_class_softmax_is_logistic_regression_on_the_difference_of_the_weights(
    x64: None, rng: np.random.Generator
):
    """As three layers: two linear maps, log softmax, negative log-likelihood. p(1) = sigmoid((w_1 - w_0) x)."""
    x, labels = rng.normal(size=(20, 3)), rng.integers(0, 2, 20)
    w0, w1 = rng.normal(size=(3, 1)), rng.normal(size=(3, 1))
    maps = fnn.Parallel(fnn.Dense(1, bias=False), fnn.Dense(1, bias=False))
    softmax = fnn.Objective(fnn.Serial(maps, fnn.LogSoftmax()), losses.nll)
    logistic = fnn.Objective(fnn.Dense(1, bias=False), losses.bernoulli_nll)

    @jax.jit
    def run(w0: jax.Array, w1: jax.Array) -> Any:
        params = (({"w": w0}, {"w": w1}), ())
        two = jax.value_and_grad(softmax)(params, (x, labels))
        fused = fnn.Objective(fnn.Dense(2, bias=False), losses.softmax_cross_entropy)
        one = jax.value_and_grad(logistic)({"w": w1 - w0}, (x, labels[:, None]))
        return (
            two,
            one,
            fused({"w": jnp.concatenate([w0, w1], 1)}, (x, labels)),
            softmax.net.apply(params, jnp.asarray(x)),
        )

    (value, (((g0), (g1)), _)), (logistic_value, logistic_grads), fused, log_p = run(w0, w1)
    np.testing.assert_allclose(value, logistic_value, rtol=EXACT)
    np.testing.assert_allclose(value, fused, rtol=EXACT)
    np.testing.assert_allclose(g1["w"], logistic_grads["w"], rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(g0["w"], -logistic_grads["w"], rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(np.exp(log_p[:, 1:]), 1 / (1 + np.exp(-x @ (w1 - w0))), rtol=EXACT)


def test_linear_regression_has_the_least_squares_solution(x64: None, rng: np.random.Generator):
    """At NumPy's least-squares solution the gradient of the squared error is zero."""
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(30, 2))
    solution = np.linalg.lstsq(np.column_stack([x, np.ones(30)]), y, rcond=None)[0]
    objective = fnn.Objective(fnn.Dense(2), losses.squared_error)
    grads = jax.grad(objective)({"w": jnp.asarray(solution[:3]), "b": jnp.asarray(solution[3])}, (x, y))
    assert all(np.abs(leaf).max() < EXACT for leaf in jax.tree.leaves(grads))


def test_an_rbf_network_interpolates(x64: None, rng: np.random.Generator):
    """With a centre on each example the linear layer's weights solve exactly: the outputs are the targets."""
    x, y = rng.uniform(-1, 1, (8, 2)), rng.normal(size=(8, 1))
    features = fnn.Rbf(8, epsilon=2.0, centres=x)
    w = np.linalg.solve(np.asarray(features.apply((), jnp.asarray(x))), y)
    net = fnn.Serial(features, fnn.Dense(1, bias=False))
    np.testing.assert_allclose(
        net.apply(((), {"w": jnp.asarray(w)}), jnp.asarray(x)), y, rtol=1e-6, atol=1e-6
    )  # conditioning
