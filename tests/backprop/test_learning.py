"""Laws of the learning rules, and what is done to deltas."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcnn as fnn
from funcnn import backprop
from funcnn.backprop import RULES, learning
from tests.backprop.agree import assert_agree
from tests.problems import draw_params, draw_targets

KNOWN = {
    "feedback alignment": learning.FEEDBACK_ALIGNMENT,
    "direct": learning.DIRECT_FEEDBACK_ALIGNMENT,
    "Kolen-Pollack": learning.KOLEN_POLLACK,
}


def network(*hidden: int, outputs: int | None = None) -> fnn.Objective:
    layers = [layer for width in hidden for layer in (fnn.FeedbackDense(width, outputs=outputs), fnn.Tanh())]
    return fnn.Objective(fnn.Serial(*layers, fnn.FeedbackDense(3, outputs=outputs)), fnn.losses.softmax_cross_entropy)


def draw(objective: fnn.Objective, key: jax.Array) -> tuple[Any, Any]:
    x = jax.random.normal(key, (6, 4))
    return draw_params(key, objective.net, (4,)), (x, draw_targets("label", key, 6, (3,)))


def forward(gradient: Any) -> Any:
    """Of the forward weights alone."""
    return [{name: g for name, g in layer.items() if name != "feedback"} for layer in gradient if layer]


def gradient(objective: fnn.Objective, rules: Any, params: Any, batch: Any, **options: Any) -> Any:
    return jax.jit(backprop.value_and_grad(objective, rules=RULES | rules))(params, batch, **options)[1]


def test_feedback_alignment_with_the_forward_weights_is_backprop(key: jax.Array, dtype: str):
    objective = network(5, 4)
    params, batch = draw(objective, key)
    params = tuple(layer | {"feedback": layer["w"]} if layer else layer for layer in params)
    by_feedback = gradient(objective, learning.FEEDBACK_ALIGNMENT, params, batch)
    assert_agree(by_feedback, gradient(objective, {}, params, batch), {"float32": 1e-6, "float64": 1e-15}[dtype])


def test_feedback_alignment_uses_the_feedback_weights_and_does_not_learn_them(key: jax.Array):
    objective = network(5, 4)
    params, batch = draw(objective, key)
    got, plain = (gradient(objective, rules, params, batch) for rules in (learning.FEEDBACK_ALIGNMENT, {}))
    for layer in (0, 2):
        assert np.abs(np.asarray(got[layer]["w"] - plain[layer]["w"])).max() > 1e-3
        assert not got[layer]["feedback"].any() and not plain[layer]["feedback"].any()
    np.testing.assert_array_equal(got[4]["w"], plain[4]["w"])  # the last layer's is the gradient


def test_direct_is_plain_with_one_hidden_layer(key: jax.Array):
    one = network(5, outputs=3)
    params, batch = draw(one, key)
    direct, plain = (
        gradient(one, rules, params, batch)
        for rules in (learning.DIRECT_FEEDBACK_ALIGNMENT, learning.FEEDBACK_ALIGNMENT)
    )
    assert_agree(direct, plain, 1e-6)


def test_direct_gives_every_layer_the_delta_of_the_output(key: jax.Array):
    objective = network(5, 4, outputs=3)
    params, batch = draw(objective, key)
    rules = RULES | learning.DIRECT_FEEDBACK_ALIGNMENT
    record = jax.jit(backprop.record(objective, rules=rules))(params, batch)
    for path, layer in (("1", 2), ("3", 4)):
        np.testing.assert_allclose(record[path].dy, record["4"].dy @ params[layer]["feedback"].T, rtol=1e-5)


@pytest.mark.parametrize("name", [*KNOWN, "clipped"])
def test_rows_add_up_to_what_the_rule_gives(name: str, key: jax.Array, x64: None):
    objective = network(5, outputs=3) if name == "direct" else network(5, 4)
    clip = {fnn.FeedbackDense: learning.on_delta(RULES[fnn.FeedbackDense], learning.Clip(0.05))}
    rules = RULES | (clip if name == "clipped" else KNOWN[name])
    params, batch = draw(objective, key)
    rows = jax.jit(backprop.rows(objective, rules=rules))(params, batch)
    assert all(
        outer.activity is not None or leaf.ndim == 1
        for outer, leaf in zip(rows.outers(), jax.tree.leaves(params), strict=True)
    )  # in factors, and no gradient of an example formed
    each = backprop.quantities.gradients(rows)
    assert_agree(jax.tree.map(lambda g: g.mean(0), each), rows.grads, 1e-14)


def test_the_kolen_pollack_invariant(key: jax.Array, x64: None):
    """W(t) - B(t) = (1 - lambda)^t (W(0) - B(0)) under gradient descent with weight decay lambda on both."""
    objective, rate, decay = network(5, 4), 0.3, 0.02
    params, batch = draw(objective, key)
    optimizer = optax.chain(optax.sgd(rate), optax.scale(1.0))
    start, state = params, optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        grads = gradient(objective, learning.KOLEN_POLLACK, params, batch)
        grads = jax.tree.map(lambda g, p: g + decay / rate * p, grads, params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    for _ in range(40):
        params, state = step(params, state)
    for before, after in zip(start, params, strict=True):
        if before:
            gap = before["w"] - before["feedback"]
            np.testing.assert_allclose(after["w"] - after["feedback"], (1 - decay) ** 40 * gap, rtol=1e-10, atol=1e-12)
            assert np.abs(np.asarray(after["w"] - before["w"])).max() > 0.1


@pytest.mark.parametrize("name", KNOWN)
def test_it_trains_with_fit(name: str):
    (x, y), valid = fnn.data.load_digits().arrays()
    objective = fnn.Objective(
        fnn.Serial(
            fnn.FeedbackDense(64, outputs=10 if name == "direct" else None),
            fnn.Tanh(),
            fnn.FeedbackDense(10, outputs=10 if name == "direct" else None),
        ),
        fnn.losses.softmax_cross_entropy,
    )
    by_rule = functools.partial(backprop.value_and_grad, rules=RULES | KNOWN[name])
    params = objective.net.init(jax.random.key(0), (64,))
    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        _, history = fnn.train.fit(
            objective, optax.adam(3e-3), params, (x, y), epochs=15, batch_size=32, key=jax.random.key(1), valid=valid,
            metrics={"accuracy": fnn.train.accuracy}, gradient=by_rule, progress=None,
        )  # fmt: skip
    assert history["valid accuracy"][-1] > 0.9  # 10 % by chance


def test_sign_symmetric_feedback(key: jax.Array):
    layer, x = fnn.Dense(3), jax.random.normal(key, (5, 4))
    params = draw_params(key, layer, (4,))
    _, pullback = backprop.vjp(layer, params, x, rules=RULES | learning.SIGN_SYMMETRIC)
    dz = jax.random.normal(key, (5, 3))
    dparams, dx = pullback(dz)
    w = np.asarray(params["w"])
    np.testing.assert_allclose(dx, np.asarray(dz) @ (np.sign(w) * np.abs(w).mean()).T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dparams["w"], np.asarray(x).T @ np.asarray(dz), rtol=1e-5, atol=1e-6)


def test_straight_through_the_step(key: jax.Array):
    net = fnn.Serial(fnn.Dense(4), fnn.Step(), fnn.Dense(3))
    objective = fnn.Objective(net, fnn.losses.softmax_cross_entropy)
    params, batch = draw(objective, key)
    assert not gradient(objective, {}, params, batch)[0]["w"].any()
    record = backprop.record(objective, rules=RULES | learning.STRAIGHT_THROUGH)(params, batch)
    np.testing.assert_array_equal(record["1"].dx, record["1"].dy)


TRANSFORMS = {
    "clip": learning.Clip(0.01),
    "normalize": learning.Normalize(0.1),
    "bfloat16": learning.LowPrecision("bfloat16"),
    "stochastic": learning.StochasticRounding(4),
    "top-k": learning.TopK(0.25),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_delta_is_changed_at_one_path_and_nowhere_else(name: str, key: jax.Array):
    net = fnn.Serial(fnn.Dense(8), fnn.Tanh(), fnn.Dense(8), fnn.Tanh(), fnn.Dense(3))
    objective = fnn.Objective(net, fnn.losses.softmax_cross_entropy)
    params, batch = draw(objective, key)
    changed = {"2": learning.on_delta(RULES[fnn.Dense], TRANSFORMS[name])}
    record, plain = (
        backprop.record(objective, rules=RULES | rules)(params, batch, key=key, train=True) for rules in (changed, {})
    )
    ctx: Any = backprop.Context(RULES, key=jax.random.fold_in(key, 2))
    dy = TRANSFORMS[name](plain["2"].dy, ctx)
    assert dy.dtype == plain["2"].dy.dtype and np.abs(np.asarray(dy - plain["2"].dy)).max() > 0
    np.testing.assert_allclose(record["2"].grads["w"], plain["2"].x.T @ dy, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(record["2"].dx, dy @ params[2]["w"].T, rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(record["4"].dx, plain["4"].dx)
    assert changed["2"] == learning.on_delta(RULES[fnn.Dense], TRANSFORMS[name]), "a value: compiled once"
    assert hash(RULES | changed) == hash(RULES | dict(changed))


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e5m2"])
def test_low_precision_is_that_of_the_dtype(name: str, rng: np.random.Generator):
    dy = jnp.asarray(rng.normal(size=4000) * 10.0 ** rng.integers(-9, 4, 4000), jnp.float32)
    got = jax.jit(lambda dy: learning.LowPrecision(name)(dy, None))(dy)  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(got, np.asarray(dy).astype(jnp.dtype(name)).astype(np.float32))
    with pytest.raises(ValueError, match="infinities where IEEE 754 has them"):
        learning.LowPrecision("float8_e4m3fn")


def test_stochastic_rounding_of_bfloat16_is_of_its_levels(key: jax.Array):
    dy = jax.random.normal(key, (500, 40)).astype(jnp.bfloat16)
    ctx = backprop.Context(RULES, key=key)
    got, exact = (np.asarray(values, np.float64) for values in (learning.StochasticRounding(4)(dy, ctx), dy))
    level = got / np.abs(exact).max() * 7
    assert level.max() <= 7.05 and np.abs(level - level.round()).max() < 0.05  # but for bfloat16's own rounding
    assert abs((got - exact).mean()) < 0.01  # 5 standard deviations of the mean of 20,000


def test_stochastic_rounding_is_right_in_the_mean(key: jax.Array):
    dy = jax.random.normal(key, (40,))
    rounding = learning.StochasticRounding(3)
    rounded = jax.vmap(lambda k: rounding(dy, backprop.Context(RULES, key=k)))(jax.random.split(key, 20_000))
    step = float(jnp.abs(dy).max()) / 3
    levels = np.asarray(rounded) / step
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
    assert len(np.unique(np.round(levels))) == 7 and np.abs(levels).max() < 3.001  # 2^3 - 1 levels
    assert np.abs(np.asarray(rounded.mean(0) - dy)).max() < 5 * step / 2 / np.sqrt(20_000)  # five standard deviations
    with pytest.raises(backprop.RuleError, match="got no key"):
        rounding(dy, backprop.Context(RULES))


def test_what_the_transforms_do():
    dy, none = jnp.array([[3.0, 4.0], [0.3, -0.4], [0.0, 0.0]]), backprop.Context(RULES)
    np.testing.assert_allclose(learning.Clip(1.0)(dy, none), [[0.6, 0.8], [0.3, -0.4], [0, 0]], rtol=1e-6)
    normal = learning.Normalize(2.0)(dy, none)
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(normal**2)), 2, rtol=1e-6)
    np.testing.assert_allclose(normal / normal[0, 0], dy / 3, rtol=1e-5, atol=1e-7)
    tiny = learning.Normalize(1.0)(dy * 1e-30, none)
    np.testing.assert_allclose(tiny, normal / 2, rtol=1e-5)
    for transform in (learning.Clip(1.0), learning.Normalize(1.0), learning.TopK(0.5), learning.LowPrecision()):
        assert not np.asarray(transform(jnp.zeros((2, 3)), none)).any()
        assert np.isnan(np.asarray(transform(jnp.full((2, 3), jnp.nan), none))).any(), transform
    top = learning.TopK(0.5)(jnp.array([[1.0, -5.0, 2.0, 0.5], [0.0, 0.1, 0.2, 0.3]]), none)
    np.testing.assert_allclose(top, [[0, -5, 2, 0], [0, 0, 0.2, 0.3]])
    half = learning.LowPrecision("bfloat16")(jnp.array([1 / 3]), none)
    np.testing.assert_array_equal(half, jnp.array([1 / 3]).astype(jnp.bfloat16).astype(jnp.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: learning.Clip(0), "Clip's bound is a positive number, got 0"),
        (lambda: learning.Normalize(-1.0), "Normalize's scale is a positive number"),
        (lambda: learning.TopK(1.5), "TopK's fraction is at most 1"),
        (lambda: learning.StochasticRounding(1), "bits is an integer from 2 to 16, got 1"),
        (lambda: learning.LowPrecision("int8"), "LowPrecision's dtype is a floating dtype, got 'int8'"),
        (lambda: learning.LowPrecision("bits"), "LowPrecision's dtype is a floating dtype, got 'bits'"),
        (lambda: learning.Clip(True), "Clip's bound is a positive number, got True"),
        (lambda: fnn.FeedbackDense(3, outputs=0), "outputs is a positive integer, got 0"),
    ],
)
def test_bad_options_are_named(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "arguments",
    [(fnn.Dense, learning.Clip(1.0)), (learning.Clip(1.0), RULES[fnn.Dense]), (RULES[fnn.Dense], 1.0)],
    ids=["type", "swapped", "number"],
)
def test_on_delta_takes_a_rule_and_a_function(arguments: Any):
    with pytest.raises(TypeError, match=r"on_delta takes a rule and a function of \(dy, ctx\)"):
        learning.on_delta(*arguments)


@pytest.mark.parametrize(
    ("transform", "made"),
    [(lambda dy, ctx: None, "None"), (lambda dy, ctx: dy[:1], "float32"), (lambda dy, ctx: dy > 0, "bool")],
    ids=["none", "shape", "dtype"],
)
def test_a_transform_keeps_shape_and_dtype(transform: Any, made: str, key: jax.Array):
    net = fnn.Serial(fnn.Dense(4), fnn.Dense(3))
    objective = fnn.Objective(net, fnn.losses.softmax_cross_entropy)
    params, batch = net.init(key, (5,)), (jnp.ones((6, 5)), jnp.zeros(6, int))
    changed = {"1": learning.on_delta(RULES[fnn.Dense], transform)}
    with pytest.raises(backprop.RuleError, match=rf"made {made}.* of the delta of Dense\(3\) at '1', which is float32"):
        gradient(objective, changed, params, batch)


def test_feedback_weights_of_another_width_are_named(key: jax.Array):
    objective = network(5, 4)
    params, batch = draw(objective, key)
    with pytest.raises(backprop.RuleError, match=r"take a delta of 4 numbers, got .* FeedbackDense\(4, outputs=3\)"):
        gradient(objective, learning.DIRECT_FEEDBACK_ALIGNMENT, params, batch)
    direct = network(5, 4, outputs=3)
    params, batch = draw(direct, key)
    with pytest.raises(backprop.RuleError, match=r"say it without outputs, or use DIRECT_FEEDBACK_ALIGNMENT"):
        gradient(direct, learning.FEEDBACK_ALIGNMENT, params, batch)
    with pytest.raises(backprop.RuleError, match="Kolen-Pollack learns feedback weights of w's shape"):
        gradient(direct, learning.KOLEN_POLLACK, params, batch)
