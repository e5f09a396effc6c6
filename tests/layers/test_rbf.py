"""Radial basis functions: values by hand, learned and fixed centres, and errors."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn.layer import LayerError

EXACT = 1e-12  # float64, sums of a few numbers of order 1


def test_values_and_gradients_by_hand(x64: None, rng: np.random.Generator):
    x, c, dy = rng.normal(size=(6, 3)), rng.normal(size=(4, 3)), rng.normal(size=(6, 4))
    difference = x[:, None] - c[None]
    expected = np.exp(-(0.6**2) * (difference**2).sum(-1))

    @jax.jit
    def run(x: jax.Array, c: jax.Array) -> Any:
        y, pull = jax.vjp(fnn.Rbf(4, epsilon=0.6).apply, {"c": c}, x)
        return y, pull(jnp.asarray(dy)), fnn.Rbf(4, epsilon=0.6, centres=np.array(rows)).apply((), x)

    rows = c.tolist()
    y, (dparams, dx), fixed = run(x, c)
    np.testing.assert_allclose(y, expected, rtol=EXACT)
    np.testing.assert_allclose(fixed, expected, rtol=EXACT)
    dx_terms = -2 * 0.6**2 * (dy * expected)[:, :, None] * difference
    np.testing.assert_allclose(dx, dx_terms.sum(1), rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(dparams["c"], -dx_terms.sum(0), rtol=EXACT, atol=EXACT)


def test_near_a_centre_far_from_the_origin_no_digit_is_lost():
    """|x - c| = 1 at |x| = 3e5: |x|^2 - 2 x c + |c|^2 in float32 would be anything."""
    layer = fnn.Rbf(1, epsilon=1.0)
    got = layer.apply({"c": jnp.array([[300_000.0, 0.0]])}, jnp.array([[300_001.0, 0.0]]))
    np.testing.assert_allclose(got, math.exp(-1), rtol=1e-6)  # float32


def test_learned_centres_start_normal_and_fixed_ones_are_no_parameters(key: jax.Array):
    params = jax.jit(lambda k: fnn.Rbf(400, epsilon=1.0).init(k, (250,)))(key)
    assert params["c"].shape == (400, 250)
    assert abs(np.std(params["c"]) - 1) < 0.01  # 100,000 draws
    fixed = fnn.Rbf(2, epsilon=1, centres=[[0, 1], [2, 3]])
    assert fixed.init(key, (2,)) == ()
    assert fixed.centres == ((0.0, 1.0), (2.0, 3.0))
    assert fixed == fnn.Rbf(2, epsilon=1, centres=np.array([[0.0, 1.0], [2.0, 3.0]]))
    assert hash(fixed) == hash(fnn.Rbf(2, epsilon=1, centres=((0, 1), (2, 3))))
    assert repr(fixed) == "Rbf(2, 1, centres=((0.0, 1.0), (2.0, 3.0)))"
    assert fixed.out_shape((5, 2)) == (5, 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"features": 0, "epsilon": 1.0}, ["Rbf's features is a positive integer"]),
        ({"features": 2, "epsilon": 0.0}, ["Rbf's epsilon is positive", "0.0"]),
        ({"features": 2, "epsilon": math.nan}, ["Rbf's epsilon is positive", "nan"]),
        ({"features": 2, "epsilon": 1.0, "centres": [[1.0]]}, ["centres have shape (2, D)", "(1, 1)"]),
        ({"features": 2, "epsilon": 1.0, "centres": [1.0, 2.0]}, ["centres have shape (2, D)", "(2,)"]),
    ],
)
def test_wrong_options(options: dict[str, Any], words: list[str]):
    with pytest.raises(LayerError) as caught:
        fnn.Rbf(**options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_what_does_not_fit(key: jax.Array):
    fixed, learned = fnn.Rbf(2, epsilon=1.0, centres=((0.0, 1.0), (2.0, 3.0))), fnn.Rbf(2, epsilon=1.0)
    for call in (lambda: fixed.init(key, (3,)), lambda: fixed.apply((), jnp.zeros((4, 3)))):
        with pytest.raises(LayerError, match="Rbf's centres have 2 coordinates and x has a last axis of 3"):
            call()
    with pytest.raises(LayerError, match=r"has no parameters, so its entry is \(\)"):
        fixed.apply(learned.init(key, (2,)), jnp.zeros((4, 2)))
    with pytest.raises(LayerError, match=r"inputs of shape \(\.\.\., 2\) and got x of shape \(4, 3\)"):
        learned.apply(learned.init(key, (2,)), jnp.zeros((4, 3)))
    with pytest.raises(LayerError, match=r"needs parameters \{'c': \(2, any\)\}"):
        learned.apply((), jnp.zeros((4, 3)))
