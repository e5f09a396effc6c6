"""The checker: it catches every mutant, passes every correct rule, and says where and why."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn import losses, penalties
from funcnn.backprop import RULES, Rule, Rules
from funcnn.gradcheck import measure as measuring
from funcnn.gradcheck.checker import judge
from tests.problems import NETWORKS, NetworkProblem, each_network

# ---------------------------------------------------------------------------------------------------------------------
# Mutants: each is one thing wrong in one rule, and the arrays whose gradient it spoils.


class Mutant(NamedTuple):
    objective: fnn.Objective
    changed: dict[Any, Rule]
    wrong: set[str]  # arrays that must fail; the others may, where a wrong delta reaches them
    in_shape: tuple[int, ...] = (4,)
    targets: str = "real"
    train: bool = False


def alter_bwd(of: Any, change: Callable[..., tuple[Any, Any]]) -> dict[Any, Rule]:
    """The rule of a type with its result changed: change(dparams, dx, layer, residuals, dy) -> (dparams, dx)."""
    rule = RULES[of]

    def bwd(layer: Any, params: Any, residuals: Any, dy: Any, ctx: Any) -> tuple[Any, Any]:
        return change(*rule.bwd(layer, params, residuals, dy, ctx), layer, residuals, dy)

    return {of: Rule(rule.fwd, bwd)}


def alter_residual(of: Any, change: Callable[[Any], Any]) -> dict[Any, Rule]:
    """The rule of a type with what it keeps changed."""
    rule = RULES[of]

    def fwd(layer: Any, params: Any, x: Any, ctx: Any) -> tuple[Any, Any]:
        y, residuals = rule.fwd(layer, params, x, ctx)
        return y, change(residuals)

    return {of: Rule(fwd, rule.bwd)}


def mlp(activation: fnn.Layer) -> fnn.Objective:
    return fnn.Objective(fnn.Serial(fnn.Dense(4), activation, fnn.Dense(4)), losses.squared_error)


def one_weight(change: Callable[[Any, Any, Any], Any]) -> dict[Any, Rule]:
    """The dense rule with change(dw, x, dz) in the place of dw."""
    return alter_bwd(fnn.Dense, lambda d, dx, layer, x, dz: (d | {"w": change(d["w"], x, dz)}, dx))


def one_bias(change: Callable[[Any, Any], Any]) -> dict[Any, Rule]:
    return alter_bwd(fnn.Dense, lambda d, dx, layer, x, dz: (d | {"b": change(d["b"], dz)}, dx))


def transposed_input_gradient() -> dict[Any, Rule]:
    def bwd(layer: Any, params: Any, x: Any, dz: Any, ctx: Any) -> tuple[Any, Any]:
        return RULES[fnn.Dense].bwd(layer, params, x, dz, ctx)[0], dz @ params["w"]

    return {fnn.Dense: Rule(RULES[fnn.Dense].fwd, bwd)}


def graph_without_one_path() -> dict[Any, Rule]:
    """Of a value that is used twice, only one use gives its gradient."""
    return alter_bwd(fnn.Residual, lambda d, dx, net, residuals, dy: (d, dx - dy))


DIAMOND = NETWORKS["graph-diamond"].objective
SHARED = NETWORKS["graph-shared"].objective
DENSES = {"0/w", "2/w"}
NOISE = fnn.Objective(fnn.Serial(fnn.Dense(6), fnn.Dropout(0.5), fnn.Dense(3)), losses.squared_error)
CLASSES = fnn.Objective(fnn.Serial(fnn.Dense(4), fnn.Tanh(), fnn.Dense(4)), losses.softmax_cross_entropy)

MUTANTS = {
    "gradient-times-1.0005": Mutant(mlp(fnn.Tanh()), one_weight(lambda dw, x, dz: dw * 1.0005), DENSES),
    "sign-of-bias": Mutant(mlp(fnn.Tanh()), one_bias(lambda db, dz: -db), {"0/b", "2/b"}),
    "missing-transpose": Mutant(mlp(fnn.Tanh()), transposed_input_gradient(), {"0/w", "0/b", "input"}),
    "weight-transposed": Mutant(mlp(fnn.Tanh()), one_weight(lambda dw, x, dz: dw.T), DENSES),
    "bias-not-summed": Mutant(mlp(fnn.Tanh()), one_bias(lambda db, dz: dz[0]), {"0/b", "2/b"}),
    "bias-mean-for-sum": Mutant(mlp(fnn.Tanh()), one_bias(lambda db, dz: jnp.mean(dz, axis=0)), {"0/b", "2/b"}),
    "one-over-n-twice": Mutant(
        mlp(fnn.Tanh()),
        alter_bwd(losses.SquaredError, lambda d, df, loss, f, dv: (d, df / f.shape[0])),
        {*DENSES, "0/b", "2/b", "input"},
    ),
    "loss-ignores-weights": Mutant(
        mlp(fnn.Tanh()),
        alter_bwd(losses.SquaredError, lambda d, df, loss, f, dv: (d, df / dv[:, None] / f.shape[0])),
        {*DENSES, "0/b", "2/b", "input"},
    ),
    "one-nan": Mutant(mlp(fnn.Tanh()), one_weight(lambda dw, x, dz: dw.at[1, 1].set(jnp.nan)), DENSES),
    "one-infinity": Mutant(mlp(fnn.Tanh()), one_weight(lambda dw, x, dz: dw.at[0, 0].set(jnp.inf)), DENSES),
    "stale-residual": Mutant(
        mlp(fnn.Sigmoid()), alter_residual(fnn.Sigmoid, lambda y: jnp.roll(y, 1, axis=0)), {"0/w", "0/b", "input"}
    ),
    "residual-before-activation": Mutant(
        mlp(fnn.Tanh()), alter_residual(fnn.Tanh, jnp.arctanh), {"0/w", "0/b", "input"}
    ),
    "wrong-axis": Mutant(
        fnn.Objective(fnn.Serial(fnn.Dense(4), fnn.Softmax()), losses.squared_error),
        alter_bwd(fnn.Softmax, lambda d, da, layer, y, dy: (d, y * (dy - jnp.sum(y * dy, axis=0, keepdims=True)))),
        {"0/w", "0/b", "input"},
    ),
    "dropped-path-at-fan-out": Mutant(
        fnn.Objective(fnn.Serial(fnn.Dense(4), fnn.Residual(fnn.Dense(4))), losses.squared_error),
        graph_without_one_path(),
        {"0/w", "0/b", "input"},
    ),
    "relu-mask-of-delta": Mutant(  # the sign of what comes in from above, where that of the output was meant
        mlp(fnn.Relu()),
        alter_bwd(fnn.Relu, lambda d, da, layer, y, dy: (d, jnp.where(dy > 0, dy, 0))),
        {"0/w", "0/b", "input"},
    ),
    "relu-one-for-zero": Mutant(
        mlp(fnn.Relu()), alter_bwd(fnn.Relu, lambda d, da, layer, y, dy: (d, dy)), {"0/w", "0/b", "input"}
    ),
    "tanh-not-squared": Mutant(
        mlp(fnn.Tanh()), alter_bwd(fnn.Tanh, lambda d, da, layer, y, dy: (d, dy * (1 - y))), {"0/w", "0/b", "input"}
    ),
    "maxout-first-piece": Mutant(
        fnn.Objective(fnn.Maxout(3, pieces=4), losses.squared_error),
        alter_residual(fnn.Maxout, lambda r: (r[0], jnp.full_like(r[1], 128))),
        {"w", "b", "input"},
    ),
    "prelu-positive-side": Mutant(
        mlp(fnn.Prelu()),
        alter_bwd(fnn.Prelu, lambda d, da, layer, a, dy: ({"slope": jnp.sum(a * dy, axis=0)}, da)),
        {"1/slope"},
    ),
    "dropout-without-scale": Mutant(
        NOISE, alter_bwd(fnn.Dropout, lambda d, dx, layer, r, dy: (d, dx / 2)), {"0/w", "0/b", "input"}, train=True
    ),
    "shared-weights-one-use": Mutant(
        SHARED,
        alter_bwd(fnn.Graph, lambda d, dx, net, r, dy: (jax.tree.map(lambda g: g / 3, d), dx)),
        {"a/w", "a/b"},
    ),
    "penalty-twice": Mutant(
        mlp(fnn.Tanh()).replace(penalty=penalties.l2(0.3)),
        alter_bwd(penalties.L2, lambda d, dp, penalty, p, dv: (d, jax.tree.map(lambda g: 2 * g, dp))),
        DENSES,
    ),
    "label-not-subtracted": Mutant(
        CLASSES,
        alter_bwd(
            losses.SoftmaxCrossEntropy,
            lambda d, dz, loss, z, dv: (d, dz + 1e-3 * jax.nn.softmax(z, axis=-1) * dv[:, None]),
        ),
        {*DENSES, "0/b", "2/b", "input"},
        targets="label",
    ),
    "low-precision": Mutant(
        mlp(fnn.Tanh()), one_weight(lambda dw, x, dz: dw.astype(jnp.bfloat16).astype(dw.dtype)), DENSES
    ),
    "bias-of-wrong-shape": Mutant(mlp(fnn.Tanh()), one_bias(lambda db, dz: db[None]), {"0/b", "2/b"}),
    "bias-of-wrong-dtype": Mutant(mlp(fnn.Tanh()), one_bias(lambda db, dz: db.astype(jnp.float16)), {"0/b", "2/b"}),
    "bias-missing": Mutant(
        mlp(fnn.Tanh()), alter_bwd(fnn.Dense, lambda d, dx, *_: ({"w": d["w"]}, dx)), {"0/b", "2/b"}
    ),
    "input-of-wrong-shape": Mutant(
        fnn.Objective(fnn.Dense(4), losses.squared_error),
        alter_bwd(fnn.Dense, lambda d, dx, *_: (d, None if dx is None else dx[:1])),
        {"input"},
    ),
}


@pytest.mark.once
@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_every_mutant_is_caught_where_it_is(mutant: Mutant, key: jax.Array, dtype: str) -> None:
    params, batch = NetworkProblem(mutant.objective, mutant.in_shape, mutant.targets).draw(key, n=4)
    arguments: dict[str, Any] = {"key": jax.random.key(1), "train": True} if mutant.train else {}
    report = fnn.gradcheck.compare(mutant.objective, params, batch, rules=RULES | mutant.changed, **arguments)
    assert not report.passed
    failed = {leaf.path for leaf in report.failed}
    assert mutant.wrong <= failed, str(report)
    clean = {leaf.path for leaf in report.leaves} - mutant.wrong
    assert not clean & failed, str(report)  # a rule's neighbours are not blamed
    assert "FAIL" in str(report)
    assert all(path in str(report).splitlines()[-1] for path in mutant.wrong)
    assert json.loads(report.to_json())["passed"] is False


def test_there_are_mutants_enough() -> None:
    assert len(MUTANTS) >= 12


# ---------------------------------------------------------------------------------------------------------------------
# Correct rules pass, every time. 1,000 points of each network of the problem table, which has every rule in it, are
# measured in one program; float32 arrays are measured in float64 too, so that both dtypes' limits are put to the test.

DRAWS = 1000


@pytest.mark.once
@each_network
def test_every_correct_rule_passes_a_thousand_draws(problem: NetworkProblem, rng: np.random.Generator) -> None:
    train, key = True, jax.random.key(int(rng.integers(2**31)))
    program = (problem.objective, RULES, train, frozenset())

    like, (many_x, many_y) = problem.draw(key, n=3 * DRAWS)
    params = jax.tree.map(lambda p: jnp.asarray(0.5 * rng.normal(size=(DRAWS, *p.shape)), p.dtype), like)
    x, y = (many.reshape(DRAWS, 3, *many.shape[1:]) for many in (many_x, many_y))
    points = params, (x, y), jax.random.split(key, DRAWS), {}
    own = jax.jit(jax.vmap(lambda point: measuring.both(program, point)))(points)
    size = sum(array[0].size for array in measuring.paths(params, x).values())
    outputs = jax.eval_shape(problem.objective.net.apply, like, x[0])
    directions = rng.standard_normal((measuring.DIRECTIONS, size))
    with jax.enable_x64(True):
        c = rng.standard_normal(outputs.shape)
        exact = (measuring.without_casts(problem.objective), *program[1:])
        run = jax.jit(jax.vmap(lambda point, own: measuring.measure(exact, point, own, directions, c)))
        measured = jax.device_get(run(measuring.to_float64(points), measuring.to_float64(own)))
    wrong = []
    for i, path in enumerate(measuring.paths(params, x)):
        for n in range(DRAWS):
            m = measuring.Measured(*(field[n, i] for field in measured))
            verdict = judge(path, (), "float32", "ok", m, m)
            if not verdict.passed:
                wrong.append((n, verdict))
    assert not wrong, f"{len(wrong)} of {DRAWS}: {wrong[:2]}"


def test_the_problem_table_has_every_rule() -> None:
    """Else the thousand draws would miss one."""

    def kinds(value: Any) -> set[type]:
        found = {type(value)}
        for held in getattr(value, "__dataclass_fields__", {}):
            item = getattr(value, held)
            for part in item if isinstance(item, tuple) else (item,):
                found |= kinds(part[1] if isinstance(part, tuple) and len(part) == 2 else part)
        return found

    present = set().union(*(kinds(problem.objective) for problem in NETWORKS.values()))
    present.add(fnn.Repeat)  # is compared with autodiff in tests/backprop/test_saving.py, under every policy
    assert set(RULES) <= present, {kind.__name__ for kind in set(RULES) - present}


# ---------------------------------------------------------------------------------------------------------------------
# What it says at kinks, for networks alone, and of arguments.

NET = fnn.Serial(fnn.Dense(5), fnn.Relu(), fnn.Dense(2))


def test_kink_is_reported_and_not_averaged_away(key: jax.Array) -> None:
    """At x = 0 and b = 0 every relu stands at its kink; a central difference there would see half its slope."""
    params = NET.init(key, (3,))
    report = fnn.gradcheck.compare(NET, params, jnp.zeros((4, 3)))
    kinks = {leaf.path: leaf.kink for leaf in report.leaves}
    assert kinks == {"0/b": True, "0/w": False, "2/b": False, "2/w": False, "input": True}
    assert report.passed
    assert "ok, kink" in str(report)

    half = {fnn.Relu: Rule(RULES[fnn.Relu].fwd, lambda layer, p, y, dy, ctx: ((), jnp.where(y > 0, dy, dy / 2)))}
    halved = fnn.gradcheck.compare(NET, params, jnp.zeros((4, 3)), rules=RULES | half)  # an average of the two sides
    assert {leaf.path for leaf in halved.failed} == {"0/b", "input"}


def test_network_alone_and_objective_with_weights_key_and_train(key: jax.Array) -> None:
    net = fnn.Serial(fnn.Dense(5), fnn.Dropout(0.4), fnn.Dense(2))
    params, x = net.init(key, (3,)), jax.random.normal(key, (6, 3))
    assert fnn.gradcheck.compare(net, params, x, key=key, train=True).passed
    batch = x, jnp.ones((6, 2)), jnp.arange(6.0)
    assert fnn.gradcheck.compare(fnn.Objective(net, losses.mse), params, batch, key=key, train=True).passed


def test_integer_input_has_no_gradient_and_no_line(key: jax.Array) -> None:
    images = jax.random.randint(key, (4, 2, 3), 0, 255, jnp.uint8)
    net = fnn.Serial(fnn.Flatten(), fnn.Dense(3))
    with jax.numpy_dtype_promotion("standard"):  # bytes times float32
        report = fnn.gradcheck.compare(net, net.init(key, (2, 3)), images)
    assert report.passed
    assert [leaf.path for leaf in report.leaves] == ["1/b", "1/w"]


def test_low_precision_compute_is_checked_as_what_it_approximates(key: jax.Array) -> None:
    net = fnn.Cast(fnn.Serial(fnn.Dense(5), fnn.Tanh(), fnn.Dense(2)), "bfloat16")
    params, x = net.init(key, (3,)), jax.random.normal(key, (4, 3))
    report = fnn.gradcheck.compare(net, params, x)
    assert report.passed
    assert max(leaf.error for leaf in report.leaves) > 1e-4  # it did run in bfloat16
    assert max(leaf.error64 for leaf in report.leaves) < 1e-12
    wrong = fnn.gradcheck.compare(net, params, x, rules=RULES | one_weight(lambda dw, x, dz: dw * 1.0005))
    assert {leaf.path for leaf in wrong.failed} == {"0/w", "2/w"}


def test_report_as_json_and_by_eye(key: jax.Array) -> None:
    params = NET.init(key, (3,))
    report = fnn.gradcheck.compare(NET, params, jax.random.normal(key, (4, 3)), seed=3)
    data = json.loads(report.to_json())
    assert data["passed"] is True
    assert data["seed"] == 3
    assert [leaf["path"] for leaf in data["leaves"]] == ["0/b", "0/w", "2/b", "2/w", "input"]
    assert data["leaves"][1]["shape"] == [3, 5]
    lines = str(report).splitlines()
    assert lines[-1] == "passed: all 5 arrays"
    assert "limit" in lines[-2]


def test_same_seed_same_report(key: jax.Array) -> None:
    params, x = NET.init(key, (3,)), jax.random.normal(key, (4, 3))
    first, again, other = (fnn.gradcheck.compare(NET, params, x, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_missing_rule_and_wrong_subject_are_named(key: jax.Array) -> None:
    double = fnn.lift(lambda key, in_shape: (), lambda params, x: 2 * x)
    with pytest.raises(fnn.backprop.RuleError, match="no backward rule for Lifted"):
        fnn.gradcheck.compare(double, (), jnp.ones((2, 3)))
    allowed = fnn.gradcheck.compare(double, (), jnp.ones((2, 3)), rules=Rules(RULES, missing="autodiff"))
    assert allowed.passed
    with pytest.raises(TypeError, match=r"fnn\.Objective or a layer"):
        fnn.gradcheck.compare(lambda p, b: 0.0, (), (jnp.ones((2, 3)),))  # type: ignore[arg-type]
