"""The laws of a backward rule, for every layer of the table: autodiff, the adjoint, finite differences, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn import backprop
from funcnn.backprop import RULES, Context
from funcnn.losses import Loss
from funcnn.penalties import Penalty
from tests.backprop.agree import STEP, TOLERANCES, assert_agree, draw_layer, draw_like, inner, layer_gradients, moved
from tests.problems import LAYERS, LayerProblem, each_batched_layer, each_layer


def test_no_rule_is_left_out_of_the_table():
    tried = {type(problem.layer) for problem in LAYERS.values()}
    types = {kind for kind in RULES if not issubclass(kind, Loss | Penalty)}
    assert types - tried == {fnn.Cast}  # it rounds to another dtype: see test_wrappers.py


@each_layer
def test_a_rule_gives_what_autodiff_gives(problem: LayerProblem, key: jax.Array, rng: np.random.Generator, dtype: str):
    """In float32 without a key, in float64 in training."""
    in_training = (key, True) if dtype == "float64" else (None, False)
    by_hand, by_autodiff = jax.jit(layer_gradients(problem.layer, *in_training))(*draw_layer(rng, *problem, 6))
    assert_agree(by_hand, by_autodiff, TOLERANCES[dtype])


@pytest.mark.usefixtures("x64")
@each_layer
def test_a_rule_obeys_the_adjoint_law_and_finite_differences(
    problem: LayerProblem, key: jax.Array, rng: np.random.Generator
):
    """<J t, dy> = <t, J^T dy>, with J t once from forward mode and once from a central difference."""
    *primals, dy = draw_layer(rng, *problem, 6)

    @jax.jit
    def measure(primals, tangents, dy):
        def run(params, x):
            return problem.layer.apply(params, x, key=key, train=True)

        _, jt = jax.jvp(run, primals, tangents)
        ahead, behind = (run(*moved(primals, step, tangents)) for step in (STEP, -STEP))
        _, pullback = backprop.vjp(problem.layer, *primals, key=key, train=True)
        size = jnp.linalg.norm(jt) * jnp.linalg.norm(dy)
        return inner(tangents, pullback(dy)), inner(jt, dy), inner((ahead - behind) / (2 * STEP), dy), size

    by_rule, by_jvp, by_difference, size = measure(tuple(primals), draw_like(rng, tuple(primals)), dy)
    assert np.isfinite([by_rule, by_jvp, by_difference]).all()
    assert abs(by_rule - by_jvp) <= TOLERANCES["float64"] * size
    assert abs(by_rule - by_difference) <= TOLERANCES["difference"] * size


@pytest.mark.usefixtures("x64")
@each_batched_layer
def test_a_rule_takes_any_number_of_batch_axes(problem: LayerProblem, key: jax.Array, rng: np.random.Generator):
    both = layer_gradients(problem.layer, key, True)
    draws = draw_layer(rng, *problem), draw_layer(rng, *problem, 2, 3)
    for by_hand, by_autodiff in jax.jit(lambda draws: [both(*draw) for draw in draws])(draws):
        assert_agree(by_hand, by_autodiff, TOLERANCES["float64"])


@each_layer
def test_a_rule_keeps_bfloat16(problem: LayerProblem, key: jax.Array, rng: np.random.Generator):
    """Under strict promotion: nothing inside a rule may be of another dtype without a word."""
    args = jax.tree.map(lambda a: a.astype("bfloat16"), draw_layer(rng, *problem, 6))
    by_hand, by_autodiff = jax.eval_shape(layer_gradients(problem.layer, key, True), *args)
    assert by_hand == by_autodiff
    assert {leaf.dtype for leaf in jax.tree.leaves(by_hand)} == {jnp.dtype("bfloat16")}


@each_layer
def test_the_parameters_gradient_is_the_same_whether_the_inputs_is_wanted_or_not(
    problem: LayerProblem, key: jax.Array, rng: np.random.Generator
):
    rule = RULES[type(problem.layer)]

    @jax.jit
    def both(params, x, dy):
        ctx, less = (Context(RULES, key=key, train=True, need_dx=need) for need in (True, False))
        _, residuals = rule.fwd(problem.layer, params, x, ctx)
        return [rule.bwd(problem.layer, params, residuals, dy, c)[0] for c in (ctx, less)]

    assert_agree(*both(*draw_layer(rng, *problem, 6)), within=TOLERANCES["float32"])
