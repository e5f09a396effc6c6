"""Logits that are never whole: everything against the same loss of the logits themselves, and the memory it saves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import funcnn as fnn
from funcnn import backprop, losses, penalties
from funcnn.backprop import RULES, learning
from funcnn.lazy_logits import LazyLogits, chunk_size, weighted_sum
from funcnn.losses import LossError
from tests.backprop.agree import TOLERANCES, assert_agree
from tests.problems import draw_params, draw_targets

LINEAR, SOFTMAX = losses.linear_cross_entropy, losses.softmax_cross_entropy


def logits(x: jax.Array, w: jax.Array, b: jax.Array | None = None) -> jax.Array:
    z = x @ w
    return z if b is None else z + b.reshape((1,) * (z.ndim - 1) + b.shape)


# Values and gradients, with any cotangents: the options, what b is, the kind of targets, and the axes of x before D.
CASES: dict[str, tuple[dict[str, Any], str | None, str, tuple[int, ...]]] = {
    "one-chunk": ({}, "bias", "label", (7,)),
    "rows": ({"chunk": 1}, None, "soft", (7,)),
    "rest": ({"chunk": 3, "label_smoothing": 0.2}, "masked", "label", (7,)),
    "whole-chunks": ({"chunk": 4}, "masked", "soft", (8,)),
    "positions": ({"chunk": 5}, None, "label", (4, 3)),
    "positions-soft": ({"chunk": 4, "label_smoothing": 1.0}, "bias", "soft", (2, 2, 3)),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_the_logits(name: str, key: jax.Array, rng: np.random.Generator):
    options, bias, kind, batch = CASES[name]
    arrays = [jnp.asarray(rng.normal(size=shape)) for shape in ((*batch, 5), (5, 6), (6,))]
    y = draw_targets(kind, key, batch[0], (*batch[1:], 6))
    if bias is None:
        arrays.pop()
    elif bias == "masked":
        arrays[2] = arrays[2].at[4].set(-jnp.inf)
        y = jnp.where(y == 4, 3, y) if kind == "label" else y.at[..., 4].set(0.0)
    whole = SOFTMAX(label_smoothing=options.get("label_smoothing", 0.0))

    @jax.jit
    def both(arrays: Any, dv: jax.Array) -> Any:
        chunked, pullback = jax.vjp(lambda *a: LINEAR(**options)(a, y), *arrays)
        expected, pullback_of_logits = jax.vjp(lambda *a: whole(logits(*a), y), *arrays)
        return (chunked, pullback(dv)), (expected, pullback_of_logits(dv))

    assert_agree(*both(arrays, jnp.asarray(rng.normal(size=batch[0]))), within=TOLERANCES["float64"])


# In an objective, by autodiff and by hand.

BODY = (fnn.Dense(5), fnn.Tanh(), fnn.Dropout(0.3))
NETS = {
    "dense": fnn.Dense(6),
    "nested": fnn.WeightNoise(fnn.Serial(fnn.Dense(4), fnn.Serial(*BODY, fnn.Dense(6, bias=False))), 0.1),
    "cast": fnn.Serial(*BODY, fnn.Cast(fnn.Dense(6), "float64")),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NETS)
def test_an_objective_is_that_of_the_logits(name: str, key: jax.Array, rng: np.random.Generator):
    """For parameters, inputs and weights of the examples, in training."""
    chunked = fnn.Objective(NETS[name], LINEAR(chunk=3, label_smoothing=0.1), penalties.l2(0.01))
    whole = chunked.replace(loss=SOFTMAX(label_smoothing=0.1))
    x, y = jnp.asarray(rng.normal(size=(7, 4))), draw_targets("label", key, 7, (6,))
    weight = jnp.asarray(rng.uniform(size=7)).at[2].set(0.0)
    params = draw_params(key, chunked.net, (4,))

    @jax.jit
    def run(params: Any, x: jax.Array, weight: jax.Array) -> Any:
        def by_autodiff(objective: fnn.Objective) -> Any:
            cost = lambda p, x, w: 3 * objective(p, (x, y, w), key=key, train=True)  # noqa: E731
            return jax.value_and_grad(cost, (0, 1, 2))(params, x, weight)

        by_hand = backprop.value_and_grad(chunked)(params, (x, y, weight), key=key, train=True)
        by_hand = jax.tree.map(lambda leaf: 3 * leaf, by_hand)
        plain = [objective(params, (x, y)) for objective in (chunked, whole)]
        return by_autodiff(chunked), by_autodiff(whole), by_hand, plain

    got, want, by_hand, plain = run(params, x, weight)
    assert_agree(got, want, TOLERANCES["float64"])
    assert_agree(by_hand, (want[0], want[1][0]), TOLERANCES["float64"])
    assert_agree(*plain, within=TOLERANCES["float64"])


def test_under_vmap_and_jit_of_many_parameters(key: jax.Array, rng: np.random.Generator):
    objective = fnn.Objective(fnn.Dense(6), LINEAR(chunk=2))
    params = [draw_params(k, objective.net, (4,)) for k in jax.random.split(key, 3)]
    batch = jnp.asarray(rng.normal(size=(5, 4))), draw_targets("label", key, 5, (6,))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)

    @jax.jit
    def run(stacked: Any, params: Any) -> Any:
        gradients = [jax.value_and_grad(objective), backprop.value_and_grad(objective)]
        together = [jax.vmap(gradient, (0, None))(stacked, batch) for gradient in gradients]
        return together, jax.value_and_grad(objective.replace(loss=SOFTMAX))(params, batch)

    together, third = run(stacked, params[2])
    for got in together:
        assert_agree(jax.tree.map(lambda leaf: leaf[2], got), third, TOLERANCES["float32"])


WHERE = {
    "data": (({}, {}), AxisType.Explicit),
    "data-auto": (({}, {}), AxisType.Auto),
    "features": (({"w": jax.P(None, "model"), "b": jax.P("model")}, {"w": jax.P("model")}), AxisType.Explicit),
    "classes": (({}, {"w": jax.P(None, "model"), "b": jax.P("model")}), AxisType.Explicit),
}


@pytest.mark.parametrize("name", WHERE)
def test_on_a_mesh(name: str, key: jax.Array, rng: np.random.Generator):
    """Each device has its part of each chunk. Chunks of 3 do not divide 8 examples, of which each device has 2."""
    specs, mode = WHERE[name]
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(mode, mode))
    objective = fnn.Objective(fnn.Serial(fnn.Dense(4), fnn.Dense(6)), LINEAR(chunk=3))
    params = draw_params(key, objective.net, (4,))
    batch = jnp.asarray(rng.normal(size=(8, 4)), jnp.float32), draw_targets("label", key, 8, (6,))
    gradients = [jax.value_and_grad(objective), backprop.value_and_grad(objective)]
    whole = jax.jit(jax.value_and_grad(objective.replace(loss=SOFTMAX)))(params, batch)
    with jax.set_mesh(mesh):
        spread = tuple(
            {k: jax.device_put(leaf, jax.NamedSharding(mesh, spec.get(k, jax.P()))) for k, leaf in layer.items()}
            for layer, spec in zip(params, specs, strict=True)
        )
        parts = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data")))
        for got in jax.jit(lambda *arguments: [gradient(*arguments) for gradient in gradients])(spread, parts):
            assert_agree(got, whole, TOLERANCES["float32"])
            for g, p in zip(jax.tree.leaves(got[1]), jax.tree.leaves(spread), strict=True):
                assert g.sharding.is_equivalent_to(p.sharding, g.ndim)


# Numbers far out, and of other dtypes.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_finite_at_the_ends_of_the_dtype(dtype: str, rng: np.random.Generator):
    """Logits of every size, made exactly, by w = 1: what `softmax_cross_entropy` gives for them, and no NaN."""
    sizes = [0.0, 1.0, 30.0, 90.0, 1e4, 1e10, 1e30, float(jnp.finfo(dtype).max)]
    x = jnp.asarray(rng.choice(sizes, (40, 6)) * rng.choice([-1, 1], (40, 6)), dtype)
    y = jnp.asarray(rng.integers(0, 6, 40))

    @jax.jit
    def both(x: jax.Array) -> Any:
        def of(loss: Callable[[jax.Array], jax.Array]) -> Any:
            v, pullback = jax.vjp(loss, x)
            return v, pullback(jnp.ones_like(v))[0]

        chunked = of(lambda x: LINEAR(chunk=16)((x, jnp.eye(6, dtype=dtype)), y))
        return chunked, of(lambda x: SOFTMAX(x.astype("float32"), y))

    (v, dx), (want, dx_want) = jax.tree.map(lambda a: np.asarray(a, np.float64), both(x))
    np.testing.assert_allclose(v, want, rtol=1e-6)
    assert np.isfinite(dx).all()
    np.testing.assert_allclose(dx, dx_want, rtol=1e-5 if dtype == "float32" else 1e-2, atol=1e-6)


def test_sums_over_many_chunks_are_float32(rng: np.random.Generator):
    """600 equal contributions to dw and db, which in bfloat16 would stop to grow at 256 of them."""
    x, w, b = (jnp.full(shape, value, "bfloat16") for shape, value in (((600, 2), 1), ((2, 4), 0), ((4,), 0)))
    y = jnp.zeros(600, int)
    v, pullback = jax.jit(lambda *a: jax.vjp(lambda *a: LINEAR(chunk=1)(a, y), *a))(x, w, b)
    assert v.dtype == jnp.float32
    dx, dw, db = pullback(jnp.ones(600))
    assert {array.dtype for array in (dx, dw, db)} == {jnp.dtype("bfloat16")}
    np.testing.assert_array_equal(np.asarray(db, np.float32), [-450, 150, 150, 150])
    np.testing.assert_array_equal(np.asarray(dw, np.float32), [[-450, 150, 150, 150]] * 2)


def test_bfloat16_compute_on_float32_parameters(key: jax.Array, rng: np.random.Generator):
    net = fnn.Serial(fnn.Dense(8), fnn.Tanh(), fnn.Dense(6))
    params, x = draw_params(key, net, (4,)), jnp.asarray(rng.normal(size=(9, 4)), jnp.float32)
    objective = fnn.Objective(fnn.Cast(net, "bfloat16"), LINEAR(chunk=4))
    batch = x, draw_targets("label", key, 9, (6,))
    gradients = [jax.value_and_grad(fnn.Objective(net, SOFTMAX))]
    gradients += [jax.value_and_grad(objective), backprop.value_and_grad(objective)]
    exact, *both = jax.jit(lambda params: [gradient(params, batch) for gradient in gradients])(params)
    for got in both:
        assert_agree(got, exact, 0.02)  # bfloat16 rounds at 0.004


def test_under_jit_a_label_that_is_no_class_gives_nan_for_its_example_alone():
    x, w = jnp.ones((4, 3)), jnp.ones((3, 5))
    v, dx = jax.jit(jax.vmap(jax.value_and_grad(lambda x, y: LINEAR((x[None], w), y[None])[0])))(
        x, jnp.array([0, 5, 4, -1])
    )
    wrong = np.array([False, True, False, True])
    np.testing.assert_array_equal(np.isnan(v), wrong)
    np.testing.assert_array_equal(np.isnan(dx).all(1), wrong)


# What it is for.


def test_a_chunk_takes_about_the_memory_of_the_weights():
    def chunk(features: int, classes: int) -> int:
        arrays: Any = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((4096, features), (features, classes)))
        return chunk_size(LazyLogits(*arrays))

    assert chunk(256, 16384) == 128
    assert chunk(4096, 128_000) == 2048
    assert chunk(16, 1000) == 2**20 // 1000
    assert chunk(8, 2**21) == 4
    assert chunk(1, 2**21) == 1


def test_no_logits_are_kept():
    """At most a twelfth of autodiff's temporary memory, no array of all logits, and no product more than needed."""
    n, d, k, chunk = 512, 16, 2048, 15
    objective = fnn.Objective(fnn.Dense(k), LINEAR(chunk=chunk))
    params = objective.net.init(jax.random.key(0), (d,))
    batch = jnp.ones((n, d)), jnp.zeros(n, int)

    def mean(params: Any, batch: Any) -> jax.Array:
        return jnp.mean(LINEAR((batch[0], params["w"], params["b"]), batch[1], chunk=chunk))

    def compiled(gradient: Callable[..., Any]) -> tuple[str, int]:
        program: Any = jax.jit(gradient).lower(params, batch).compile()
        return program.as_text(), program.memory_analysis().temp_size_in_bytes

    text, most = compiled(jax.value_and_grad(objective.replace(loss=SOFTMAX)))
    assert f"{n},{k}]" in text
    for gradient, products in (
        (jax.value_and_grad(objective), 2),  # z and dw: dx is wanted by nobody
        (backprop.value_and_grad(objective), 2),
        (objective, 1),
        (jax.value_and_grad(mean), 3),  # z once more
    ):
        text, size = compiled(gradient)
        assert f"{n},{k}]" not in text
        assert f"f32[{chunk},{k}]" in text
        assert text.count(" dot(") == products
        assert size <= most / 12


# Where somebody looks at the logits, or at their delta.


def seen(into: list[Any]) -> backprop.Rule:
    """The dense rule, and the shapes of the deltas that come to it."""

    def watch(dy: jax.Array, ctx: Any) -> jax.Array:
        into.append(dy.shape)
        return dy

    return learning.on_delta(RULES[fnn.Dense], watch)


@pytest.mark.parametrize("where", ["1", fnn.Dense, fnn.Dense(6)], ids=["path", "type", "layer"])
def test_a_rule_of_ones_own_for_the_last_layer_gets_its_delta(where: Any, key: jax.Array):
    objective = fnn.Objective(fnn.Serial(fnn.Tanh(), fnn.Dense(6)), LINEAR)
    params, batch = draw_params(key, objective.net, (4,)), (jnp.ones((5, 4)), jnp.arange(5))
    shapes: list[Any] = []
    jax.eval_shape(backprop.value_and_grad(objective, rules=RULES | {where: seen(shapes)}), params, batch)
    assert shapes == [(5, 6)]
    jax.eval_shape(backprop.value_and_grad(objective, rules=RULES | {"0": RULES[fnn.Tanh]}), params, batch)


def test_a_rule_of_ones_own_for_the_loss_gets_the_logits(key: jax.Array):
    objective = fnn.Objective(fnn.Dense(6), LINEAR)
    params, batch = draw_params(key, objective.net, (4,)), (jnp.ones((5, 4)), jnp.arange(5))
    rules = RULES | {losses.LinearCrossEntropy: RULES[losses.SoftmaxCrossEntropy]}
    by_rule, ours = (jax.jit(backprop.value_and_grad(objective, rules=r))(params, batch) for r in (rules, RULES))
    assert_agree(by_rule, ours, TOLERANCES["float32"])


def test_aux_record_and_checker_see_the_logits(key: jax.Array):
    objective = fnn.Objective(fnn.Dense(6), LINEAR(chunk=2), aux=lambda outputs, batch: jnp.tanh(outputs))
    params, batch = draw_params(key, objective.net, (4,)), (jnp.ones((5, 4)), jnp.arange(5))
    for gradient in (jax.value_and_grad, backprop.value_and_grad):
        (_, outputs), _ = jax.eval_shape(gradient(objective, has_aux=True), params, batch)
        assert outputs.shape == (5, 6)
    entry = jax.eval_shape(backprop.record(objective.replace(aux=None)), params, batch)[""]
    assert entry.dy.shape == (5, 6)
    assert type(entry.layer) is fnn.Dense


def test_direct_feedback_has_no_delta_to_send_back(key: jax.Array):
    """Where it hears the outputs' delta in a layer that is not the first."""
    net = fnn.Serial(fnn.Dense(3), fnn.FeedbackDense(3, outputs=6), fnn.Dense(6))
    params, batch = draw_params(key, net, (4,)), (jnp.ones((5, 4)), jnp.arange(5))
    run = backprop.value_and_grad(fnn.Objective(net, LINEAR), rules=RULES | learning.DIRECT_FEEDBACK_ALIGNMENT)
    with pytest.raises(backprop.RuleError) as caught:
        jax.eval_shape(run, params, batch)
    assert all(word in str(caught.value) for word in ("delta", "linear_cross_entropy", "softmax_cross_entropy"))


# Errors.


def zeros(*shape: int) -> jax.Array:
    return jnp.zeros(shape)


WRONG = {
    "one": ((zeros(4, 3),), ["(x, w, b)", "(4, 3)"]),
    "four": ((zeros(4, 3), zeros(3, 2), zeros(2), zeros()), ["(x, w, b)", "(2,), ()"]),
    "transposed": ((zeros(4, 3), zeros(2, 3)), ["w (D, K)", "(4, 3), (2, 3)"]),
    "bias": ((zeros(4, 3), zeros(3, 2), zeros(3)), ["b (K,)", "(3, 2), (3,)"]),
    "no-examples": ((zeros(3), zeros(3, 2)), ["x (N, ..., D)", "(3,), (3, 2)"]),
    "integers": ((jnp.arange(12).reshape(4, 3), zeros(3, 2)), ["floating", "int32, float32"]),
    "labels": ((zeros(5, 3), zeros(3, 2)), ["labels (5,)", "(5, 2)", "(4,)"]),
    "class": ((zeros(4, 3), zeros(3, 1)), ["0..0", "(4, 1)", "1 at index 1"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str):
    arrays, words = WRONG[name]
    with pytest.raises(LossError) as caught:
        LINEAR(arrays, jnp.array([0, 1, 0, 1]))
    assert all(word in str(caught.value) for word in ["linear_cross_entropy", *words]), str(caught.value)


@pytest.mark.parametrize("chunk", [0, -1, 2.0, True, "all"])
def test_wrong_chunks(chunk: Any):
    with pytest.raises(LossError, match="chunk is a positive integer"):
        LINEAR(chunk=chunk)


@pytest.mark.parametrize(
    "net", [fnn.Serial(fnn.Dense(3), fnn.Relu()), fnn.FeedbackDense(3), fnn.Residual(fnn.Dense(3))], ids=repr
)
def test_networks_that_do_not_end_in_a_dense_layer(net: fnn.Layer):
    with pytest.raises(TypeError, match="ends in a Dense") as caught:
        fnn.Objective(net, LINEAR)
    assert repr(net) in str(caught.value)


def test_the_errors_of_the_last_layer_are_its_own(key: jax.Array):
    objective = fnn.Objective(fnn.Serial(fnn.Tanh(), fnn.Dense(6)), LINEAR)
    for run in (objective, backprop.value_and_grad(objective)):
        with pytest.raises(fnn.LayerError, match=r"^at '1': Dense\(6\) has parameters for inputs of shape \(..., 3\)"):
            run(((), {"w": zeros(3, 6), "b": zeros(6)}), (jnp.ones((5, 4)), jnp.arange(5)))
        with pytest.raises(LossError, match=r"takes labels in 0..5 for outputs \(5, 6\), got 6 at index 1"):
            run(((), {"w": zeros(4, 6), "b": zeros(6)}), (jnp.ones((5, 4)), jnp.arange(5) + 5))


@pytest.mark.parametrize("shape", [(), (4,)])
def test_weights_have_a_gradient(shape: Any, rng: np.random.Generator):
    x, w, y = jnp.asarray(rng.normal(size=(4, 3))), jnp.asarray(rng.normal(size=(3, 2))), jnp.array([0, 1, 1, 0])
    weights = jnp.asarray(rng.uniform(0.5, 1, shape))
    lazy = LazyLogits(x, w, None)
    got = jax.grad(lambda m: weighted_sum(LINEAR, lazy, y, m))(weights)
    values = losses.softmax_cross_entropy(x @ w, y)
    np.testing.assert_allclose(got, values if shape else values.sum(), rtol=1e-6)


def test_targets_have_no_gradient_and_say_so():
    x, w = zeros(4, 3), zeros(3, 2)
    with pytest.raises(TypeError, match="no gradient for its targets"):
        jax.grad(lambda y: LINEAR((x, w), y).sum())(jnp.ones((4, 2)))
    with pytest.raises(TypeError, match="no gradient for its targets"):
        jax.grad(fnn.Objective(fnn.Dense(2, bias=False), LINEAR), 1)({"w": w}, (x, jnp.ones((4, 2))))
