"""Training by both gradients: step for step the same parameters, in one compiled program."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnn import backprop
from tests.backprop.agree import assert_agree
from tests.problems import NETWORKS

STEPS = 100
# The largest difference within a leaf of parameters up to that step, divided by the leaf's largest number. The first
# step differs by roundings (1e-16 or 6e-8); each further one passes the differences on and adds its own, and Adam,
# which divides by the gradient's size, enlarges those of small gradients. Ten times what was seen.
TOLERANCES = {("float64", 10): 1e-13, ("float64", 100): 1e-11, ("float32", 10): 1e-5, ("float32", 100): 1e-3}
OPTIMIZERS = {"adam": optax.adam(1e-2), "momentum": optax.sgd(0.05, momentum=0.9)}


def update(optimizer, params, opt_state, grads):
    """The optimizer's step; Optax mixes dtypes, and our tests forbid that to our own code only."""
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state


def train(gradient, optimizer, params, batch, key, steps=STEPS):
    """All losses and all parameters on the way, one row a step."""

    def step(state, key):
        params, opt_state = state
        value, grads = gradient(params, batch, key=key, train=True)
        params, opt_state = update(optimizer, params, opt_state, grads)
        return (params, opt_state), (value, params)

    return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, steps))[1]


def assert_together(name: str, optimizer: optax.GradientTransformation, dtype: str, key: jax.Array) -> None:
    problem = NETWORKS[name]
    params, batch = problem.draw(key)
    start = problem.objective(params, batch)

    @jax.jit
    def both(params, batch):
        gradients = backprop.value_and_grad(problem.objective), jax.value_and_grad(problem.objective)
        return [train(gradient, optimizer, params, batch, key) for gradient in gradients]

    by_hand, by_autodiff = both(params, batch)
    assert by_hand[0][-1] < 0.9 * start  # it learned, so that there was something to compare
    for steps in (10, 100):
        until = [jax.tree.map(lambda a, n=steps: a[:n], run) for run in (by_hand, by_autodiff)]
        assert_agree(*until, within=TOLERANCES[dtype, steps])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("silu-mlp-smoothed", "adam"),
        ("noisy", "adam"),
        ("maxout-mlp", "adam"),
        ("graph-shared", "momentum"),
        ("maxout-mlp", "momentum"),
    ],
)
def test_two_trainings_stay_together_in_float64(name: str, optimizer: str, key: jax.Array):
    assert_together(name, OPTIMIZERS[optimizer], "float64", key)


@pytest.mark.parametrize(("name", "optimizer"), [("silu-mlp-smoothed", "adam"), ("graph-shared", "momentum")])
def test_two_smooth_trainings_stay_together_in_float32(name: str, optimizer: str, key: jax.Array):
    """At a kink one rounding may send the two on different ways: float64 compares those."""
    assert_together(name, OPTIMIZERS[optimizer], "float32", key)


def test_a_step_is_traced_once(key: jax.Array):
    """The gradients have the types of the parameters, or the second step would be another program."""
    problem = NETWORKS["noisy"]
    params, batch = problem.draw(key)
    optimizer = optax.adam(1e-2)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, opt_state, key):
        value, grads = backprop.value_and_grad(problem.objective)(params, batch, key=key, train=True)
        return *update(optimizer, params, opt_state, grads), value

    opt_state, values = optimizer.init(params), []
    for i in range(4):
        params, opt_state, value = step(params, opt_state, jax.random.fold_in(key, i))
        values.append(float(value))
    assert np.isfinite(values).all()
    assert len(set(values)) == 4  # another key, another value


def test_an_ensemble_trains_in_one_scan_under_vmap(key: jax.Array):
    """vmap over scan over the rules: each member as if it were alone."""
    problem = NETWORKS["maxout-mlp"]
    params, batch = problem.draw(key)
    ensemble = jax.tree.map(lambda a: jnp.stack([a, -a]), params)
    gradient = backprop.value_and_grad(problem.objective)

    def run(params):
        return train(gradient, OPTIMIZERS["momentum"], params, batch, key, steps=5)

    together = jax.jit(jax.vmap(run))(ensemble)
    alone = jax.jit(run)
    members = [alone(jax.tree.map(lambda a, i=i: a[i], ensemble)) for i in range(2)]
    assert_agree(together, jax.tree.map(lambda *a: jnp.stack(a), *members), TOLERANCES["float32", 10])
