"""The first layer with a number that is not finite is named, and the direction."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import funcnn as fnn
from funcnn.backprop import find_nonfinite

OBJECTIVE = fnn.Objective(fnn.Serial(fnn.Dense(3), fnn.Softplus(), fnn.Dense(2)), fnn.losses.softmax_cross_entropy)


def problem() -> tuple[Any, Any]:
    params = OBJECTIVE.net.init(jax.random.key(0), (2,))
    return params, (jax.random.normal(jax.random.key(1), (4, 2)), jnp.array([0, 1, 1, 0]))


def test_nothing_is_found_where_all_is_finite():
    assert find_nonfinite(OBJECTIVE, *problem()) is None


def test_forward():
    params, (x, y) = problem()
    params = ({"w": jnp.full((2, 3), 3e38), "b": params[0]["b"]}, *params[1:])
    found = find_nonfinite(OBJECTIVE, params, (jnp.zeros_like(x).at[2].set(10), y))
    assert found is not None and (found.direction, found.path) == ("forward", "0")
    assert "the output of layer '0', Dense(3): 3 of 12 numbers, the first inf at [2, 0]" in str(found)


def test_backward_from_the_loss_back():
    params, batch = problem()
    dense = fnn.backprop.RULES[fnn.Dense]

    def overflowing(layer: Any, p: Any, x: Any, dy: Any, ctx: Any) -> Any:
        dparams, dx = dense.bwd(layer, p, x, dy, ctx)
        return dparams, dx * jnp.inf

    rules = fnn.backprop.RULES | {"2": fnn.backprop.Rule(dense.fwd, overflowing)}
    found = find_nonfinite(OBJECTIVE, params, batch, rules=rules)
    assert found is not None and (found.direction, found.path) == (
        "backward",
        "2",
    )  # and not those before it, which see it later
    assert "the gradient for the input of layer '2', Dense(2): 12 of 12 numbers" in str(found)


def test_the_penalty_and_the_mean():
    params, batch = problem()
    params = ({"w": jnp.full((2, 3), 3e20), "b": params[0]["b"]}, *params[1:])
    found = find_nonfinite(OBJECTIVE.replace(penalty=fnn.penalties.l2(1.0)), params, (0 * batch[0], batch[1], None))
    assert found is not None and (found.direction, found.path) == ("forward", None)
    assert "the penalty, l2(1.0): 1 of 1 numbers, the first inf" in str(found)
    linear = fnn.Objective(fnn.Dense(1, w_init="zeros"), fnn.losses.mae)
    found = find_nonfinite(
        linear, linear.net.init(jax.random.key(0), (1,)), (jnp.ones((4, 1)), jnp.full((4, 1), 3e38), jnp.full(4, 9.0))
    )
    assert found is None or "the mean of the losses" in str(found)


def test_it_looks_at_values():
    params, batch = problem()
    with pytest.raises(TypeError, match="find_nonfinite looks at values, which a function under jit or grad"):
        jax.jit(lambda p: str(find_nonfinite(OBJECTIVE, p, batch)))(params)


@pytest.mark.parametrize(
    ("change", "direction", "message"),
    [
        (lambda p, b: (p, (b[0].at[1, 1].set(jnp.nan), b[1])), "before", r"x of the batch: 1 of 8 .* nan at \[1, 1\]"),
        (lambda p, b: ((p[0] | {"b": jnp.full(3, jnp.inf)}, *p[1:]), b), "before", r"params\[0\]\['b'\]: 3 of 3"),
        (lambda p, b: (p, (*b, jnp.zeros(4))), "before", "the weights of all examples in the batch are 0"),
        (lambda p, b: (p, (b[0], jnp.array([0, 1, 7, 0]))), "forward", r"the loss: .*labels in 0\.\.1"),
    ],
)  # fmt: skip
def test_what_is_no_layers_fault(change: Any, direction: str, message: str):
    found = find_nonfinite(OBJECTIVE, *change(*problem()))
    assert found is not None and (found.direction, found.path) == (direction, None)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(str(found))
