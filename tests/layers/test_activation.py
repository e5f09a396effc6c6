"""Activations: values and slopes by hand on a grid, the chosen derivatives at the kinks, and the softmaxes."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn.layer import LayerError
from tests.problems import ELEMENTWISE

EXACT = 1e-12  # float64, a few operations; slopes of order 1
GRID = np.linspace(-4.9, 5.1, 41)  # no kink of any activation is on it


def np_sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def erf(a: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf)(a)


Curve = Callable[[np.ndarray], np.ndarray]


def gelu_tanh(a: np.ndarray) -> np.ndarray:
    return a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3))) / 2


def gelu_tanh_slope(a: np.ndarray) -> np.ndarray:
    t = np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3))
    return (1 + t) / 2 + a * (1 - t**2) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * a**2) / 2


# The function and its slope, from the equations of the docstrings.
CURVES: dict[str, tuple[Curve, Curve]] = {
    "identity": (lambda a: a, np.ones_like),
    "sigmoid": (np_sigmoid, lambda a: np_sigmoid(a) * (1 - np_sigmoid(a))),
    "tanh": (np.tanh, lambda a: 1 - np.tanh(a) ** 2),
    "relu": (lambda a: np.maximum(a, 0), lambda a: np.where(a > 0, 1, 0)),
    "leaky_relu": (lambda a: np.maximum(0.01 * a, a), lambda a: np.where(a > 0, 1, 0.01)),
    "leaky_relu-steep": (lambda a: np.maximum(0.7 * a, a), lambda a: np.where(a > 0, 1, 0.7)),
    "leaky_relu-zero": (lambda a: np.maximum(0, a), lambda a: np.where(a > 0, 1, 0)),
    "leaky_relu-negative": (lambda a: np.maximum(-0.5 * a, a), lambda a: np.where(a > 0, 1, -0.5)),
    "absolute": (np.abs, np.sign),
    "swish": (lambda a: a * np_sigmoid(a), lambda a: np_sigmoid(a) * (1 + a * np_sigmoid(-a))),
    "swish-beta": (
        lambda a: a * np_sigmoid(-1.7 * a),
        lambda a: np_sigmoid(-1.7 * a) * (1 - 1.7 * a * np_sigmoid(1.7 * a)),
    ),
    "silu": (lambda a: a * np_sigmoid(a), lambda a: np_sigmoid(a) * (1 + a * np_sigmoid(-a))),
    "hard_swish": (
        lambda a: a * np.clip(a + 3, 0, 6) / 6,
        lambda a: np.where(a > 3, 1, np.where(a < -3, 0, (2 * a + 3) / 6)),
    ),
    "gelu": (
        lambda a: a * (1 + erf(a / np.sqrt(2))) / 2,
        lambda a: (1 + erf(a / np.sqrt(2))) / 2 + a * np.exp(-(a**2) / 2) / np.sqrt(2 * np.pi),
    ),
    "gelu-tanh": (gelu_tanh, gelu_tanh_slope),
    "softplus": (lambda a: np.log(1 + np.exp(a)), np_sigmoid),
    "elu": (lambda a: np.where(a > 0, a, np.exp(a) - 1), lambda a: np.where(a > 0, 1, np.exp(a))),
    "elu-alpha": (lambda a: np.where(a > 0, a, 2.5 * (np.exp(a) - 1)), lambda a: np.where(a > 0, 1, 2.5 * np.exp(a))),
    "step": (lambda a: np.where(a > 0, 1, 0), np.zeros_like),
}


def values_and_slopes(layers: dict[str, Any], points: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """f(a) and f'(a), as jax.grad has it, of each layer in one compiled program."""

    @jax.jit
    def run(a: jax.Array) -> dict[str, Any]:
        return {
            name: (layer.apply((), a), jax.vmap(jax.grad(lambda v, f=layer: f.apply((), v[None])[0]))(a))
            for name, layer in layers.items()
        }

    return jax.tree.map(np.asarray, run(jnp.asarray(points)))


def test_values_and_slopes_by_hand(x64: None):
    assert CURVES.keys() == ELEMENTWISE.keys()
    for name, (value, slope) in values_and_slopes(ELEMENTWISE, GRID).items():
        curve, slope_curve = CURVES[name]
        np.testing.assert_allclose(value, curve(GRID), rtol=EXACT, atol=EXACT, err_msg=name)
        np.testing.assert_allclose(slope, slope_curve(GRID), rtol=EXACT, atol=EXACT, err_msg=name)


def test_the_derivatives_at_the_kinks_are_those_chosen():
    kinks = {
        "relu": (fnn.Relu(), 0.0, 0.0),
        "leaky_relu": (fnn.LeakyRelu(), 0.0, 1.0),
        "absolute": (fnn.Absolute(), 0.0, 0.0),
        "elu": (fnn.Elu(alpha=2.5), 0.0, 2.5),
        "step": (fnn.Step(), 0.0, 0.0),
        "hard_swish-left": (fnn.HardSwish(), -3.0, 0.0),
        "hard_swish-right": (fnn.HardSwish(), 3.0, 1.0),
    }
    got = values_and_slopes({name: layer for name, (layer, _, _) in kinks.items()}, [-3.0, -0.0, 0.0, 3.0])
    for name, (_, at, chosen) in kinks.items():
        slopes = got[name][1]
        assert slopes[[-3.0, None, 0.0, 3.0].index(at)] == chosen, name
        assert at or slopes[1] == chosen, name  # -0.0 too


def test_far_out_nothing_overflows():
    """Values and slopes at the largest numbers of float32, where the limits are known."""
    big = float(np.finfo(np.float32).max)
    limits: dict[str, tuple[float, float, float, float]] = {  # f(-big), f(big), f'(-big), f'(big)
        "sigmoid": (0, 1, 0, 0),
        "tanh": (-1, 1, 0, 0),
        "relu": (0, big, 0, 1),
        "absolute": (big, big, -1, 1),
        "swish": (0, big, 0, 1),
        "silu": (0, big, 0, 1),
        "hard_swish": (0, big, 0, 1),
        "gelu": (0, big, 0, 1),
        "softplus": (0, big, 0, 1),
        "elu": (-1, big, 0, 1),
        "step": (0, 1, 0, 0),
    }
    got = values_and_slopes({name: ELEMENTWISE[name] for name in limits}, [-big, big])
    for name, expected in limits.items():
        np.testing.assert_array_equal(np.concatenate(got[name]), expected, err_msg=name)


def test_prelu_by_hand(x64: None, rng: np.random.Generator):
    x, slope = rng.normal(size=(5, 2, 3)), rng.normal(size=(2, 3))
    x[0] = 0

    @jax.jit
    def run(x: jax.Array, slope: jax.Array) -> Any:
        def total(shared: bool) -> Callable[..., jax.Array]:
            return lambda p, a: jnp.sum(fnn.Prelu(shared=shared).apply({"slope": p}, a))

        each, one = fnn.Prelu().apply({"slope": slope}, x), fnn.Prelu(shared=True).apply({"slope": slope[0, 0]}, x)
        return each, one, jax.grad(total(False), (0, 1))(slope, x), jax.grad(total(True), (0, 1))(slope[0, 0], x)

    each, one, (dslope, dx), (dshared, _) = run(x, slope)
    np.testing.assert_allclose(each, np.where(x > 0, x, slope * x), rtol=EXACT)
    np.testing.assert_allclose(one, np.where(x > 0, x, slope[0, 0] * x), rtol=EXACT)
    np.testing.assert_allclose(dslope, np.minimum(x, 0).sum(0), rtol=EXACT)
    np.testing.assert_allclose(dshared, np.minimum(x, 0).sum(), rtol=EXACT)
    np.testing.assert_array_equal(dx, np.where(x >= 0, 1, slope))  # 1 at the kink


def test_prelu_starts_as_it_is_told(key: jax.Array):
    each, one = fnn.Prelu(slope=0).init(key, (2, 3)), fnn.Prelu(slope=0.5, shared=True).init(key, (2, 3))
    assert (each["slope"].shape, each["slope"].dtype, each["slope"].weak_type) == ((2, 3), jnp.float32, False)
    assert (one["slope"].shape, float(one["slope"])) == ((), 0.5)
    with pytest.raises(LayerError, match=r"an example of shape \(\) has none: use shared=True"):
        fnn.Prelu().init(key, ())
    with pytest.raises(
        LayerError, match=r"Prelu\(\) needs parameters \{'slope': \(3,\)\}, got \{'slope': float32\[2\]\}"
    ):
        fnn.Prelu().apply({"slope": jnp.ones(2)}, jnp.zeros((4, 3)))
    with pytest.raises(LayerError, match=r"Prelu\(shared=True\) needs parameters \{'slope': \(\)\}"):
        fnn.Prelu(shared=True).apply({"slope": jnp.ones(3)}, jnp.zeros((4, 3)))


def test_softmaxes_by_hand(x64: None, rng: np.random.Generator):
    a = rng.normal(size=(3, 4, 5))
    expected = np.exp(a) / np.exp(a).sum(-1, keepdims=True)
    p, log_p = jax.jit(lambda a: (fnn.Softmax().apply((), a), fnn.LogSoftmax().apply((), a)))(a)
    np.testing.assert_allclose(p, expected, rtol=EXACT)
    np.testing.assert_allclose(log_p, np.log(expected), rtol=EXACT)


def test_softmaxes_at_the_ends_and_with_masks():
    big, inf = float(np.finfo(np.float32).max), math.inf
    a = jnp.array([[big, -big, -big], [1.0, 1.0, -inf], [-inf, 0.0, -inf]])
    weights = jnp.array([[0.3, 2.0, -1.0]])

    @jax.jit
    def run(a: jax.Array) -> Any:
        p, pull = jax.vjp(lambda a: fnn.Softmax().apply((), a), a)
        return p, pull(weights * jnp.ones_like(a))[0], fnn.LogSoftmax().apply((), a)

    p, dp, log_p = run(a)
    np.testing.assert_array_equal(p, [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0]])
    np.testing.assert_allclose(dp, [[0, 0, 0], [-0.425, 0.425, 0], [0, 0, 0]], rtol=1e-6)  # float32
    np.testing.assert_allclose(log_p, [[0, -inf, -inf], [-math.log(2)] * 2 + [-inf], [-inf, 0, -inf]], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fnn.LeakyRelu(1.0), ["LeakyRelu's beta", "below 1", "1.0"]),
        (lambda: fnn.LeakyRelu(math.nan), ["LeakyRelu's beta", "nan"]),
        (lambda: fnn.Elu(0.0), ["Elu's alpha is positive", "0.0"]),
        (lambda: fnn.Elu(math.nan), ["Elu's alpha", "nan"]),
    ],
)
def test_wrong_options(make: Callable[[], Any], words: list[str]):
    with pytest.raises(LayerError) as caught:
        make()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_an_activation_of_ones_own(key: jax.Array):
    class Cube(fnn.Activation):
        def function(self, a: jax.Array) -> jax.Array:
            return a**3

    net = fnn.Serial(fnn.Dense(2), Cube())
    assert net.out_shape((3,)) == (2,)
    assert net.init(key, (3,))[1] == ()
    np.testing.assert_array_equal(Cube().apply((), jnp.array([2.0])), [8])
    with pytest.raises(LayerError, match=r"has no parameters, so its entry is \(\), got \{'w': 3\}"):
        Cube().apply({"w": 3}, jnp.ones(2))
