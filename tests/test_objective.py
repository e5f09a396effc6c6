"""Objectives: the weighted mean and the penalty, batches that are none, weight noise, and `validate`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn import losses, penalties
from funcnn.objective import BatchError

FLOAT32 = 1e-6  # float32, sums of a few numbers of order 1
NET = fnn.Serial(fnn.Dense(5), fnn.Tanh(), fnn.Dense(3))
UNTYPED: Any = fnn  # for the calls that a type checker would refuse
CLASSIFIER = fnn.Objective(NET, losses.softmax_cross_entropy, penalties.l2(0.1))


@pytest.fixture
def params(rng: np.random.Generator) -> Any:
    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {"w": draw(4, 5), "b": draw(5)}, (), {"w": draw(5, 3), "b": draw(3)}


@pytest.fixture
def batch(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=(6, 4)).astype(np.float32), np.array([0, 2, 1, 1, 0, 2])


# The value.


def test_the_value_is_the_weighted_mean_and_the_penalty(params: Any, batch: Any, rng: np.random.Generator):
    x, y = batch
    weight = np.array([1.0, 0.0, 2.0, 0.5, 0.0, 3.0], np.float32)

    @jax.jit
    def run(params: Any) -> Any:
        values = losses.softmax_cross_entropy(NET.apply(params, x), y)
        plain = CLASSIFIER.replace(penalty=None)
        results = {
            "mean": plain(params, (x, y)),
            "weighted": plain(params, (x, y, weight)),
            "scaled": plain(params, (x, y, 7 * weight)),
            "penalty": CLASSIFIER(params, (x, y)),
            "list": CLASSIFIER(params, [x, y]),
            "integers": plain(params, (x, y, weight.astype(int))),
        }
        return values, penalties.l2(0.1)(params), results

    values, penalty, got = run(params)
    values = np.asarray(values)
    np.testing.assert_allclose(got["mean"], values.mean(), rtol=FLOAT32)
    np.testing.assert_allclose(got["weighted"], (values * weight).sum() / weight.sum(), rtol=FLOAT32)
    np.testing.assert_allclose(got["scaled"], got["weighted"], rtol=FLOAT32)
    np.testing.assert_allclose(got["penalty"], values.mean() + penalty, rtol=FLOAT32)
    np.testing.assert_allclose(got["list"], got["penalty"], rtol=FLOAT32)
    np.testing.assert_allclose(got["integers"], values[[0, 2, 5]] @ [1, 2, 3] / 6, rtol=FLOAT32)
    assert all((value.shape, value.dtype) == ((), jnp.float32) for value in got.values())


def test_the_gradient_is_the_mean_of_those_of_single_examples(params: Any, batch: Any):
    """1/N enters once: the batch's gradient is the mean of its rows', an example of weight 0 is not there at all."""
    x, y = map(jnp.asarray, batch)
    objective = CLASSIFIER.replace(penalty=None)

    @jax.jit
    def run(params: Any) -> Any:
        rows = jax.vmap(lambda a, b: jax.grad(objective)(params, (a[None], b[None])))(x, y)
        weight = jnp.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
        fewer = jax.grad(objective)(params, (x[:2], y[:2]))
        return jax.grad(objective)(params, (x, y)), rows, jax.grad(objective)(params, (x, y, weight)), fewer

    whole, rows, weighted, fewer = run(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, np.mean(b, 0), rtol=1e-5, atol=FLOAT32), whole, rows)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=FLOAT32), weighted, fewer)


def test_weights_that_sum_to_zero_give_nan_and_never_a_number(params: Any, batch: Any):
    assert np.isnan(jax.jit(CLASSIFIER)(params, (*batch, np.zeros(6))))


@pytest.mark.parametrize("dtype_name", ["bfloat16", "float64"])
def test_the_value_has_the_dtype_of_the_outputs(dtype_name: str):
    """Under strict promotion: weights, penalty and integer labels bring in no other dtype."""
    with jax.enable_x64(dtype_name == "float64"):
        params = jax.eval_shape(lambda: NET.init(jax.random.key(0), (4,)))
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype_name), params)
        batch = jax.ShapeDtypeStruct((6, 4), dtype_name), jnp.zeros(6, int), jnp.ones(6, "float32")
        value, grads = jax.eval_shape(jax.value_and_grad(CLASSIFIER), params, batch)
        assert {leaf.dtype.name for leaf in jax.tree.leaves((value, grads))} == {dtype_name}


def test_aux_goes_with_the_value(params: Any, batch: Any):
    def accuracy(outputs: jax.Array, batch: Any) -> jax.Array:
        return jnp.mean((outputs.argmax(-1) == batch[1]).astype(outputs.dtype))

    objective = CLASSIFIER.replace(aux=accuracy)

    @jax.jit
    def run(params: Any) -> Any:
        return (
            jax.value_and_grad(objective, has_aux=True)(params, batch)[0],
            CLASSIFIER(params, batch),
            NET.apply(params, batch[0]),
        )

    (value, aux), plain, outputs = run(params)
    np.testing.assert_allclose(value, plain, rtol=FLOAT32)
    np.testing.assert_allclose(aux, (np.argmax(outputs, -1) == batch[1]).mean(), rtol=FLOAT32)


def test_train_and_key_reach_the_network(params: Any, batch: Any, key: jax.Array):
    objective = fnn.Objective(fnn.Serial(fnn.Dropout(0.5), NET), losses.softmax_cross_entropy)

    @jax.jit
    def run(params: Any, key: jax.Array) -> list[jax.Array]:
        other = jax.random.fold_in(key, 1)
        calls = [
            {"key": key, "train": True},
            {"key": other, "train": True},
            {"key": key, "train": True},
            {"key": key},
            {},
        ]
        return [objective(((), params), batch, **options) for options in calls]

    one, other, again, keyed, plain = map(float, run(params, key))
    assert one == again
    assert keyed == plain
    assert len({one, other, plain}) == 3
    with pytest.raises(fnn.LayerError, match=r"at '0': Dropout\(0\.5\) draws random numbers under train=True"):
        objective(((), params), batch, train=True)


def test_weight_noise_moves_the_loss_and_not_the_penalty(params: Any, batch: Any, key: jax.Array):
    noisy = fnn.weight_noise(0.3)(CLASSIFIER)
    assert noisy == CLASSIFIER.replace(net=fnn.WeightNoise(NET, 0.3))
    assert fnn.weight_noise(0.3, leaves=None)(CLASSIFIER).net == fnn.WeightNoise(NET, 0.3, leaves=None)

    @jax.jit
    def run(params: Any, key: jax.Array) -> Any:
        moved = noisy.net.perturb(params, key, True)  # type: ignore[attr-defined]
        under_noise = CLASSIFIER.replace(penalty=None)(moved, batch) + penalties.l2(0.1)(params)
        results = (
            noisy(params, batch, key=key, train=True),
            under_noise,
            noisy(params, batch, key=key),
            CLASSIFIER(params, batch),
        )
        return results, jax.grad(noisy)(params, batch, key=key, train=True)

    (under_train, expected, plain, without), grads = run(params, key)
    np.testing.assert_allclose(under_train, expected, rtol=FLOAT32)
    np.testing.assert_array_equal(plain, without)
    assert abs(float(under_train) - float(plain)) > 1e-3
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    with pytest.raises(fnn.LayerError, match=r"WeightNoise.*got no key"):
        noisy(params, batch, train=True)


# What an objective does not take.


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (zeros(6, 4), ["(x, y) or (x, y, weight)", "float32[6, 4]"]),
        ((zeros(6, 4),), ["(x, y) or (x, y, weight)", "(float32[6, 4],)"]),
        ((zeros(6, 4), zeros(6), zeros(6), zeros(6)), ["(x, y) or (x, y, weight)"]),
        ({"x": zeros(6, 4), "y": zeros(6)}, ["(x, y) or (x, y, weight)", "{'x': float32[6, 4], 'y': float32[6]}"]),
        ((zeros(0, 4), zeros(0)), ["the batch is empty", "x has shape (0, 4)"]),
        ((zeros(), zeros()), ["the batch is empty", "()"]),
        ((zeros(6, 4), zeros(5)), ["one row per example", "x (6, 4) and y (5,)"]),
        ((zeros(6, 4), zeros()), ["one row per example", "y ()"]),
        ((zeros(6, 4), np.zeros(6, int), zeros(6, 1)), ["weight is one number per example, of shape (6,), got (6, 1)"]),
        ((zeros(6, 4), np.zeros(6, int), zeros()), ["of shape (6,), got ()"]),
    ],
)
def test_batches_that_are_none(params: Any, batch: Any, words: list[str]):
    for call in (
        CLASSIFIER,
        lambda p, b: fnn.validate(CLASSIFIER, p, b),
        lambda p, b: jax.eval_shape(CLASSIFIER, p, b),
    ):
        with pytest.raises(BatchError) as caught:
            call(params, batch)
        assert all(word in str(caught.value) for word in words), str(caught.value)


def test_columns_and_rows_are_never_broadcast(key: jax.Array):
    """The classical mistake: (N, 1) outputs and (N,) targets would give N x N differences."""
    objective = fnn.Objective(fnn.Dense(1), losses.mse)
    params = objective.net.init(key, (4,))
    with pytest.raises(losses.LossError, match=r"got outputs \(6, 1\), targets \(6,\).*y\[:, None\]"):
        objective(params, (zeros(6, 4), zeros(6)))


def test_a_loss_that_is_not_per_example(params: Any, batch: Any):
    for wrong in (lambda f, y: jnp.mean(f), lambda f, y: f):
        objective = fnn.Objective(NET, wrong)
        for call in (objective, lambda p, b, o=objective: fnn.validate(o, p, b)):
            with pytest.raises(ValueError, match=r"a loss gives one number per example.*leave the mean.*to Objective"):
                call(params, batch)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: UNTYPED.Objective(fnn.Dense, losses.mse), ["net is a layer", "<class"]),
        (lambda: UNTYPED.Objective(NET, "mse"), ["loss is a function (outputs, targets) -> (N,)", "'mse'"]),
        (lambda: UNTYPED.Objective(NET, losses.mse, 0.1), ["penalty is a function of the parameters", "0.1"]),
    ],
)
def test_what_no_objective_can_be_made_of(make: Callable[[], Any], words: list[str]):
    with pytest.raises(TypeError) as caught:
        make()
    assert all(word in str(caught.value) for word in words), str(caught.value)


# validate


def faults_of(objective: fnn.Objective, params: Any, batch: Any) -> list[str]:
    with pytest.raises(ValueError) as caught:
        fnn.validate(objective, params, batch)
    return str(caught.value).splitlines()


def test_nothing_is_said_of_what_is_right(params: Any, batch: Any, key: jax.Array):
    assert fnn.validate(CLASSIFIER, params, batch) is None
    fnn.validate(CLASSIFIER, params, (*batch, np.array([0, 1, 0, 2, 0, 0.5], np.float32)))
    fnn.validate(
        CLASSIFIER,
        jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params),
        (batch[0].astype(jnp.bfloat16), batch[1]),
    )
    own = fnn.Objective(NET, lambda f, y: f[:, 0])
    fnn.validate(own, params, batch)
    noisy = fnn.Objective(fnn.Serial(fnn.Dropout(0.5), NET), losses.softmax_cross_entropy)
    fnn.validate(noisy, ((), params), batch)


@pytest.mark.parametrize("dtype_name", ["uint8", "int32"])
def test_images_of_integers_are_no_fault(dtype_name: str, key: jax.Array):
    """Through Cast; and without it where mixed dtypes are allowed, as they are outside these tests."""
    net = fnn.Serial(fnn.Flatten(), fnn.Dense(3))
    params = net.init(key, (2, 2))
    batch = np.full((5, 2, 2), 200, dtype_name), np.array([0, 1, 2, 0, 1], np.uint8)
    fnn.validate(fnn.Objective(fnn.Cast(net, "float32"), losses.softmax_cross_entropy), params, batch)
    objective = fnn.Objective(net, losses.softmax_cross_entropy)
    with jax.numpy_dtype_promotion("standard"):
        fnn.validate(objective, params, batch)
        assert np.isfinite(jax.jit(objective)(params, batch))


def test_each_fault_is_named(params: Any, batch: Any):
    x, y = batch
    first, nothing, last = params

    def found(params: Any = params, x: Any = x, y: Any = y, weight: Any = None, net: Any = CLASSIFIER) -> str:
        faults = faults_of(net, params, (x, y) if weight is None else (x, y, weight))
        assert len(faults) == 1, faults
        return faults[0]

    with_nan = x.copy()
    with_nan[3, 1], with_nan[5, 0] = np.nan, np.inf
    assert found(x=with_nan) == "x is not finite: nan at [3, 1] (2 of 24)"
    assert found(
        x=jnp.asarray(with_nan).astype(jnp.bfloat16), net=fnn.Objective(fnn.Cast(NET, "float32"), CLASSIFIER.loss)
    ) == ("x is not finite: nan at [3, 1] (2 of 24)")
    right_call = "; give the network more outputs, or correct the labels"
    said = "softmax_cross_entropy takes labels in 0..2 for outputs (6, 3), got 3 at index 1 (2 in all)"
    assert found(y=y + 1) == said + right_call
    assert "takes integer labels, got float32 of shape (6,)" in found(y=y.astype(np.float32))
    assert found(weight=np.array([1, 1, -2, 1, -1, 1.0])) == "weight is negative at index 2"
    assert found(weight=zeros(6)) == "weight is zero for every example, so that their weighted mean is 0 / 0"
    assert found(weight=np.array([1, np.nan, 1, 1, 1, 1])) == "weight is not finite: nan at [1] (1 of 6)"
    assert found(params=(first | {"b": first["b"].at[2].set(jnp.inf)}, nothing, last)) == (
        "params[0]['b'] is not finite: inf at [2] (1 of 5)"
    )
    assert (
        found(params=(first, nothing, last | {"w": last["w"].T}))
        == "params[2]['w'] has shape (3, 5), where (5, 3) is needed"
    )
    assert found(params=(first, nothing, {"w": last["w"]})) == "params[2]['b'] is missing: shape (3,)"
    assert (
        found(params=(first, nothing, last | {"c": last["b"]})) == "params[2]['c'] is not of this network: float32[3]"
    )
    assert found(params=(first, [], last)).startswith("params is (")
    assert "where ({'b': float32[5], 'w': float32[4, 5]}, (), {'b'" in found(params=(first, [], last))
    integers = jax.tree.map(lambda leaf: leaf.astype(jnp.int32), last)
    assert faults_of(CLASSIFIER, (first, nothing, integers), batch) == [
        "params[2]['b'] is int32[3], where a floating dtype is needed",
        "params[2]['w'] is int32[5, 3], where a floating dtype is needed",
    ]
    too_wide = fnn.Objective(fnn.Serial(fnn.Reshape((5,)), fnn.Dense(3)), CLASSIFIER.loss)
    assert found(net=too_wide).startswith(
        "the network does not take examples of shape (4,): at '0': Reshape((5,)) cannot"
    )
    assert "is for the parameters called ('v',), and there are none among" in found(
        net=CLASSIFIER.replace(penalty=penalties.l2(0.1, leaves=("v",)))
    )
    assert "targets (6,); give the targets the output's last axis: y[:, None]" in found(
        net=fnn.Objective(fnn.Serial(NET, fnn.Dense(1)), losses.mse), params=(params, {"w": zeros(3, 1), "b": zeros(1)})
    )


def test_all_faults_are_named_at_once(params: Any, batch: Any):
    x, y = batch
    x = x.copy()
    x[0, 0] = np.nan
    y = y - 1
    first, nothing, last = params
    wrong = ({"w": first["w"] * np.inf, "v": first["b"]}, nothing, last | {"b": last["b"][:2]})
    assert faults_of(CLASSIFIER, wrong, (x, y, np.array([0, 0, 0, 0, 0, -1.0]))) == [
        "params[0]['b'] is missing: shape (5,)",
        "params[0]['v'] is not of this network: float32[5]",
        "params[2]['b'] has shape (2,), where (3,) is needed",
        "softmax_cross_entropy takes labels in 0..2 for outputs (6, 3), got -1 at index 0 (2 in all); "
        "give the network more outputs, or correct the labels",
        "x is not finite: nan at [0, 0] (1 of 24)",
        *[fault for fault in faults_of(CLASSIFIER, wrong, (x, y)) if fault.startswith("params[0]['w'] is not finite")],
        "weight is negative at index 5",
    ]


def test_traced_values_cannot_be_looked_at(params: Any, batch: Any):
    with pytest.raises(TypeError, match="validate looks at values, and these are traced: call it outside jit"):
        jax.jit(lambda p: fnn.validate(CLASSIFIER, p, batch))(params)
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda x: fnn.validate(CLASSIFIER, params, (x, batch[1])))(batch[0])
