"""The slopes of the penalties, on the leaves that they are for and on no other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnn import penalties
from funcnn.backprop import RULES, Context, Rules
from funcnn.penalties import Penalty, l1, l2
from tests.backprop.agree import TOLERANCES, assert_agree

PENALTIES = {
    "l1": l1(0.3),
    "l2": l2(0.2),
    "l1-bias": l1(0.3, leaves=("b",)),
    "l2-all": l2(0.2, leaves=None),
    "none": l2(0.0),
    "elastic": l1(0.3) + l2(0.2),
    "sum-of-sums": (l1(0.3) + l2(0.2, leaves=("b",))) + (l2(0.1, leaves=None) + l1(0.5)),
}
each_penalty = pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES.keys())


def both(penalty: Penalty, rules: Rules = RULES):
    """(params, dv) -> (value, gradient) by the rule, and by autodiff."""

    def run(params, dv):
        rule = rules[type(penalty)]
        value, residuals = rule.fwd(penalty, (), params, Context(rules))
        nothing, grads = rule.bwd(penalty, (), residuals, dv, Context(rules))
        assert nothing == ()
        value_auto, pullback = jax.vjp(penalty, params)
        return (value, grads), (value_auto, pullback(dv)[0])

    return run


def draw(rng: np.random.Generator, dtype: str):
    shapes = ({"w": (3, 2), "b": (2,)}, (), ({"w": (2, 2)}, {"slope": ()}))
    is_shape = lambda s: isinstance(s, tuple) and all(isinstance(d, int) for d in s)  # noqa: E731
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s), dtype), shapes[::2], is_leaf=is_shape)
    return params, jnp.asarray(rng.normal(), dtype)


@each_penalty
def test_a_penalty_gives_what_autodiff_gives(penalty: Penalty, rng: np.random.Generator, dtype: str):
    assert_agree(*jax.jit(both(penalty))(*draw(rng, dtype)), within=TOLERANCES[dtype])


@each_penalty
def test_a_penalty_keeps_bfloat16(penalty: Penalty, rng: np.random.Generator):
    by_hand, by_autodiff = jax.eval_shape(both(penalty), *draw(rng, "bfloat16"))
    assert by_hand == by_autodiff


def test_l1_has_slope_zero_at_zero(rng: np.random.Generator, dtype: str):
    w = jnp.asarray(rng.normal(size=(3, 2)), dtype).at[1].set(0.0).at[2, 0].set(-0.0)
    by_hand, by_autodiff = both(l1(0.3))({"w": w}, jnp.asarray(1.7, dtype))
    assert_agree(by_hand, by_autodiff, TOLERANCES[dtype])
    np.testing.assert_array_equal(by_hand[1]["w"] == 0, w == 0)


def test_leaves_of_other_names_get_zero(rng: np.random.Generator):
    (_, grads), _ = both(l2(0.2))(*draw(rng, "float32"))
    chosen = {jax.tree_util.keystr(path): (g != 0).any() for path, g in jax.tree_util.tree_leaves_with_path(grads)}
    assert {path for path, moved in chosen.items() if moved} == {path for path in chosen if path.endswith("['w']")}


class Cubic(Penalty):
    """sum w^3: of a user who wrote no rule for it."""

    def __call__(self, params):
        return jnp.sum(params["w"] ** 3)


def test_autodiff_stands_in_for_a_term_without_a_rule(rng: np.random.Generator):
    penalty = Cubic() + l2(0.5)
    assert isinstance(penalty, penalties.Sum)
    params = {"w": jnp.asarray(rng.normal(size=3), "float32")}
    run = both(penalty, Rules({**RULES, "": RULES[penalties.L1]}, missing="autodiff"))  # a path is no penalty's
    by_hand, by_autodiff = run(params, jnp.float32(2.0))
    assert_agree(by_hand, by_autodiff, TOLERANCES["float32"])
    assert_agree(by_hand[1]["w"], 2 * (3 * params["w"] ** 2 + 0.5 * params["w"]), TOLERANCES["float32"])
