"""Saving policies: the same gradient, exactly or within what the policy gives away, from less that is kept."""

import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn import backprop
from funcnn.backprop import RULES, RuleError, saving
from tests.backprop import dense

pytestmark = pytest.mark.once

BLOCK = fnn.Serial(fnn.Dense(6), fnn.Relu(), fnn.Dropout(0.3), fnn.Dense(6), fnn.LeakyRelu(0.2))
CHAIN = fnn.Serial(fnn.Dense(6), BLOCK, fnn.Silu(), fnn.Dense(3))
DEEP = fnn.Serial(fnn.Dense(6), fnn.Repeat(BLOCK, 7), fnn.Dense(3))

EXACT = {
    "keep": {fnn.Dense: saving.keep},
    "recompute-layer": {fnn.Relu: saving.recompute, "0": saving.recompute},
    "recompute-network": {"1": saving.recompute},
    "one-bit": {fnn.Relu: saving.one_bit, fnn.LeakyRelu: saving.one_bit},
    "offload": {fnn.Dense: saving.offload, "1": saving.offload},
    "segments": {fnn.Repeat: saving.Segments()},
    "segments-of-two": {"1": saving.Segments(2), fnn.Relu: saving.one_bit},
    "segments-of-one": {"1": saving.Segments(1)},
    "segments-longer": {"1": saving.Segments(50)},
    "recompute-block": {"1/block": saving.recompute},
}


def problem(net: fnn.Layer, key: jax.Array) -> tuple[fnn.Objective, Any, Any]:
    x = jax.random.normal(key, (9, 4))
    weight = jnp.ones(9).at[2].set(0.5)
    objective = fnn.Objective(net, fnn.losses.softmax_cross_entropy)
    return objective, net.init(key, (4,)), (x, jnp.arange(9) % 3, weight)


def gradient(objective: fnn.Objective, params: Any, batch: Any, key: jax.Array, rules: Any) -> jax.Array:
    function = jax.jit(lambda p: backprop.value_and_grad(objective, rules=rules)(p, batch, key=key, train=True))
    return dense.flat(function(params)[1])


@pytest.mark.parametrize("net", [CHAIN, DEEP], ids=["chain", "repeat"])
@pytest.mark.parametrize("policies", EXACT.values(), ids=EXACT.keys())
def test_an_exact_policy_changes_no_gradient(net: fnn.Layer, policies: Any, key: jax.Array):
    known = "1/block" not in policies or net is DEEP
    segmented = any(isinstance(policy, saving.Segments) for policy in policies.values())
    if not known or (segmented and net is CHAIN):
        pytest.skip("of Repeat")
    with jax.enable_x64(True):
        objective, params, batch = problem(net, key)
        wanted = dense.flat(jax.jit(jax.grad(lambda p: objective(p, batch, key=key, train=True)))(params))
        got = gradient(objective, params, batch, key, RULES.saving(policies))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("length", "whole"), [(None, 2), (1, 7), (2, 3), (3, 2), (50, 1)])
def test_segments_keep_the_input_of_each(length: int | None, whole: int):
    """Of 7 blocks: one input for each whole segment, and that of the blocks which are left over."""
    net = fnn.Repeat(fnn.Serial(fnn.Dense(4), fnn.Tanh()), 7)
    kept = backprop.residuals(net, (4,), 9, rules=RULES.saving({fnn.Repeat: saving.Segments(length)})).kept
    assert [one.shape for one in kept] == [(whole, 9, 4), (9, 4)]


def test_what_is_offloaded_crosses_the_two_passes_in_the_hosts_memory(key: jax.Array):
    """A CPU has no other memory, so that it is read in the program: each layer's residuals go, and come back."""
    objective, params, batch = problem(fnn.Serial(fnn.Dense(4), fnn.Tanh(), fnn.Dense(3)), key)

    def kinds(rules: Any) -> list[str]:
        function = backprop.value_and_grad(objective, rules=rules)
        return re.findall(r"MemorySpace\.(\w+)", str(jax.make_jaxpr(lambda p: function(p, batch))(params)))

    assert kinds(RULES) == []
    assert kinds(RULES.saving({fnn.Dense: saving.offload})) == ["Host", "Host", "Device", "Device"]


def test_rounded_residuals_round_the_weights_gradient_and_no_delta(key: jax.Array):
    objective, params, batch = problem(CHAIN.replace(layers=(*CHAIN.layers[:1], *CHAIN.layers[2:])), key)
    plain, lower = RULES, RULES.saving({fnn.Dense: saving.bfloat16})
    exact, rounded = (jax.jit(backprop.record(objective, rules=rules))(params, batch) for rules in (plain, lower))
    for path, entry in exact.items():
        np.testing.assert_array_equal(entry.dy, rounded[path].dy)
        if isinstance(entry.layer, fnn.Dense):
            np.testing.assert_array_equal(entry.grads["b"], rounded[path].grads["b"])
            x = entry.x.astype(jnp.bfloat16).astype(jnp.float32)
            np.testing.assert_allclose(rounded[path].grads["w"], x.T @ entry.dy, rtol=1e-5, atol=1e-7)
            assert not np.allclose(entry.grads["w"], rounded[path].grads["w"], rtol=1e-5, atol=1e-7)
    half = backprop.residuals(objective.net, (4,), 9, rules=RULES.saving({fnn.Dense: saving.Lower("float16")}))
    assert {one.dtype for one in half.kept if half.layers[one.path] == fnn.Dense(3)} == {"uint16"}


@pytest.mark.parametrize("layer", [fnn.Sigmoid(), fnn.Silu(), fnn.Gelu(), fnn.Swish(beta=2.0)], ids=repr)
def test_few_bits_are_the_best_steps_for_the_slope(layer: fnn.Layer, key: jax.Array):
    """The error of the slope at the points that it was fitted to falls with the bits; one bit can be looked for."""
    a = jnp.linspace(-saving._SEEN, saving._SEEN, saving._POINTS)[:, None]
    slope = backprop.vjp(layer, (), a)[1](jnp.ones_like(a))[1]
    errors = []
    for bits in (1, 2, 4, 8):
        rules = RULES.saving({type(layer): saving.FewBits(bits)})
        y, pullback = backprop.vjp(layer, (), a, rules=rules)
        np.testing.assert_array_equal(y, layer.apply((), a))
        got = pullback(jnp.ones_like(a))[1]
        assert len(np.unique(got)) <= 2**bits
        errors.append(float(jnp.mean(jnp.square(got - slope))))
    assert errors[0] > 3 * errors[1] > 9 * errors[2] > 27 * errors[3]
    s = np.asarray(slope[:, 0], np.float64)
    best = min(np.sum((s[:i] - s[:i].mean()) ** 2) + np.sum((s[i:] - s[i:].mean()) ** 2) for i in range(1, len(s)))
    np.testing.assert_allclose(errors[0], best / len(s), rtol=1e-4)


def test_levels_against_every_choice():
    """Of 9 points and 3 pieces all cuts can be tried."""
    rng = np.random.default_rng(3)
    a, slope = np.sort(rng.standard_normal(9)), rng.standard_normal(9)
    cuts = [(0, i, j, 9) for i in range(1, 8) for j in range(i + 1, 9)]

    def pieces(cut: Any) -> list[Any]:
        return [slope[begin:end] for begin, end in itertools.pairwise(cut)]

    best = min(cuts, key=lambda cut: sum(np.sum((piece - piece.mean()) ** 2) for piece in pieces(cut)))
    breaks, levels = saving.levels(a, slope, 3)
    np.testing.assert_allclose(levels, [piece.mean() for piece in pieces(best)])
    np.testing.assert_allclose(breaks, [(a[i - 1] + a[i]) / 2 for i in best[1:-1]])


def test_a_repeat_is_the_serial_of_its_blocks(key: jax.Array):
    with jax.enable_x64(True):
        net = fnn.Repeat(BLOCK, 4)
        params, x = net.init(key, (6,)), jax.random.normal(key, (5, 6))
        same = fnn.Serial(*[BLOCK] * 4)
        apart = tuple(jax.tree.map(lambda leaf, k=k: leaf[k], params) for k in range(4))
        for options in ({}, {"key": key, "train": True}):
            np.testing.assert_allclose(
                net.apply(params, x, **options), same.apply(apart, x, **options), rtol=0, atol=1e-14
            )
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), apart, same.init(key, (6,))))
    assert net.multiply_adds((6,)) == same.multiply_adds((6,)) and net.out_shape((6,)) == (6,)


@pytest.mark.parametrize("policies", [{}, {fnn.Repeat: saving.Segments(3)}], ids=["keep", "segments"])
def test_a_repeat_has_rows_and_tangents(policies: Any, key: jax.Array):
    rules = RULES.saving(policies)
    with jax.enable_x64(True):
        block = fnn.Serial(fnn.Dense(3), fnn.Tanh())
        objective, params, batch = problem(fnn.Serial(fnn.Dense(3), fnn.Repeat(block, 7)), key)
        rows = jax.jit(backprop.rows(objective, rules=rules))(params, batch)
        got = dense.flat_rows(backprop.quantities.gradients(rows))
        # An example of weight 0.5 counts half in the mean, and its own gradient is what it is.
        np.testing.assert_allclose(got, dense.each_gradient(objective, params, batch), rtol=0, atol=1e-10)
        v = jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape), params)
        product = jax.jit(lambda p, v: backprop.gauss_newton_product(objective, rules=rules)(p, batch, v))(params, v)
        wanted = dense.gauss_newton(objective, params, batch) @ dense.flat(v)
        np.testing.assert_allclose(dense.flat(product), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "block",
    [
        fnn.Serial(fnn.Dense(4), fnn.Dropout(0.5)),
        fnn.Serial(fnn.Reshape((2, 2)), fnn.Dense(2), fnn.Reshape((4,))),
        fnn.Repeat(fnn.Serial(fnn.Dense(4), fnn.Tanh()), 2),
    ],
    ids=["dropout", "reshape", "repeat"],
)
def test_rows_of_any_block_are_those_of_its_serial(block: fnn.Layer, key: jax.Array, x64: None):
    """In training: each example meets the mask that it met on its way forward."""
    net = fnn.Serial(fnn.Dense(4), fnn.Repeat(block, 3))
    objective = fnn.Objective(net, fnn.losses.squared_error)
    params = net.init(key, (4,))
    batch = jax.random.normal(key, (5, 4)), jax.random.normal(jax.random.fold_in(key, 1), (5, 4))
    rows = jax.jit(backprop.rows(objective), static_argnames="train")(params, batch, key=key, train=True)
    got = dense.flat_rows(backprop.quantities.gradients(rows))

    def loss(p: Any, n: Any) -> Any:
        return objective.loss(net.apply(p, batch[0], key=key, train=True), batch[1])[n]

    each = jax.vmap(jax.grad(loss), (None, 0))(params, jnp.arange(5))
    np.testing.assert_allclose(got, dense.flat_rows(each), rtol=0, atol=1e-10)


def test_a_policy_for_a_whole_network_and_curvature(key: jax.Array):
    objective, params, batch = problem(fnn.Serial(fnn.Dense(3), fnn.Relu(), fnn.Dense(3)), key)
    plain, other = RULES, RULES.saving({fnn.Serial: saving.recompute, fnn.Relu: saving.one_bit})
    direction = jax.tree.map(jnp.ones_like, params)
    for function in (backprop.kfra_factors, backprop.hessian_diagonal, backprop.hessian_product):
        given = (direction,) if function is backprop.hessian_product else ()
        got, want = (jax.jit(function(objective, rules=rules))(params, batch, *given) for rules in (other, plain))
        np.testing.assert_allclose(dense.flat(got), dense.flat(want), rtol=1e-5, atol=1e-6)


def test_depth_costs_no_program():
    def size(n: int) -> int:
        net = fnn.Repeat(fnn.Serial(fnn.Dense(4), fnn.Relu()), n)
        objective = fnn.Objective(net, fnn.losses.squared_error)
        params = jax.eval_shape(lambda: net.init(jax.random.key(0), (4,)))
        x = jax.ShapeDtypeStruct((2, 4), jnp.float32)
        return len(jax.jit(backprop.value_and_grad(objective)).lower(params, (x, x)).as_text())

    assert abs(size(500) - size(5)) < 0.02 * size(5)  # digits of the numbers


def test_what_is_kept_is_counted_once_and_as_it_is():
    net = fnn.Serial(fnn.Dense(16), fnn.Relu(), fnn.Dense(16), fnn.Gelu(), fnn.Dense(2))
    found = backprop.residuals(net, (8,), 32)
    seen = [(one.path, one.name, one.shape, one.bytes, one.same_as) for one in found.kept]
    assert seen == [
        ("0", "input", (32, 8), 1024, None),
        ("1", "output", (32, 16), 2048, None),
        ("2", "input", (32, 16), 0, "1"),
        ("3", "input", (32, 16), 2048, None),
        ("4", "input", (32, 16), 2048, None),
    ]
    assert found.bytes == 7168 < found.autodiff_bytes and found.temporary > 0 < found.autodiff_temporary
    policies = {fnn.Dense: saving.bfloat16, fnn.Relu: saving.one_bit, fnn.Gelu: saving.FewBits(3)}
    less = backprop.residuals(net, (8,), 32, rules=RULES.saving(policies))
    assert less.bytes == 512 + 64 + 1024 + 3 * 64 + 1024 and "uint8" in str(less)


def test_a_repeats_blocks_keep_input_and_output_once():
    net = fnn.Repeat(fnn.Serial(fnn.Dense(16), fnn.Relu()), 10)
    found = backprop.residuals(net, (16,), 32)
    assert found.bytes == (10 + 1) * 32 * 16 * 4  # the inputs, and the last output
    found = backprop.residuals(net, (16,), 32, rules=RULES.saving({fnn.Repeat: saving.Segments()}))
    assert found.bytes == (2 + 1) * 32 * 16 * 4  # of each 4 of 10 blocks


def test_bits_have_a_name():
    policies = {fnn.Relu: saving.one_bit, fnn.Silu: saving.FewBits(2)}
    found = backprop.residuals(fnn.Serial(fnn.Relu(), fnn.Silu()), (16,), 4, rules=RULES.saving(policies))
    assert [(one.path, one.name, one.bytes) for one in found.kept] == [
        ("0", "bits/0", 8), ("1", "bits/0", 8), ("1", "bits/1", 8)
    ]  # fmt: skip
    with pytest.raises(TypeError, match=r"residuals takes a layer, such as objective\.net"):
        backprop.residuals(fnn.Objective(fnn.Dense(1), fnn.losses.mse), (2,), 4)  # pyright: ignore[reportArgumentType]


def test_rules_with_policies_are_values():
    one, other = (RULES.saving({fnn.Dense: saving.Lower("bfloat16"), "1": saving.Segments(4)}) for _ in range(2))
    assert one == other and hash(one) == hash(other) and one != RULES != RULES.saving({fnn.Dense: saving.recompute})
    dense_rule = backprop.Rule(RULES[fnn.Dense].fwd, RULES[fnn.Dense].bwd)
    changed = one | {fnn.Dense: dense_rule}
    assert changed.saved == one.saved and changed.find(fnn.Dense(3)) != one.find(fnn.Dense(3))
    assert one.find(fnn.Dense(3)) is other.find(fnn.Dense(3))


def test_bad_policies(key: jax.Array):
    with pytest.raises(RuleError, match="a saving policy is a function from rule to rule"):
        RULES.saving({fnn.Relu: "one bit"})  # pyright: ignore[reportArgumentType]
    with pytest.raises(RuleError, match=r"saving.FewBits\(4\), got <class"):
        RULES.saving({fnn.Silu: saving.FewBits})  # pyright: ignore[reportArgumentType]
    with pytest.raises(RuleError, match="saving takes a mapping from layers to policies"):
        RULES.saving(saving.recompute)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RuleError, match="a saving policy is for a type, a path"):
        RULES.saving({3: saving.keep})
    with pytest.raises(RuleError, match="paths are"):
        gradient(*problem(CHAIN, key), key, RULES.saving({"7": saving.keep}))
    with pytest.raises(RuleError, match=r"one bit is what .*Silu\(\) at '2'; use saving"):
        gradient(*problem(CHAIN, key), key, RULES.saving({"2": saving.one_bit}))
    with pytest.raises(RuleError, match=r"one bit is what .*Dense\(3\) at '3'; use saving.bfloat16, or recompute"):
        gradient(*problem(CHAIN, key), key, RULES.saving({"3": saving.one_bit}))
    with pytest.raises(RuleError, match=r"FewBits are for activations .*Dense\(3\) at '3'"):
        gradient(*problem(CHAIN, key), key, RULES.saving({"3": saving.FewBits(4)}))
    with pytest.raises(RuleError, match="Segments are of Repeat"):
        gradient(*problem(CHAIN, key), key, RULES.saving({"1": saving.Segments()}))
    for bad in (0, 9, 2.5, True):
        with pytest.raises(ValueError, match="1 to 8 bits"):
            saving.FewBits(bad)  # pyright: ignore[reportArgumentType]
    for bad in ("int8", "bits", "no"):
        with pytest.raises(ValueError, match="floating dtype"):
            saving.Lower(bad)
    with pytest.raises(ValueError, match="positive integer"):
        saving.Segments(0)
    with pytest.raises(fnn.LayerError, match=r"at 'block'|outputs have the shape of its inputs"):
        fnn.Repeat(fnn.Dense(3), 2).init(key, (4,))
    with pytest.raises(fnn.LayerError, match="first axis of length 3"):
        fnn.Repeat(fnn.Dense(4), 3).apply(fnn.Repeat(fnn.Dense(4), 2).init(key, (4,)), jnp.ones((1, 4)))
