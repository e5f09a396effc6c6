"""Penalties: values and gradients by hand, which parameters they are on, sums, dtypes, and errors."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn import penalties
from funcnn.layer import LayerError

EXACT = 1e-12  # float64, sums of a few numbers of order 1


def draw_params(rng: np.random.Generator) -> Any:
    w = rng.normal(size=(2, 3))
    w[0, 0] = 0  # the kink of |w|
    return ({"w": w, "b": rng.normal(size=3)}, (), {"body": {"w": rng.normal(size=(3, 1))}, "c": rng.normal(size=4)})


def test_values_and_gradients_by_hand(x64: None, rng: np.random.Generator):
    params = draw_params(rng)
    (first, _, last) = params
    ws, everything = [first["w"], last["body"]["w"]], jax.tree.leaves(params)
    cases = {
        "l2": (penalties.l2(0.3), sum(0.15 * (w**2).sum() for w in ws), lambda w: 0.3 * w, ("w",)),
        "l1": (penalties.l1(0.3), sum(0.3 * np.abs(w).sum() for w in ws), lambda w: 0.3 * np.sign(w), ("w",)),
        "names": (
            penalties.l2(2.0, leaves=("b", "c")), (first["b"] ** 2).sum() + (last["c"] ** 2).sum(), lambda w: 2 * w,
            ("b", "c"),
        ),
        "all": (
            penalties.l1(1.0, leaves=None), sum(np.abs(leaf).sum() for leaf in everything), np.sign, ("w", "b", "c")
        ),
        "zero": (penalties.l2(0.0), 0.0, np.zeros_like, ("w",)),
        "sum": (
            penalties.l1(0.3) + penalties.l2(0.3),
            sum(0.3 * np.abs(w).sum() + 0.15 * (w**2).sum() for w in ws), lambda w: 0.3 * (np.sign(w) + w), ("w",),
        ),
    }  # fmt: skip
    got = jax.jit(lambda p: {name: jax.value_and_grad(case[0])(p) for name, case in cases.items()})(params)
    for name, (_, value, slope, names) in cases.items():
        np.testing.assert_allclose(got[name][0], value, rtol=EXACT, err_msg=name)
        expected = jax.tree_util.tree_map_with_path(
            lambda path, leaf, s=slope, n=names: s(leaf) if path[-1].key in n else np.zeros_like(leaf), params
        )
        assert jax.tree.structure(got[name][1]) == jax.tree.structure(expected)
        jax.tree.map(
            lambda a, b, n=name: np.testing.assert_allclose(a, b, rtol=EXACT, atol=EXACT, err_msg=n),
            got[name][1],
            expected,
        )


@pytest.mark.parametrize("dtype_name", ["bfloat16", "float16", "float32", "float64"])
def test_the_dtype_of_the_parameters_is_kept(dtype_name: str):
    with jax.enable_x64(True):
        params = {"w": jax.ShapeDtypeStruct((2, 3), dtype_name), "b": jax.ShapeDtypeStruct((3,), dtype_name)}
        for penalty in (penalties.l1(0.1), penalties.l2(0.1), penalties.l1(0.1) + penalties.l2(0.1, leaves=None)):
            value = jax.eval_shape(penalty, params)
            assert (value.shape, value.dtype.name) == ((), dtype_name)
            assert {g.dtype.name for g in jax.tree.leaves(jax.eval_shape(jax.grad(penalty), params))} == {dtype_name}


def test_sums_are_flat_values():
    one, two, three = penalties.l1(0.1), penalties.l2(0.2), penalties.l2(0.3, leaves=("b",))
    assert (one + two) + three == one + (two + three)
    assert repr(one + two + three) == "l1(0.1) + l2(0.2) + l2(0.3, leaves=('b',))"
    assert hash(one + two) == hash(penalties.l1(0.1) + penalties.l2(0.2))
    assert one + two != two + one
    with pytest.raises(TypeError, match="unsupported operand"):
        one + 0.1  # type: ignore[operator]


def test_one_name_or_several():
    assert penalties.l2(0.1, leaves="b") == penalties.l2(0.1, leaves=("b",)) == penalties.l2(0.1, leaves=["b"])  # type: ignore[arg-type]
    assert hash(penalties.l2(0.1, leaves=["b"])) == hash(penalties.l2(0.1, leaves="b"))  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("penalty", [penalties.l1, penalties.l2])
def test_wrong_scales(penalty: Any, scale: float):
    with pytest.raises(ValueError, match=f"a penalty's scale is not negative, and finite, got {scale}"):
        penalty(scale)


def test_a_penalty_on_nothing_is_a_mistake(key: jax.Array):
    params = fnn.Rbf(2, epsilon=1.0).init(key, (3,))
    for penalty in (penalties.l2(0.1), penalties.l1(0.1), penalties.l1(0.1, leaves=None) + penalties.l2(0.1)):
        with pytest.raises(LayerError) as caught:
            penalty(params)
        message = str(caught.value)
        assert "is for the parameters called ('w',), and there are none among {'c': float32[2, 3]}" in message
        assert "name yours by leaves=(...), or leaves=None for all" in message
    with pytest.raises(LayerError, match="there are none among"):
        penalties.l2(0.1, leaves=None)(((), ()))


def test_a_penalty_of_ones_own(key: jax.Array):
    class Largest(penalties.Penalty):
        def __call__(self, params: Any) -> jax.Array:
            return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(params)]))

    both = Largest() + penalties.l2(2.0)
    np.testing.assert_array_equal(both({"w": jnp.array([1.0, -3.0])}), 3 + 10)
