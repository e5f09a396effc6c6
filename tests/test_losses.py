"""Losses: values by hand, values and gradients at the ends of every dtype, and the errors of what does not fit."""

import decimal
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn import losses
from funcnn.losses import LossError
from tests.problems import LOSSES, LossProblem, draw_targets, each_loss

DTYPES = {"bfloat16": jnp.bfloat16, "float16": np.float16, "float32": np.float32, "float64": np.float64}
EXACT = 1e-12  # float64, a few operations on numbers of order 1: some 1e4 units in the last place


# Values, written out in NumPy.


def np_softplus(a: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(a))


def np_log_softmax(z: np.ndarray) -> np.ndarray:
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def np_distribution(f: np.ndarray, y: np.ndarray) -> np.ndarray:
    return y if y.shape == f.shape else np.eye(f.shape[-1])[y]


BY_HAND: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "squared_error": lambda f, y: (f - y) ** 2,
    "mse": lambda f, y: (f - y) ** 2 / 3,
    "mae": lambda f, y: np.abs(f - y) / 3,
    "gaussian_nll": lambda f, y: (f - y) ** 2 / 2 + np.log(2 * np.pi) / 2,
    "gaussian_nll-given": lambda f, y: (f - y) ** 2 / (2 * 2.5) + np.log(2 * np.pi * 2.5) / 2,
    "gaussian_nll-learned": lambda f, y: (
        (f[:, :3] - y) ** 2 / (2 * np.exp(f[:, 3:])) + np.log(2 * np.pi * np.exp(f[:, 3:])) / 2
    ),
    "laplace_nll": lambda f, y: np.abs(f - y) / 0.7 + np.log(2 * 0.7),
    "bernoulli_nll": lambda f, y: np_softplus((1 - 2 * y) * f),
    "bernoulli_nll-soft": lambda f, y: y * np_softplus(-f) + (1 - y) * np_softplus(f),
    "bernoulli_nll-signed": lambda f, y: np_softplus(-y * f),
    "softmax_cross_entropy": lambda f, y: -np_distribution(f, y) * np_log_softmax(f),
    "softmax_cross_entropy-smoothed": lambda f, y: -(0.9 * np_distribution(f, y) + 0.1 / 4) * np_log_softmax(f),
    "nll": lambda f, y: -np_distribution(f, y) * f,
}
SAME = {
    "squared_error-image": "squared_error",
    "softmax_cross_entropy-soft": "softmax_cross_entropy",
    "softmax_cross_entropy-sequence": "softmax_cross_entropy",
    "linear_cross_entropy": "softmax_cross_entropy",  # of logits; of their factors, in test_factors.py
    "nll-soft": "nll",
}


@pytest.mark.parametrize("name", LOSSES)
def test_values_by_hand(name: str, x64: None, rng: np.random.Generator, key: jax.Array):
    problem = LOSSES[name]
    f = rng.normal(size=(5, *problem.out_shape))
    y = draw_targets(problem.targets, key, 5, problem.out_shape)
    terms = BY_HAND[SAME.get(name, name)](f, np.asarray(y))
    got = jax.jit(problem.loss)(f, y)
    assert got.shape == (5,)
    np.testing.assert_allclose(got, terms.reshape(5, -1).sum(1), rtol=EXACT, atol=EXACT)


@each_loss
def test_per_example_and_in_the_dtype_of_the_outputs(problem: LossProblem, key: jax.Array):
    y = draw_targets(problem.targets, key, 4, problem.out_shape)
    f = jax.random.normal(key, (4, *problem.out_shape))

    @jax.jit
    def run(f: jax.Array, y: jax.Array) -> Any:
        rows = jax.vmap(lambda a, b: problem.loss(a[None], b[None])[0])(f, y)
        low = {dtype: problem.loss(f.astype(dtype), y) for dtype in ("bfloat16", "float16")}
        return problem.loss(f, y), problem.loss(f.at[1:].set(7), y), rows, low

    whole, others, rows, low = run(f, y)
    few = 16 * float(jnp.finfo(jnp.float32).eps)  # a few roundings of terms of order 1, otherwise in another program
    assert (whole.shape, whole.dtype) == ((4,), jnp.float32)
    np.testing.assert_allclose(rows, whole, rtol=few, atol=few)
    np.testing.assert_allclose(others[0], whole[0], rtol=few, atol=few)  # examples do not mix
    assert not np.allclose(others[1:], whole[1:], rtol=few, atol=few)
    for dtype, values in low.items():
        few = 16 * float(jnp.finfo(dtype).eps)
        assert values.dtype == dtype
        np.testing.assert_allclose(values.astype(jnp.float32), whole, rtol=few, atol=few)


# Values and gradients at the ends of each dtype, against exact arithmetic.

ZERO, ONE, TWO = Decimal(0), Decimal(1), Decimal(2)
CONTEXT = decimal.Context(prec=50, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[])
LOG_2PI = Decimal("1.83787706640934548356065947281123527972279494727557")


class Exact(NamedTuple):
    """A loss and its gradient to 50 digits, each with the size of the terms that it was summed from."""

    value: Decimal
    value_scale: Decimal
    grad: list[Decimal]
    grad_scale: list[Decimal]
    peak: Decimal = Decimal(0)  # a part of the value which may overflow where the whole does not


def total(
    terms: list[Decimal], grads: list[Decimal], scales: list[Decimal] | None = None, more: Decimal = ZERO
) -> Exact:
    """Exact from the terms of the value and the gradient's entries."""
    return Exact(sum(terms, ZERO), sum(map(abs, terms), more), grads, scales or list(map(abs, grads)))


def log1p_exp(z: Decimal) -> Decimal:
    return z + log1p_exp(-z) if z > 0 else (ONE + z.exp()).ln() if z > -100 else z.exp()


def logistic(z: Decimal) -> Decimal:
    return ONE / (ONE + (-z).exp()) if z > 0 else z.exp() / (ONE + z.exp())


def sign(u: Decimal) -> Decimal:
    return ONE.copy_sign(u) if u else ZERO


def exact_squared(f: list[Decimal], y: list[Decimal]) -> Exact:
    return total([(a - b) ** 2 for a, b in zip(f, y, strict=True)], [2 * (a - b) for a, b in zip(f, y, strict=True)])


def exact_mse(f: list[Decimal], y: list[Decimal]) -> Exact:
    whole, k = exact_squared(f, y), Decimal(len(f))
    return total([whole.value / k], [g / k for g in whole.grad])


def exact_mae(f: list[Decimal], y: list[Decimal]) -> Exact:
    u, k = [a - b for a, b in zip(f, y, strict=True)], Decimal(len(f))
    return total([abs(d) / k for d in u], [sign(d) / k for d in u])


def exact_gaussian(f: list[Decimal], y: list[Decimal], variance: Decimal = ONE) -> Exact:
    u = [a - b for a, b in zip(f, y, strict=True)]
    terms = [d * d / (2 * variance) for d in u] + [variance.ln() / 2, LOG_2PI / 2] * len(u)
    return total(terms, [d / variance for d in u])


def exact_learned(f: list[Decimal], y: list[Decimal]) -> Exact:
    u, s = [a - b for a, b in zip(f, y, strict=False)], f[len(y) :]
    square = [d * d * (-c).exp() if d else ZERO for d, c in zip(u, s, strict=True)]
    terms = [q / 2 for q in square] + [c / 2 for c in s] + [LOG_2PI / 2] * len(u)
    mean = [d * (-c).exp() if d else ZERO for d, c in zip(u, s, strict=True)]
    grads = mean + [(1 - q) / 2 for q in square]
    whole = total(terms, grads, [abs(m) for m in mean] + [1 + q for q in square])
    return whole._replace(peak=sum(square, ZERO) / 2)


def exact_laplace(f: list[Decimal], y: list[Decimal], b: Decimal) -> Exact:
    u = [a - c for a, c in zip(f, y, strict=True)]
    return total([abs(d) / b for d in u] + [(2 * b).ln()] * len(u), [sign(d) / b for d in u])


def exact_bernoulli(z: list[Decimal], y: list[Decimal]) -> Exact:
    pairs = list(zip(z, y, strict=True))
    terms = [b * log1p_exp(-a) + (1 - b) * log1p_exp(a) for a, b in pairs]
    halves = [((1 - b) * logistic(a), b * logistic(-a)) for a, b in pairs]
    return total(terms, [n - p for n, p in halves], [n + p for n, p in halves])


def exact_signed(z: list[Decimal], y: list[Decimal]) -> Exact:
    return exact_bernoulli(z, [(1 + b) / 2 for b in y])


def exact_cross_entropy(z: list[Decimal], y: list[Decimal], smoothing: Decimal = ZERO) -> Exact:
    is_open = [a.is_finite() for a in z]
    y = [(1 - smoothing) * b + (smoothing / sum(is_open) if o else ZERO) for b, o in zip(y, is_open, strict=True)]
    top, mass = max(z), sum(y, ZERO)
    weights = [(a - top).exp() if o else ZERO for a, o in zip(z, is_open, strict=True)]
    partition = sum(weights, ZERO)
    terms = [mass * partition.ln(), *(b * (top - a) for a, b in zip(z, y, strict=True) if b)]
    grads = [w / partition * mass - b for w, b in zip(weights, y, strict=True)]
    return total(terms, grads, [mass] * len(z), more=mass)  # the 1 of the largest logit is a term of the partition sum


def exact_nll(logs: list[Decimal], y: list[Decimal]) -> Exact:
    return total([-b * a for a, b in zip(logs, y, strict=True) if b], [-b for b in y])


class Extreme(NamedTuple):
    """A loss with its exact form, K targets for how many outputs, and how to draw both."""

    loss: losses.Loss
    exact: Callable[..., Exact]
    width: int
    targets: str
    outputs: str = "any"


EXTREMES = {
    "squared_error": Extreme(losses.squared_error, exact_squared, 3, "real"),
    "mse": Extreme(losses.mse, exact_mse, 8, "real"),
    "mae": Extreme(losses.mae, exact_mae, 3, "real"),
    "gaussian_nll": Extreme(losses.gaussian_nll, exact_gaussian, 3, "real"),
    "gaussian_nll-wide": Extreme(
        losses.gaussian_nll(variance=4096.0), lambda f, y: exact_gaussian(f, y, Decimal(4096)), 3, "real"
    ),
    "gaussian_nll-narrow": Extreme(
        losses.gaussian_nll(variance=2.0**-12), lambda f, y: exact_gaussian(f, y, TWO**-12), 3, "real"
    ),
    "gaussian_nll-learned": Extreme(losses.gaussian_nll(variance="learned"), exact_learned, 6, "real-half"),
    "laplace_nll": Extreme(losses.laplace_nll(scale=0.125), lambda f, y: exact_laplace(f, y, ONE / 8), 3, "real"),
    "bernoulli_nll": Extreme(losses.bernoulli_nll, exact_bernoulli, 3, "unit"),
    "bernoulli_nll-signed": Extreme(losses.bernoulli_nll(signed=True), exact_signed, 3, "signed-unit"),
    "softmax_cross_entropy": Extreme(losses.softmax_cross_entropy, exact_cross_entropy, 4, "one-hot"),
    "softmax_cross_entropy-soft": Extreme(losses.softmax_cross_entropy, exact_cross_entropy, 4, "soft"),
    "softmax_cross_entropy-masked": Extreme(
        losses.softmax_cross_entropy(label_smoothing=0.25),
        lambda z, y: exact_cross_entropy(z, y, ONE / 4),
        4,
        "one-hot",
        "masked",
    ),
    "nll": Extreme(losses.nll, exact_nll, 4, "soft", "negative"),
}


def extreme_numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Numbers of a dtype: its ends, the places where exp over- and underflows, all magnitudes, and everyday ones.

    None is smaller than tiny / eps, so that no difference of two is a denormal: JAX's CPU backend sets these to zero.
    """
    info = jnp.finfo(dtype)
    big, small = float(info.max), float(info.tiny) / float(info.eps)
    exponent = math.log(big)
    places = [
        big,
        big / 2,
        big / 3,
        math.sqrt(big),
        small,
        exponent,
        2 * exponent,
        exponent / 2,
        1.0,
        1 / float(info.eps),
    ]
    special = rng.choice(places, shape)
    magnitude = np.exp(rng.uniform(math.log(small), exponent, shape))
    everyday = 3 * np.abs(rng.normal(size=shape))
    kind = rng.integers(0, 4, shape)
    values = np.choose(kind, [special, magnitude, everyday, np.zeros(shape)]) * rng.choice([-1, 1], shape)
    values = np.where((values != 0) & (np.abs(values) < small), small, values)
    return np.clip(values, -big, big).astype(dtype)


def extreme_batch(problem: Extreme, rng: np.random.Generator, dtype: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    outputs = extreme_numbers(rng, (n, problem.width), dtype)
    half = problem.targets == "real-half"
    shape = (n, problem.width // 2 if half else problem.width)
    if problem.targets.startswith("real"):
        targets = extreme_numbers(rng, shape, dtype)
        same = rng.random(shape) < 0.3
        targets = np.where(same, outputs[:, : shape[1]], targets)
        if half:  # everyday standard deviations beside the extremes: elsewhere all is infinite or as if f were y
            fitting = 2 * np.log(np.abs(outputs[:, :3].astype(float)) + 1e-9) + rng.normal(size=shape)
            outputs[:, 3:] = np.where(rng.random(shape) < 0.5, fitting.astype(dtype), outputs[:, 3:])
    elif problem.targets == "one-hot":
        targets = np.eye(problem.width)[rng.integers(0, problem.width, n)]
    elif problem.targets == "soft":
        targets = rng.dirichlet(np.full(problem.width, 0.3), n)
        targets[targets < 1e-3] = 0
    else:
        eps = float(jnp.finfo(dtype).eps)
        places = [0.0, 1.0, 0.5, eps, 1 - eps / 2, 0.25]
        targets = rng.choice([*places, -1.0, eps / 2 - 1] if problem.targets == "signed-unit" else places, shape)
    if problem.outputs == "negative":
        outputs = -np.abs(outputs)
    if problem.outputs == "masked":
        outputs = np.where((rng.random(outputs.shape) < 0.3) & (targets == 0), -np.inf, outputs)
    return outputs.astype(dtype), targets.astype(dtype)


# In units of eps times the terms' size: exp and log are right to 2 or 3 units, exp(s) and its like amplify the rounding
# of s / 4 not at all, and some four roundings follow. 16-bit floats round after each.
ULPS = 16


def disagreement(got: float, true: Decimal, scale: Decimal, info: Any, peak: Decimal = ZERO) -> str | None:
    """Why `got` is not `true`, rounded to the dtype of `info`, or None."""
    ulps = ULPS
    big, eps, tiny = Decimal(float(info.max)), Decimal(float(info.eps)), Decimal(float(info.tiny))
    if math.isnan(got):
        return "NaN"
    if math.isinf(got):
        fits = max(abs(true), peak) < big * (1 - ulps * eps) or (got > 0) != (max(true, peak) > 0)
        return f"{got} where {float(true)} fits" if fits else None
    if abs(true) > big * (1 + ulps * eps):
        return f"{got} where the true value overflows"
    # tiny: what is smaller is set to zero on JAX's CPU backend, here and in the terms of the sum.
    error = abs(Decimal(got) - true)
    if not (error <= ulps * (eps * scale + tiny)):
        return f"{got}, {float(error / eps / (scale + tiny)):.0f} units off {float(true)}"
    return None


@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("name", EXTREMES)
def test_stable_to_the_ends_of_the_dtype(name: str, dtype_name: str, rng: np.random.Generator):
    problem, dtype, n = EXTREMES[name], DTYPES[dtype_name], 150
    info = jnp.finfo(dtype)
    f, y = extreme_batch(problem, rng, dtype, n)
    with jax.enable_x64(dtype_name == "float64"):

        def summed(outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
            values = problem.loss(outputs, targets)
            return jnp.sum(values), values

        grads, values = jax.jit(jax.grad(summed, has_aux=True))(jnp.asarray(f), jnp.asarray(y))
        assert values.dtype == grads.dtype == dtype
        values, grads = np.asarray(values, np.float64), np.asarray(grads, np.float64)
    wrong = []
    with decimal.localcontext(CONTEXT):
        for i in range(n):
            row = [Decimal(float(a)) for a in f[i]]
            exact = problem.exact(row, [Decimal(float(a)) for a in y[i]])
            faults = [("value", disagreement(values[i], exact.value, exact.value_scale, info, exact.peak))]
            for k, (true, scale) in enumerate(zip(exact.grad, exact.grad_scale, strict=True)):
                faults.append((f"gradient {k}", disagreement(grads[i, k], true, scale, info)))
            wrong += [(f[i].tolist(), y[i].tolist(), *fault) for fault in faults if fault[1]]
    assert not wrong, f"{len(wrong)} wrong, such as {wrong[:6]}"


def test_examples_of_the_stability_table_reach_the_ends(rng: np.random.Generator):
    """The table above tests nothing unless its draws overflow some losses, and not most."""
    f, y = extreme_batch(EXTREMES["squared_error"], rng, np.float32, 200)
    infinite = np.isinf(jax.jit(losses.squared_error)(jnp.asarray(f), jnp.asarray(y)))
    assert 20 < infinite.sum() < 180
    assert (np.abs(f) == np.finfo(np.float32).max).any()


@pytest.mark.parametrize("name", ["squared_error", "mse", "gaussian_nll", "gaussian_nll-learned", "bernoulli_nll"])
def test_eager_is_jit_where_a_factor_may_overflow_on_its_way(name: str, rng: np.random.Generator):
    """XLA folds factors together, which hides an overflow between them; operation by operation it shows."""
    problem = EXTREMES[name]
    f, y = (jnp.asarray(a) for a in extreme_batch(problem, rng, np.float32, 100))

    def summed(outputs: jax.Array) -> jax.Array:
        return jnp.sum(problem.loss(outputs, y))

    eps, tiny = float(np.finfo(np.float32).eps), float(np.finfo(np.float32).tiny)
    eager, jitted = jax.grad(summed)(f), jax.jit(jax.grad(summed))(f)
    assert np.isfinite(eager).sum() > 200
    np.testing.assert_allclose(eager, jitted, rtol=ULPS * eps, atol=tiny)


def test_log_variances_of_both_signs_may_overflow_on_the_way_to_their_sum():
    """Where every mean is right, sum_k s_k / 2 is all; two numbers of the dtype's end on one side are too many."""
    end = float(np.finfo(np.float32).max)
    f = jnp.array([[1.0] * 4 + [end, end, end, -end], [1.0] * 4 + [-end, -end, -end, end]])
    values = jax.jit(losses.gaussian_nll(variance="learned"))(f, jnp.ones((2, 4)))
    np.testing.assert_allclose(values, [end, -end], rtol=1e-6)  # float32


def test_the_kink_of_absolute_differences_has_the_gradient_0():
    f, y = jnp.array([[1.0, 2.0, -3.0]]), jnp.array([[1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(jax.grad(lambda a: losses.mae(a, y)[0])(f) * 3, [[0, 1, -1]])
    np.testing.assert_array_equal(jax.grad(lambda a: losses.laplace_nll(a, y, scale=0.5)[0])(f), [[0, 2, -2]])


def test_masked_classes_count_for_nothing():
    """The loss and gradient over open classes are those of a problem that has these classes only."""
    masked = jnp.array([[0.3, -jnp.inf, 1.2, -jnp.inf], [-jnp.inf, -jnp.inf, -jnp.inf, 2.0]])
    labels = jnp.array([2, 3])

    def summed(z: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
        return jnp.sum(losses.SoftmaxCrossEntropy(smoothing)(z, labels))

    @jax.jit
    def run(z: jax.Array, labels: jax.Array) -> Any:
        return [jax.value_and_grad(summed)(z, labels, smoothing) for smoothing in (0.0, 0.2)]

    small = run(masked[:1, ::2], labels[:1] // 2)
    for (value, grad), (small_value, small_grad) in zip(run(masked, labels), small, strict=True):
        np.testing.assert_allclose(value, small_value, rtol=1e-6)  # float32; the second row's loss is 0
        np.testing.assert_allclose(grad[0], [small_grad[0, 0], 0, small_grad[0, 1], 0], rtol=1e-6)
        np.testing.assert_array_equal(grad[1], 0)
    # The probability of a masked class is 0, so that the loss of one is infinite: a fault in the data, and seen.
    assert float(losses.softmax_cross_entropy(masked, jnp.array([1, 3]))[0]) == math.inf


def test_labels_are_one_hot_and_smoothing_mixes_in_the_uniform(key: jax.Array):
    labels = np.arange(6) % 5
    hot = np.eye(5, dtype=np.float32)[labels]

    @jax.jit
    def run(z: jax.Array) -> list[tuple[jax.Array, ...]]:
        smoothed = [(a, losses.softmax_cross_entropy(label_smoothing=a)) for a in (0.0, 0.3, 1.0)]
        mixed = [losses.softmax_cross_entropy(z, (1 - a) * hot + a / 5) for a, _ in smoothed]
        same = [(loss(z, labels), loss(z, hot), soft) for (_, loss), soft in zip(smoothed, mixed, strict=True)]
        log_p = jax.nn.log_softmax(z)
        return [*same, (losses.nll(log_p, labels), losses.nll(log_p, hot), losses.softmax_cross_entropy(z, labels))]

    for by_label, by_row, expected in run(jax.random.normal(key, (6, 5))):
        few = 8 * float(np.finfo(np.float32).eps)  # float32, terms of order 1
        np.testing.assert_allclose(by_label, expected, rtol=few)
        np.testing.assert_allclose(by_row, expected, rtol=few)


@pytest.mark.parametrize("dtype_name", ["int8", "uint8", "int16", "uint16", "int32", "uint32"])
def test_labels_of_every_integer_dtype(dtype_name: str):
    """Among more classes than a byte counts: those of a small dtype must not wrap around."""
    z = jnp.linspace(0, 3, 2 * 300).reshape(2, 300)
    expected = np.asarray(z).max(1) + np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) - np.asarray(z)[:, 7]
    labels = jnp.full((2,), 7, dtype_name)
    np.testing.assert_allclose(jax.jit(losses.softmax_cross_entropy)(z, labels), expected, rtol=1e-5)  # float32
    np.testing.assert_array_equal(jax.jit(losses.nll)(z, labels), -z[:, 7])


def test_more_classes_than_float16_counts():
    loss = jax.jit(losses.softmax_cross_entropy)(jnp.zeros((1, 100_000), jnp.float16), jnp.array([3]))
    np.testing.assert_allclose(loss.astype(jnp.float32), math.log(100_000), rtol=1e-3)  # float16 has 11 bits


def test_signed_and_unsigned_targets_say_the_same():
    z, y = jnp.array([[-2.0, 0.5, 30.0]]), jnp.array([[1, 0, 1]])
    np.testing.assert_array_equal(losses.bernoulli_nll(z, y), losses.bernoulli_nll(z, 2 * y - 1, signed=True))
    np.testing.assert_array_equal(losses.bernoulli_nll(z, y), losses.bernoulli_nll(z, y == 1))  # booleans too


def test_a_loss_is_a_value():
    smoothed = losses.softmax_cross_entropy(label_smoothing=0.1)
    assert repr(losses.softmax_cross_entropy) == "softmax_cross_entropy"
    assert repr(smoothed) == "softmax_cross_entropy(label_smoothing=0.1)"
    assert smoothed == losses.softmax_cross_entropy(label_smoothing=0.1) != losses.softmax_cross_entropy
    assert smoothed(label_smoothing=0.0) == losses.softmax_cross_entropy
    assert losses.softmax_cross_entropy() is losses.softmax_cross_entropy
    for problem in LOSSES.values():
        loss = problem.loss
        assert eval(repr(loss), vars(losses).copy()) == loss
        assert hash(eval(repr(loss), vars(losses).copy())) == hash(loss)
        assert fnn.from_json(fnn.to_json(loss)) == loss


# Errors.


def zeros(*shape: int) -> jax.Array:
    return jnp.zeros(shape)


WRONG_SHAPES = {
    "column": (losses.mse, zeros(4, 1), zeros(4), ["mse", "(4, 1)", "(4,)", "y[:, None]"]),
    "row": (losses.squared_error, zeros(4), zeros(4, 1), ["squared_error", "(4,)", "(4, 1)"]),
    "labels": (losses.mse, zeros(4, 3), jnp.arange(4), ["softmax_cross_entropy", "one-hot"]),
    "bernoulli": (losses.bernoulli_nll, zeros(4, 1), jnp.arange(4), ["bernoulli_nll", "y[:, None]"]),
    "learned": (
        losses.gaussian_nll(variance="learned"), zeros(4, 3), zeros(4, 3), ["(N, 2 K)", "(4, 3)", "log-variances"]
    ),
    "learned-number": (losses.gaussian_nll(variance="learned"), zeros(4, 2), zeros(), ["(N, 2 K)", "()"]),
    "classes": (losses.softmax_cross_entropy, zeros(4, 3), zeros(4, 2), ["(4,)", "(4, 3)", "(4, 2)"]),
    "no-classes": (losses.nll, zeros(4), jnp.arange(4), ["(N, ..., K)", "(4,)"]),
    "float-labels": (
        losses.softmax_cross_entropy, zeros(4, 3), zeros(4), ["integer labels", "float32", "y.astype(jnp.int32)"]
    ),
    "bool-labels": (losses.nll, zeros(4, 3), zeros(4) > 0, ["integer labels", "bool", "(4, 3)"]),
    "empty": (losses.mae, zeros(0, 3), zeros(0, 3), ["mae", "empty batch", "(0, 3)"]),
    "number": (losses.mae, zeros(), zeros(), ["(N, ...)", "()"]),
    "no-outputs": (losses.mse, zeros(4, 0), zeros(4, 0), ["mse", "(4, 0)"]),
    "integers": (losses.mae, jnp.arange(4), jnp.arange(4), ["floating", "int32"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_SHAPES)
def test_wrong_shapes_and_dtypes(name: str):
    loss, outputs, targets, words = WRONG_SHAPES[name]
    for call in (loss, lambda f, y: jax.eval_shape(loss, f, y)):  # traced too: shapes are always known
        with pytest.raises(LossError) as caught:
            call(outputs, targets)
        assert all(word in str(caught.value) for word in words), str(caught.value)


WRONG_VALUES = {
    "large": (losses.softmax_cross_entropy, zeros(4, 3), jnp.array([0, 3, 1, 7]), ["0..2", "3", "index 1", "2 in all"]),
    "negative": (losses.nll, zeros(4, 3), jnp.array([0, 2, -1, 0]), ["0..2", "-1", "index 2", "1 in all"]),
    "sequence": (losses.nll, zeros(1, 2, 3), jnp.array([[0, 9]]), ["0..2", "9", "index (0, 1)"]),
    "soft": (losses.softmax_cross_entropy, zeros(1, 2), jnp.array([[1.5, -0.5]]), ["not negative", "-0.5", "(0, 1)"]),
    "nan": (losses.softmax_cross_entropy, zeros(1, 2), jnp.array([[jnp.nan, 1.0]]), ["not negative", "nan"]),
    "minus": (losses.bernoulli_nll, zeros(3, 1), jnp.array([[1], [-1], [1]]), ["[0, 1]", "-1", "signed=True"]),
    "two": (losses.bernoulli_nll(signed=True), zeros(2), jnp.array([0.5, 2.0]), ["[-1, 1]", "2.0", "index 1"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_wrong_values(name: str):
    loss, outputs, targets, words = WRONG_VALUES[name]
    for call in (loss, jax.jit(lambda f: loss(f, targets))):  # targets that jit closes over are there to be looked at
        with pytest.raises(LossError) as caught:
            call(outputs, targets) if call is loss else call(outputs)
        assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "loss", [losses.softmax_cross_entropy, losses.softmax_cross_entropy(label_smoothing=0.1), losses.nll]
)
def test_a_traced_label_that_is_no_class_gives_nan_for_its_example_alone(loss: losses.Loss):
    z, labels = jnp.ones((4, 3)), jnp.array([0, 3, 2, -1])
    values, grads = jax.jit(jax.vmap(jax.value_and_grad(lambda f, y: loss(f[None], y[None])[0])))(z, labels)
    np.testing.assert_array_equal(np.isnan(values), [False, True, False, True])
    assert np.isnan(grads[1::2]).all()
    assert np.isfinite(grads[::2]).all()


def test_a_traced_target_out_of_range_is_used_as_it_is():
    got = jax.jit(losses.bernoulli_nll)(jnp.array([1.0]), jnp.array([3.0]))
    np.testing.assert_allclose(got, 3 * math.log1p(math.exp(-1)) - 2 * math.log1p(math.exp(1)), rtol=1e-6)  # float32


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: losses.gaussian_nll(variance=0.0), ["variance", "positive", "0.0"]),
        (lambda: losses.gaussian_nll(variance="learnt"), ["'learned'", "'learnt'"]),
        (lambda: losses.gaussian_nll(variance=math.nan), ["variance", "nan"]),
        (lambda: losses.laplace_nll(scale=-1.0), ["scale", "-1.0"]),
        (lambda: losses.softmax_cross_entropy(label_smoothing=1.5), ["[0, 1]", "1.5"]),
    ],
)
def test_wrong_options(make: Callable[[], Any], words: list[str]):
    with pytest.raises(LossError) as caught:
        make()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_wrong_calls():
    with pytest.raises(TypeError, match="has no field variance; its fields are"):
        losses.mse(variance=2.0)
    with pytest.raises(TypeError, match=r"takes \(outputs, targets\), or options by keyword alone, got 1 arrays"):
        losses.mse(jnp.zeros(3))  # type: ignore[call-overload]
