"""The rule of graphs: written-out chain rules on small numbers, at a fan-out and for shared parameters."""

import jax
import jax.numpy as jnp
import numpy as np

import funcnn as fnn
from funcnn import backprop
from funcnn.backprop import RULES, Rule
from tests.backprop.agree import TOLERANCES, assert_agree


def test_fan_out_sums_the_gradients_of_every_path(rng: np.random.Generator):
    """y = 2 h + h + 3 x + x with h = 5 x, so that dx = (5 (2 + 1) + 3 + 1) dy."""

    def scale(by):
        return fnn.lift(lambda key, in_shape: (), lambda params, x: by * x)

    times = {by: scale(by) for by in (2.0, 3.0, 5.0)}
    rules = RULES | {
        layer: Rule(lambda layer, p, x, ctx, by=by: (by * x, ()), lambda layer, p, r, dy, ctx, by=by: ((), by * dy))
        for by, layer in times.items()
    }
    net = fnn.Graph(
        {
            "h": fnn.Node(times[5.0], "input"),
            "two": fnn.Node(times[2.0], "h"),
            "three": fnn.Node(times[3.0], "input"),
            "y": fnn.Node(fnn.Identity(), ("two", "h", "three", "input")),
        },
        output="y",
    )
    x, dy = (jnp.asarray(rng.normal(size=(4, 3)), "float32") for _ in range(2))
    y, pullback = backprop.vjp(net, net.init(jax.random.key(0), (3,)), x, rules=rules)
    np.testing.assert_allclose(y, 19 * x, rtol=1e-6)
    np.testing.assert_allclose(pullback(dy)[1], 19 * dy, rtol=1e-6)


def test_shared_parameters_get_the_sum_of_their_uses(rng: np.random.Generator):
    """y = (x w) w for numbers: dw = 2 x w dy."""
    layer = fnn.Dense(1, bias=False)
    net = fnn.Graph({"a": fnn.Node(layer, "input"), "y": fnn.Node(layer, "a", params_of="a")}, output="y")
    x, w, dy = (jnp.asarray(rng.normal(size=(1, 1)), "float32") for _ in range(3))
    _, pullback = backprop.vjp(net, {"a": {"w": w}, "y": ()}, x)
    assert_agree(pullback(dy), ({"a": {"w": 2 * x * w * dy}, "y": ()}, w * w * dy), TOLERANCES["float32"])
