"""The closed forms of the losses' deltas, for every loss of the table; far out, masked, and outside the classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnn import losses
from funcnn.backprop import RULES, Context
from tests.backprop.agree import STEP, TOLERANCES, assert_agree
from tests.problems import LOSSES, LossProblem, draw_targets, each_loss

CTX = Context(RULES)


def both(loss: losses.Loss):
    """(outputs, targets, dv) -> (value, delta) by the rule, and by autodiff."""

    def run(outputs, targets, dv):
        rule = RULES[type(loss)]
        value, residuals = rule.fwd(loss, targets, outputs, CTX)
        nothing, delta = rule.bwd(loss, targets, residuals, dv, CTX)
        assert nothing is None  # the targets get no gradient
        value_auto, pullback = jax.vjp(lambda f: loss(f, targets), outputs)
        return (value, delta), (value_auto, pullback(dv)[0])

    return run


def draw(problem: LossProblem, key: jax.Array, rng: np.random.Generator, n: int = 6):
    outputs = jnp.asarray(rng.normal(size=(n, *problem.out_shape)))
    return outputs, draw_targets(problem.targets, key, n, problem.out_shape), jnp.asarray(rng.normal(size=n))


def test_no_loss_is_left_out_of_the_table():
    types = {kind for kind in RULES if issubclass(kind, losses.Loss)}
    assert {type(problem.loss) for problem in LOSSES.values()} == types


@each_loss
def test_delta_is_what_autodiff_gives(problem: LossProblem, key: jax.Array, rng: np.random.Generator, dtype: str):
    by_hand, by_autodiff = jax.jit(both(problem.loss))(*draw(problem, key, rng))
    assert_agree(by_hand, by_autodiff, TOLERANCES[dtype])


@pytest.mark.usefixtures("x64")
@each_loss
def test_delta_is_the_slope_of_the_value(problem: LossProblem, key: jax.Array, rng: np.random.Generator):
    f, y, dv = draw(problem, key, rng)
    t = jnp.asarray(rng.normal(size=f.shape))

    @jax.jit
    def measure(f, y, dv):
        (_, delta), _ = both(problem.loss)(f, y, dv)
        difference = (problem.loss(f + STEP * t, y) - problem.loss(f - STEP * t, y)) / (2 * STEP)
        return jnp.sum(delta * t), jnp.sum(difference * dv), jnp.linalg.norm(delta) * jnp.linalg.norm(t)

    by_rule, by_difference, size = measure(f, y, dv)
    assert np.isfinite([by_rule, by_difference]).all()
    assert abs(by_rule - by_difference) <= TOLERANCES["difference"] * size


@each_loss
def test_delta_keeps_bfloat16(problem: LossProblem, key: jax.Array, rng: np.random.Generator):
    f, y, dv = draw(problem, key, rng)
    by_hand, by_autodiff = jax.eval_shape(both(problem.loss), f.astype("bfloat16"), y, dv.astype("bfloat16"))
    assert by_hand == by_autodiff


@each_loss
def test_far_out_delta_is_finite_and_autodiffs(problem: LossProblem, key: jax.Array, rng: np.random.Generator):
    """Outputs of every size up to the largest float32, of both signs; compared where autodiff does not overflow."""
    sizes = [0.0, 1e-30, 1.0, 30.0, 90.0, 1e3, 1e10, 1e19, 1e30, float(jnp.finfo("float32").max)]
    f, y, _ = draw(problem, key, rng, n=40)
    f = jnp.asarray(rng.choice(sizes, f.shape) * rng.choice([-1, 1], f.shape), "float32")
    (value, delta), (value_auto, delta_auto) = jax.jit(both(problem.loss))(f, y, jnp.ones(40))
    np.testing.assert_array_equal(value, value_auto)
    assert not np.isnan(delta).any()
    slope_is_bounded = problem.loss not in (LOSSES["gaussian_nll-learned"].loss, *squared_losses())
    assert not slope_is_bounded or np.isfinite(delta).all()
    known = np.isfinite(delta_auto) & np.isfinite(delta)
    assert known.mean() > 0.3
    np.testing.assert_allclose(delta[known], delta_auto[known], rtol=1e-5, atol=1e-6)


def squared_losses() -> list[losses.Loss]:
    """Those whose delta grows with the outputs, so that it may overflow."""
    return [
        p.loss for p in LOSSES.values() if isinstance(p.loss, losses.SquaredError | losses.Mse | losses.GaussianNll)
    ]


@pytest.mark.parametrize("loss", [losses.mae, losses.laplace_nll(scale=0.7)], ids=repr)
def test_where_output_and_target_are_equal_the_slope_is_zero(loss: losses.Loss, rng: np.random.Generator, dtype: str):
    f = jnp.asarray(rng.normal(size=(4, 3)), dtype)
    y = f.at[:, 1].add(1.0)
    (value, delta), by_autodiff = both(loss)(f, y, jnp.asarray(rng.normal(size=4), dtype))
    assert_agree((value, delta), by_autodiff, TOLERANCES[dtype])
    np.testing.assert_array_equal(delta == 0, np.asarray([[True, False, True]] * 4))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_masked_classes_get_no_gradient(smoothing: float, rng: np.random.Generator, dtype: str):
    loss = losses.softmax_cross_entropy(label_smoothing=smoothing)
    z = jnp.asarray(rng.normal(size=(5, 4)), dtype).at[:, 2].set(-jnp.inf)
    dv = jnp.asarray(rng.normal(size=5), dtype)
    (value, delta), by_autodiff = jax.jit(both(loss))(z, jnp.array([0, 1, 3, 3, 1]), dv)
    assert_agree((value, delta), by_autodiff, TOLERANCES[dtype])
    assert (delta[:, 2] == 0).all()


def test_a_masked_label_costs_infinitely_much_and_still_has_a_slope():
    z = jnp.array([[0.0, -jnp.inf, 1.0]])
    (value, delta), _ = jax.jit(both(losses.softmax_cross_entropy))(z, jnp.array([1]), jnp.ones(1))
    assert value[0] == jnp.inf
    assert np.isfinite(delta).all()


@pytest.mark.parametrize("loss", [losses.softmax_cross_entropy, losses.nll], ids=repr)
def test_targets_need_not_sum_to_one(loss: losses.Loss, rng: np.random.Generator, dtype: str):
    z, dv = jnp.asarray(rng.normal(size=(5, 4)), dtype), jnp.asarray(rng.normal(size=5), dtype)
    y = jnp.asarray(rng.uniform(0, 3, size=(5, 4)), dtype).at[0].set(0.0)
    assert_agree(*jax.jit(both(loss))(z, y, dv), within=TOLERANCES[dtype])


@pytest.mark.parametrize("loss", [losses.softmax_cross_entropy, losses.nll], ids=repr)
@pytest.mark.parametrize("label_dtype", ["int32", "uint8", "int8"])
def test_under_jit_a_label_that_is_no_class_gives_nan_for_its_example_alone(
    loss: losses.Loss, label_dtype: str, rng: np.random.Generator
):
    labels = jnp.array([0, 3, 4, 2, 100, 1], label_dtype)
    z = jnp.asarray(rng.normal(size=(6, 4)), "float32")
    (value, delta), (_, by_autodiff) = jax.jit(both(loss))(z, labels, jnp.asarray(rng.normal(size=6), "float32"))
    wrong = np.asarray(labels) >= 4
    np.testing.assert_array_equal(np.isnan(value), wrong)
    np.testing.assert_array_equal(np.isnan(delta), np.broadcast_to(wrong[:, None], (6, 4)))
    assert_agree(delta[~wrong], by_autodiff[~wrong], TOLERANCES["float32"])
