"""`Rules` as a value: found by path, value or type; joined; checked; replaced, so that a network learns another way."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn import backprop
from funcnn.backprop import RULES, Context, Rule, RuleError, Rules
from tests.backprop.agree import TOLERANCES, assert_agree, draw_layer

MLP = fnn.Serial(fnn.Dense(4), fnn.Tanh(), fnn.Dense(3), fnn.Tanh(), fnn.Dense(2))


def constant(value: float) -> Rule:
    """A rule for a layer without parameters whose dx is that value everywhere, so that one sees which rule ran."""
    return Rule(
        lambda layer, params, x, ctx: (layer.apply(params, x), ()),
        lambda layer, params, nothing, dy, ctx: ((), jnp.full_like(dy, value)),
    )


def dx_of(net: fnn.Layer, rules: Rules) -> float:
    y, pullback = backprop.vjp(net, net.init(jax.random.key(0), (3,)), jnp.ones((2, 3)), rules=rules)
    return float(pullback(jnp.ones_like(y))[1][0, 0])


@dataclasses.dataclass(frozen=True)
class SteepTanh(fnn.Tanh):
    """A subclass whose apply differs, so that the rule of its base would be wrong."""

    def function(self, a):
        return jnp.tanh(2 * a)


def test_a_path_comes_before_a_value_and_a_value_before_a_type():
    by_value = RULES | {fnn.Elu(alpha=2.0): constant(2.0), fnn.Elu: constant(3.0)}
    rules = by_value | {"0/1": constant(1.0)}
    before, elu, other = fnn.Identity(), fnn.Elu(), fnn.Elu(alpha=2.0)
    assert dx_of(fnn.Serial(fnn.Serial(before, other)), rules) == 1.0
    assert dx_of(fnn.Serial(fnn.Serial(before, elu)), rules) == 1.0
    assert dx_of(fnn.Serial(fnn.Serial(other)), by_value) == 2.0
    assert dx_of(fnn.Serial(before, other), by_value) == 2.0
    assert dx_of(fnn.Serial(before, elu), by_value) == 3.0
    assert dx_of(fnn.Elu(), RULES | {"": constant(4.0)}) == 4.0  # the path of a network that is one layer


def test_the_right_side_of_a_join_wins_and_the_left_keeps_its_ways():
    left = Rules({fnn.Tanh: constant(1.0), fnn.Relu: constant(2.0)}, missing="autodiff")
    both = left | {fnn.Tanh: constant(3.0)}
    assert dx_of(fnn.Tanh(), both) == 3.0
    assert dx_of(fnn.Relu(), both) == 2.0
    assert dx_of(fnn.Tanh(), left) == 1.0  # which is as it was
    assert both.missing == "autodiff"
    assert len(both) == 2
    assert set(both) == {fnn.Tanh, fnn.Relu}


def test_rules_are_values():
    one, other = constant(1.0), constant(1.0)
    assert Rules({fnn.Tanh: one}) == Rules({fnn.Tanh: one})
    assert hash(Rules({fnn.Tanh: one})) == hash(Rules({fnn.Tanh: one}))
    assert Rules({fnn.Tanh: one}) != Rules({fnn.Tanh: other})
    assert Rules({fnn.Tanh: one}) != Rules({fnn.Tanh: one}, missing="autodiff")
    assert RULES | {} == RULES
    assert repr(Rules({fnn.Tanh: one, "0/1": one})) == "Rules({'0/1', Tanh}, missing='error')"
    with pytest.raises(TypeError):
        RULES[fnn.Tanh] = one  # type: ignore[index]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (lambda: Rules({fnn.Tanh: lambda x: x}), "a rule is a Rule"),  # type: ignore[dict-item]
        (lambda: Rules({3: constant(1.0)}), "for a type, a path, a layer or a function"),
        (lambda: Rules({}, missing="ignore"), "missing is 'error' or 'autodiff'"),
    ],
)
def test_what_is_no_rule_is_refused(rules, message: str):
    with pytest.raises(RuleError, match=message):
        rules()


def test_a_missing_rule_is_named_with_its_path_and_the_ways_out():
    net = fnn.Serial(fnn.Tanh(), fnn.Residual(fnn.Serial(SteepTanh())))
    with pytest.raises(RuleError) as caught:
        dx_of(net, RULES)
    message = str(caught.value)
    for part in ("SteepTanh()", "'1/body/0'", "that of Tanh is not inherited", "RULES | {SteepTanh: Rule(fwd, bwd)}"):
        assert part in message
    assert "missing='autodiff'" in message


def test_autodiff_stands_in_where_it_is_allowed(rng: np.random.Generator):
    net = fnn.Serial(fnn.Dense(4), SteepTanh(), fnn.Dense(2))
    params, x, dy = draw_layer(rng, net, (3,), 5)
    got = backprop.vjp(net, params, x, rules=Rules(RULES, missing="autodiff"))[1](dy)
    assert_agree(got, jax.vjp(net.apply, params, x)[1](dy), TOLERANCES["float32"])
    only_autodiff = backprop.vjp(net, params, x, rules=Rules({}, missing="autodiff"))[1](dy)
    assert_agree(only_autodiff, got, TOLERANCES["float32"])


def test_a_layer_that_does_not_hash_is_found_by_its_type():
    net = fnn.Dense(2, w_init=Unhashable())
    params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    with pytest.raises(TypeError):
        hash(net)
    assert backprop.vjp(net, params, jnp.ones((4, 3)))[0].shape == (4, 2)


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, key, shape, dtype):
        return jnp.ones(shape, dtype)


# ---------------------------------------------------------------------------------------------------------------------

dense = RULES[fnn.Dense]


def spoiled(spoil) -> Rules:
    """The rules, with a dense one whose gradients go through `spoil`."""

    def bwd(layer, params, residuals, dy, ctx):
        grads, dx = dense.bwd(layer, params, residuals, dy, ctx)
        return spoil(grads), dx

    return RULES | {fnn.Dense: Rule(dense.fwd, bwd)}


SPOILED = {
    "structure": lambda grads: {"w": grads["w"]},
    "order": lambda grads: (grads["w"], grads["b"]),
    "nothing": lambda grads: (),
    "shape": lambda grads: grads | {"w": grads["w"].T},
    "rank": lambda grads: grads | {"b": grads["b"][None]},
    "dtype": lambda grads: grads | {"b": grads["b"].astype("bfloat16")},
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_gradients_of_another_form_are_an_error_at_the_layer(spoil, jit: bool, rng: np.random.Generator):
    net = fnn.Serial(fnn.Tanh(), fnn.Serial(fnn.Tanh(), fnn.Dense(2)))
    objective = fnn.Objective(net, fnn.losses.mse)
    params, x, y = draw_layer(rng, net, (3,), 5)
    run = backprop.value_and_grad(objective, rules=spoiled(spoil))
    with pytest.raises(RuleError, match=r"the rule for Dense\(2\) at '1/1' gave gradients .*'w'"):
        (jax.jit(run) if jit else run)(params, (x, y))
    _, pullback = backprop.vjp(net, params, x, rules=spoiled(spoil), check=False)
    pullback(y)  # for those who want to look at it


def test_an_error_inside_a_rule_says_in_which_layer():
    def bwd(layer, params, residuals, dy, ctx):
        raise ZeroDivisionError("by a user")

    rules = RULES | {fnn.Tanh: Rule(RULES[fnn.Tanh].fwd, bwd)}
    with pytest.raises(ZeroDivisionError) as caught:
        dx_of(fnn.Serial(fnn.Identity(), fnn.Serial(fnn.Tanh())), rules)
    assert caught.value.__notes__[:2] == ["in layer '0': Tanh()", "in layer '1': Serial(Tanh())"]


# ---------------------------------------------------------------------------------------------------------------------


def feedback_bwd(layer, params, x, dz, ctx: Context) -> Any:
    """Feedback alignment: a dense layer whose delta goes back through `ctx.extra`, a fixed matrix, instead of w^T."""
    grads, _ = dense.bwd(layer, params, x, dz, dataclasses.replace(ctx, need_dx=False))
    return grads, dz @ ctx.extra if ctx.need_dx else None


FEEDBACK = RULES | {fnn.Dense: Rule(dense.fwd, feedback_bwd)}


@pytest.mark.usefixtures("x64")
def test_feedback_alignment_with_the_transposed_weights_is_backpropagation(rng: np.random.Generator):
    objective = fnn.Objective(MLP, fnn.losses.squared_error)
    params, x, y = draw_layer(rng, MLP, (3,), 5)

    @jax.jit
    def gradient(params, extras):
        return backprop.value_and_grad(objective, rules=FEEDBACK, extras=extras)(params, (x, y))

    transposed = {path: params[int(path)]["w"].T for path in "024"}
    want = jax.jit(jax.value_and_grad(objective))(params, (x, y))
    assert_agree(gradient(params, transposed), want, TOLERANCES["float64"])

    random = jax.tree.map(lambda b: jnp.asarray(rng.normal(size=b.shape)), transposed)
    value, grads = gradient(params, random)
    assert value == want[0]
    assert_agree(grads[4], want[1][4], TOLERANCES["float64"])  # the last layer's is the true one
    for i in (0, 2):
        assert np.abs(grads[i]["w"] - want[1][i]["w"]).max() > 0.1 * np.abs(want[1][i]["w"]).max()


def direct_bwd(layer, params, y, dy, ctx: Context) -> Any:
    """Direct feedback alignment: each hidden unit hears the output's delta through a fixed matrix, and nothing else."""
    assert ctx.delta is not None
    return (), (ctx.delta @ ctx.extra) * (1 - y**2)


@pytest.mark.usefixtures("x64")
def test_direct_feedback_alignment_hears_the_output_delta_in_every_layer(rng: np.random.Generator):
    """Nokland (2016), against its equations in NumPy."""
    objective = fnn.Objective(MLP, fnn.losses.squared_error)
    params, x, y = draw_layer(rng, MLP, (3,), 5)
    b = {"1": jnp.asarray(rng.normal(size=(2, 4))), "3": jnp.asarray(rng.normal(size=(2, 3)))}
    rules = RULES | {fnn.Tanh: Rule(RULES[fnn.Tanh].fwd, direct_bwd)}
    _, grads = backprop.value_and_grad(objective, rules=rules, extras=b)(params, (x, y))

    h1 = np.tanh(x @ params[0]["w"] + np.asarray(params[0]["b"])[None])
    h2 = np.tanh(h1 @ params[2]["w"] + np.asarray(params[2]["b"])[None])
    e = 2 * (h2 @ params[4]["w"] + np.asarray(params[4]["b"])[None] - y) / 5
    d2, d1 = (e @ b["3"]) * (1 - h2**2), (e @ b["1"]) * (1 - h1**2)
    want = tuple({"w": a.T @ d, "b": d.sum(0)} for a, d in ((x, d1), (h1, d2), (h2, e)))
    assert_agree((grads[0], grads[2], grads[4]), want, TOLERANCES["float64"])


NESTED = fnn.Serial(
    fnn.Residual(fnn.Serial(fnn.Dense(3), fnn.Tanh())),
    fnn.Graph({"a": fnn.Node(fnn.Dense(3), "input"), "y": fnn.Node(fnn.Dense(2), "a")}, output="y"),
)


@pytest.mark.parametrize("how", ["value_and_grad", "vjp", "record", "with_rules"])
def test_every_layer_hears_of_the_output_delta_and_of_its_own_extra(how: str, rng: np.random.Generator):
    heard: dict[str, Any] = {}

    def listening(rule: Rule) -> Rule:
        def bwd(layer, params, residuals, dy, ctx):
            heard["/".join(ctx.path)] = ctx.delta, ctx.extra
            return rule.bwd(layer, params, residuals, dy, ctx)

        return Rule(rule.fwd, bwd)

    rules = Rules({kind: listening(rule) if issubclass(kind, fnn.Layer) else rule for kind, rule in RULES.items()})
    objective = fnn.Objective(NESTED, fnn.losses.squared_error)
    params, x, y = draw_layer(rng, NESTED, (3,), 5)
    delta = jax.grad(lambda f: jnp.mean(objective.loss(f, y)))(NESTED.apply(params, x))
    extras = {"0/body/0": jnp.ones(7), "1": {"a": 3}}
    if how == "value_and_grad":
        backprop.value_and_grad(objective, rules=rules, extras=extras)(params, (x, y))
    elif how == "record":
        backprop.record(objective, rules=rules, extras=extras)(params, (x, y))
    elif how == "vjp":
        backprop.vjp(NESTED, params, x, rules=rules, extras=extras)[1](delta)
    else:
        jax.grad(objective.replace(net=backprop.with_rules(NESTED, rules)))(params, (x, y))
    paths = {"", "0", "0/body", "0/body/0", "0/body/1", "1", "1/a", "1/y"}
    assert heard.keys() - {"0/shortcut"} == paths
    for told, _ in heard.values():
        assert_agree(told, delta, TOLERANCES["float32"])
    if how != "with_rules":  # which has no place for extras
        assert {path for path, (_, extra) in heard.items() if extra is not None} == extras.keys()
        assert heard["0/body/0"][1] is extras["0/body/0"]


def test_in_the_forward_pass_there_is_no_delta_yet(rng: np.random.Generator):
    def fwd(layer, params, x, ctx):
        assert ctx.delta is None
        return layer.apply(params, x), ()

    dx_of(fnn.Tanh(), RULES | {fnn.Tanh: Rule(fwd, constant(1.0).bwd)})


def test_a_path_that_is_not_in_the_network_is_an_error():
    """Else a mistyped path would leave the old rule in place without a word."""
    net = fnn.Serial(fnn.Dense(2), fnn.Tanh())
    params, x = net.init(jax.random.key(0), (3,)), jnp.ones((2, 3))
    mistyped: list[dict[str, Any]] = [{"rules": RULES | {"7/x": constant(1.0)}}, {"extras": {"7/x": 1.0}}]
    for arguments in mistyped:
        with pytest.raises(backprop.RuleError, match=r"given for \['7/x'\]; the network's paths are \['', '0', '1'\]"):
            backprop.vjp(net, params, x, **arguments)


@pytest.mark.parametrize("looked_at", ["value_and_grad", "rows", "record", "hessian_diagonal", "diagnose"])
def test_parameters_of_integers_have_no_gradient(looked_at: str):
    objective = fnn.Objective(fnn.Dense(1), fnn.losses.squared_error)
    params = {"w": jnp.ones((2, 1), int), "b": jnp.zeros(1)}
    batch = jnp.ones((3, 2)), jnp.ones((3, 1))
    with pytest.raises(TypeError, match=r"params\['w'\] is of int32, and only floating parameters have a gradient"):
        if looked_at == "diagnose":
            backprop.diagnose(objective, params, batch)
        else:
            getattr(backprop, looked_at)(objective)(params, batch)


@pytest.mark.parametrize(
    "wrong", [lambda dx: None, lambda dx: dx[0], lambda dx: dx.astype(jnp.bfloat16)], ids=["none", "shape", "dtype"]
)
def test_an_input_gradient_of_the_wrong_form_names_the_layer_that_gave_it(wrong):
    tanh = RULES[fnn.Tanh]

    def bwd(layer, params, y, dy, ctx):
        return (), wrong(tanh.bwd(layer, params, y, dy, ctx)[1])

    net = fnn.Serial(fnn.Dense(2), fnn.Tanh())
    params, x = net.init(jax.random.key(0), (3,)), jnp.ones((2, 3))
    y, pullback = backprop.vjp(net, params, x, rules=RULES | {fnn.Tanh: Rule(tanh.fwd, bwd)})
    with pytest.raises(backprop.RuleError, match=r"Tanh\(\) at '1' gave the input gradient"):
        pullback(y)


def test_a_pullback_takes_the_outputs_shape_and_dtype_only():
    y, pullback = backprop.vjp(fnn.Tanh(), (), jnp.ones((2, 3)))
    for wrong in (y[:1], y[0, 0], y.astype(jnp.bfloat16)):
        with pytest.raises(ValueError, match=r"of shape \(2, 3\) and dtype float32, got"):
            pullback(wrong)
