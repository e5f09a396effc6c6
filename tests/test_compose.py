"""Combinators: what they compute, their paths in errors and keys, the graphs that are none, Cast and WeightNoise."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn.layer import LayerError
from funcnn.wrappers import select_leaves
from tests.problems import BATCHED

EXACT = 1e-12  # float64, sums of a few numbers of order 1
UNTYPED: Any = fnn  # for the calls that a type checker would refuse


def shapes(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.shape, params)


def message_of(call: Callable[[], Any]) -> str:
    with pytest.raises(LayerError) as caught:
        call()
    return str(caught.value)


# What they compute.


def test_values_by_hand(x64: None, rng: np.random.Generator):
    """Every combinator, against the same equations in NumPy."""
    x = rng.normal(size=(5, 4))
    w, v, b = rng.normal(size=(4, 4)), rng.normal(size=(4, 4)), rng.normal(size=4)
    dense, plain = fnn.Dense(4), fnn.Dense(4, bias=False)
    p, q = {"w": w, "b": b}, {"w": v}
    a = x @ w + b
    t = np.tanh(a)
    nets = {
        "serial": (fnn.Serial(dense, fnn.Tanh(), plain), (p, (), q), t @ v),
        "residual": (fnn.Residual(fnn.Serial(dense, fnn.Tanh())), {"body": (p, ()), "shortcut": ()}, t + x),
        "shortcut": (fnn.Residual(dense, shortcut=plain), {"body": p, "shortcut": q}, a + x @ v),
        "concat": (fnn.Parallel(dense, fnn.Tanh()), (p, ()), np.concatenate([a, np.tanh(x)], -1)),
        "add": (fnn.Parallel(dense, fnn.Tanh(), plain, join="add"), (p, (), q), a + np.tanh(x) + x @ v),
        "one": (fnn.Parallel(fnn.Tanh()), ((),), np.tanh(x)),
        "graph": (
            fnn.Graph(
                {
                    "a": (dense, "input"),
                    "b": (fnn.Tanh(), "a"),
                    "c": fnn.Node(dense, ("a", "b", "input"), params_of="a"),
                    "d": fnn.Node(fnn.Identity(), ("c", "b"), join="concat"),
                },
                "d",
            ),
            {"a": p, "b": (), "c": (), "d": ()},
            np.concatenate([(a + t + x) @ w + b, t], -1),
        ),
    }

    @jax.jit
    def run(x: jax.Array) -> dict[str, jax.Array]:
        return {name: net.apply(params, x) for name, (net, params, _) in nets.items()}

    for name, got in run(x).items():
        expected = nets[name][2]
        np.testing.assert_allclose(got, expected, rtol=EXACT, atol=EXACT, err_msg=name)
        assert nets[name][0].out_shape((4,)) == expected.shape[1:]


def test_parameters_are_nested_as_the_network_is(key: jax.Array):
    net = fnn.Serial(
        fnn.Dense(3),
        fnn.Residual(fnn.Serial(fnn.Dense(3), fnn.Tanh())),
        fnn.Parallel(fnn.Dense(2), fnn.Identity()),
        BATCHED["graph-diamond"].layer,
    )
    assert shapes(jax.eval_shape(lambda: net.init(key, (4,)))) == (
        {"w": (4, 3), "b": (3,)},
        {"body": ({"w": (3, 3), "b": (3,)}, ()), "shortcut": ()},
        ({"w": (3, 2), "b": (2,)}, ()),
        {
            "h": {"w": (5, 4), "b": (4,)},
            "left": (),
            "right": ({"w": (4, 3), "b": (3,)}, ()),
            "y": {"w": (12, 2), "b": (2,)},
        },
    )
    assert net.out_shape((4,)) == (2,)
    assert net.multiply_adds((4,)) == 12 + 9 + 6 + (20 + 12 + 24)


def test_a_network_is_a_layer_in_another(key: jax.Array):
    """Nested or flat, the same weights give the same outputs; 30 levels are no more than one."""
    layers = (fnn.Dense(3), fnn.Tanh(), fnn.Dense(2))
    flat, nested = fnn.Serial(*layers), fnn.Serial(fnn.Serial(*layers[:2]), layers[2])
    params = flat.init(key, (4,))
    x = jax.random.normal(key, (5, 4))
    y = flat.apply(params, x)
    np.testing.assert_array_equal(nested.apply((params[:2], params[2]), x), y)
    deep, deep_params = flat, params
    for _ in range(30):
        deep, deep_params = fnn.Serial(deep), (deep_params,)
    np.testing.assert_array_equal(deep.apply(deep_params, x), y)
    assert deep.out_shape((4,)) == (2,)


def test_layers_of_equal_description_start_with_other_weights(key: jax.Array):
    block = fnn.Dense(4)
    nets = [
        fnn.Serial(block, block, fnn.Serial(block)),
        fnn.Parallel(block, block),
        fnn.Residual(block, shortcut=block),
        fnn.Graph({"a": (block, "input"), "b": (block, "a")}, "b"),
    ]
    for net in nets:
        params = net.init(key, (4,))
        weights = [np.asarray(leaf) for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
        assert len({w.tobytes() for w in weights}) == len(weights) >= 2
        again = net.init(key, (4,))
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True))


# Keys.


def test_each_layer_draws_numbers_of_its_own(key: jax.Array):
    drop = fnn.Dropout(0.5)
    nets = {
        "serial": fnn.Parallel(drop, drop, fnn.Serial(drop), fnn.Serial(drop, fnn.Identity())),
        "graph": fnn.Graph(
            {
                "a": (drop, "input"),
                "b": (drop, "input"),
                "y": fnn.Node(fnn.Identity(), ("a", "b"), join="concat"),
            },
            "y",
        ),
        "residual": fnn.Residual(fnn.GaussianNoise(1.0), shortcut=fnn.GaussianNoise(1.0)),
    }
    x = jnp.ones((3, 40))

    @jax.jit
    def run(key: jax.Array) -> dict[str, jax.Array]:
        return {
            name: net.apply(jax.eval_shape(lambda net=net: net.init(key, (40,))), x, key=key, train=True)
            for name, net in nets.items()
        }

    got, again, other = run(key), run(key), run(jax.random.fold_in(key, 1))
    for name, columns in (("serial", 4), ("graph", 2)):
        masks = np.split(np.asarray(got[name]), columns, -1)
        assert len({mask.tobytes() for mask in masks}) == columns, name
    noise = np.asarray(got["residual"]) - 2
    assert abs(noise.std() - np.sqrt(2)) < 0.4  # 120 sums of two independent draws; the same twice would give 2
    for name in nets:
        np.testing.assert_array_equal(got[name], again[name])
        assert not np.array_equal(got[name], other[name])


NESTED = fnn.Serial(fnn.Tanh(), fnn.Residual(fnn.Serial(fnn.Identity(), fnn.Dropout(0.5))))
NESTED_PARAMS = ((), {"body": ((), ()), "shortcut": ()})
GRAPH = fnn.Graph({"h": (fnn.Tanh(), "input"), "noisy": (fnn.Parallel(fnn.GaussianNoise(0.1)), "h")}, "noisy")


@pytest.mark.parametrize(
    ("net", "params", "path"),
    [
        (NESTED, NESTED_PARAMS, "1/body/1"),
        (GRAPH, {"h": (), "noisy": ((),)}, "noisy/0"),
        (fnn.Cast(fnn.Serial(fnn.Dropout(0.1)), "bfloat16"), ((),), "0"),
        (fnn.Serial(fnn.WeightNoise(fnn.Dense(2), 0.1)), ({"w": np.zeros((2, 2)), "b": np.zeros(2)},), "0"),
    ],
    ids=["serial", "graph", "cast", "weight_noise"],
)
def test_a_missing_key_names_the_path_of_the_layer(net: fnn.Layer, params: Any, path: str):
    message = message_of(lambda: net.apply(params, jnp.ones((3, 2)), train=True))
    assert message.startswith(f"at '{path}': ")
    assert "draws random numbers under train=True and got no key" in message
    assert "key=jax.random.key(0)" in message


# Parameters and inputs that do not fit.


def test_parameters_of_another_network_are_named_by_path_and_shape(key: jax.Array):
    net = fnn.Serial(fnn.Dense(3), fnn.Residual(fnn.Serial(fnn.Dense(3), fnn.Tanh())), fnn.Dense(2))
    params = net.init(key, (4,))
    x = jnp.zeros((5, 4))
    wrong = (params[0], {"body": (fnn.Dense(7).init(key, (3,)), ()), "shortcut": ()}, params[2])
    message = message_of(lambda: net.apply(wrong, x))
    assert message.startswith("at '1/body/0': Dense(3) needs parameters {'w': (any, 3), 'b': (3,)}, got")
    assert "float32[3, 7]" in message
    assert "net.init(key, x.shape[1:])" in message
    traced = message_of(lambda: jax.eval_shape(net.apply, wrong, x))
    assert traced.split("got")[0] == message.split("got")[0]

    message = message_of(lambda: net.apply(params[:2], x))
    assert message.startswith("Serial of 3 layers needs a tuple of 3 entries, one a layer, got ({")
    message = message_of(lambda: net.apply((params[0], {"body": params[1]["body"]}, params[2]), x))
    assert message.startswith("at '1': Residual needs a dict with the entries ['body', 'shortcut'], got {'body': ")
    message = message_of(lambda: net.apply(params, jnp.zeros((5, 6))))
    assert message.startswith("at '0': Dense(3) has parameters for inputs of shape (..., 4) and got x of shape (5, 6)")
    graph = BATCHED["graph-diamond"].layer
    message = message_of(lambda: graph.apply({"h": ()}, x))
    assert message.startswith("Graph needs a dict with the entries ['h', 'left', 'right', 'y'], got {'h': ()}")
    message = message_of(lambda: fnn.Parallel(fnn.Tanh(), fnn.Relu()).apply(((),), x))
    assert message.startswith("Parallel of 2 layers needs a tuple of 2 entries")


def test_shapes_that_do_not_fit_are_found_before_any_number_is_computed(key: jax.Array):
    cases = {
        "at '1': Residual(Dense(3)) adds arrays of one shape, got (3,), (4,)": fnn.Serial(
            fnn.Dense(4), fnn.Residual(fnn.Dense(3)), fnn.Dense(2)
        ),
        "at '0': Parallel(Dense(3), Dense(2), join='add') adds arrays of one shape, got (3,), (2,)": fnn.Serial(
            fnn.Parallel(fnn.Dense(3), fnn.Dense(2), join="add"), fnn.Tanh()
        ),
        "at '1': Reshape((3, -1)) cannot take examples of shape (4,): they have 4 numbers": fnn.Serial(
            fnn.Dense(4), fnn.Reshape((3, -1)), fnn.Dense(2)
        ),
        "at '1/0': Reshape((3,)) cannot take examples of shape (4,): they have 4 numbers": fnn.Serial(
            fnn.Dense(4), fnn.Serial(fnn.Reshape((3,)), fnn.Tanh()), fnn.Dense(2)
        ),
        "at 'y': Node(Tanh(), ('a', 'b')) adds arrays of one shape, got (3,), (2,)": fnn.Graph(
            {"a": (fnn.Dense(3), "input"), "b": (fnn.Dense(2), "input"), "y": (fnn.Tanh(), ("a", "b"))}, "y"
        ),
        "at 'y': Node(Tanh(), ('a', 'b'), join='concat') joins arrays that differ in the last axis only, "
        "got (2, 3), (6,)": fnn.Graph(
            {
                "a": (fnn.Dense(3), "input"),
                "b": (fnn.Flatten(), "a"),
                "y": fnn.Node(fnn.Tanh(), ("a", "b"), join="concat"),
            },
            "y",
        ),
    }
    for wanted, net in cases.items():
        in_shape = (2, 5) if "(2, 3)" in wanted else (5,)
        for call in (lambda n=net, s=in_shape: n.init(key, s), lambda n=net, s=in_shape: n.out_shape(s)):
            assert message_of(call).startswith(wanted)


def test_values_that_do_not_fit_together(key: jax.Array):
    net = fnn.Serial(fnn.Residual(fnn.Dense(3)))
    params = ({"body": fnn.Dense(3).init(key, (4,)), "shortcut": ()},)
    assert message_of(lambda: net.apply(params, jnp.zeros((5, 4)))).startswith(
        "at '0': Residual(Dense(3)) adds arrays of one shape, got (5, 3), (5, 4)"
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (fnn.Serial, ["Serial needs at least one layer"]),
        (fnn.Parallel, ["Parallel needs at least one layer"]),
        (lambda: UNTYPED.Serial(fnn.Dense(2), fnn.Relu), ["number 1 is <class", "an instance, with parentheses"]),
        (lambda: UNTYPED.Serial([fnn.Dense(2)]), ["Serial is made of layers", "number 0 is [Dense(2)]"]),
        (lambda: UNTYPED.Serial(jnp.tanh), ["fnn.lift(init, apply)"]),
        (lambda: UNTYPED.Residual(fnn.Relu), ["Residual is made of layers (an instance"]),
        (lambda: UNTYPED.Residual(fnn.Relu(), shortcut=None), ["number 1 is None"]),
        (lambda: UNTYPED.Parallel(fnn.Relu(), join="sum"), ["Parallel's join is 'add' or 'concat', got 'sum'"]),
        (lambda: UNTYPED.Cast(jnp.tanh, "bfloat16"), ["Cast is made of layers"]),
        (lambda: UNTYPED.Cast(fnn.Relu(), "int32"), ["Cast's dtype is the name of a floating dtype", "'int32'"]),
        (lambda: UNTYPED.Cast(fnn.Relu(), jnp.bfloat16), ["Cast's dtype is the name of a floating dtype"]),
        (lambda: UNTYPED.WeightNoise(fnn.Relu(), -0.1), ["WeightNoise's std is not negative, got -0.1"]),
        (lambda: UNTYPED.WeightNoise(fnn.Relu(), float("nan")), ["WeightNoise's std is not negative, got nan"]),
        (lambda: UNTYPED.Node(fnn.Relu, "input"), ["Node is made of layers (an instance"]),
        (lambda: UNTYPED.Node(fnn.Relu(), ()), ["a Node's inputs are names of nodes, at least one, got ()"]),
        (lambda: UNTYPED.Node(fnn.Relu(), (1,)), ["a Node's inputs are names of nodes", "(1,)"]),
        (lambda: UNTYPED.Node(fnn.Relu(), "a", join="mean"), ["Node's join is 'add' or 'concat', got 'mean'"]),
    ],
)
def test_what_no_combinator_can_be_made_of(make: Callable[[], Any], words: list[str]):
    message = message_of(make)
    assert all(word in message for word in words), message


# Graphs.


def test_nodes_come_in_any_order_and_run_in_theirs(key: jax.Array):
    nodes = {"y": (fnn.Dense(2), "b"), "b": (fnn.Tanh(), "a"), "a": (fnn.Dense(3), "input")}
    net = fnn.Graph(nodes, "y")
    assert [name for name, _ in net.nodes] == ["a", "b", "y"]
    assert net == fnn.Graph(dict(reversed(nodes.items())), "y") == fnn.Graph(tuple(nodes.items()), "y")
    serial = fnn.Serial(fnn.Dense(3), fnn.Tanh(), fnn.Dense(2))
    params = net.init(key, (4,))
    x = jax.random.normal(key, (5, 4))
    np.testing.assert_array_equal(net.apply(params, x), serial.apply((params["a"], (), params["y"]), x))


def test_one_input_may_be_used_twice_and_shared_parameters_get_the_sum_of_their_gradients(x64: None):
    net = fnn.Graph(
        {"a": (fnn.Dense(1, bias=False), "input"), "b": fnn.Node(fnn.Dense(1, bias=False), ("a", "a"), params_of="a")},
        "b",
    )
    params = {"a": {"w": jnp.array([[3.0]])}, "b": ()}
    value, grads = jax.value_and_grad(lambda p: net.apply(p, jnp.array([[5.0]]))[0, 0])(params)
    assert float(value) == 2 * 3.0**2 * 5  # y = w (w x + w x)
    assert float(grads["a"]["w"][0, 0]) == 4 * 3.0 * 5


def node(*inputs: str, **options: Any) -> fnn.Node:
    return fnn.Node(fnn.Identity(), inputs, **options)


@pytest.mark.parametrize(
    ("nodes", "output", "words"),
    [
        ({"a": node("b"), "b": node("a")}, "b", ["Graph has a cycle: ", "a -> b", "b -> a"]),
        ({"a": node("a")}, "a", ["Graph has a cycle: a -> a"]),
        (
            {"x": node("input"), "a": node("x", "c"), "b": node("a"), "c": node("b"), "d": node("c")},
            "d",
            ["Graph has a cycle: ", "a -> b", "b -> c", "c -> a"],
        ),
        ({"a": node("imput")}, "a", ["node 'a' takes 'imput', which is none of ['input', 'a']"]),
        ({"a": node("input")}, "b", ["output 'b' is none of its nodes ['a']"]),
        ({"a": fnn.Identity()}, "a", ["nodes are {name: Node(layer, inputs)}", "got 'a': Identity()"]),
        ({1: node("input")}, "a", ["nodes are {name: Node(layer, inputs)}", "got 1: Node("]),
        ({}, "a", ["output 'a' is none of its nodes []"]),
        ({"a": node("input")}, "input", ["output 'input' is none of its nodes"]),
        ({"a": node("input"), "b": node("a"), "c": node("a")}, "b", ["does not depend on ['c']: use or remove"]),
        ({"input": node("input")}, "input", ["none is called 'input'"]),
        ([("a", node("input")), ("a", node("input"))], "a", ["names of their own"]),
        ({"a": node("input"), "b": node("a", params_of="z")}, "b", ["node 'b' uses the parameters of 'z'", "got None"]),
        ({"a": node("input"), "b": node("a", params_of="b")}, "b", ["node 'b' uses the parameters of 'b'"]),
        (
            {"a": (fnn.Dense(2), "input"), "b": fnn.Node(fnn.Dense(3), "a", params_of="a")},
            "b",
            ["node 'b' uses the parameters of 'a'", "an equal layer", "Dense(2)", "Dense(3)"],
        ),
        (
            {"a": node("input"), "b": node("a", params_of="a"), "c": node("b", params_of="b")},
            "c",
            ["node 'c' uses the parameters of 'b'", "owns its parameters"],
        ),
    ],
    ids=lambda value: None if not isinstance(value, list) else "".join(filter(str.isalpha, str(value[0])))[:40],
)
def test_graphs_that_are_none(nodes: Any, output: str, words: list[str]):
    message = message_of(lambda: fnn.Graph(nodes, output))
    assert all(word in message for word in words), message


def test_shared_parameters_need_inputs_of_one_shape(key: jax.Array):
    net = fnn.Graph({"a": (fnn.Dense(3), "input"), "b": fnn.Node(fnn.Dense(3), "a", params_of="a")}, "b")
    message = message_of(lambda: net.init(key, (4,)))
    assert "'b' uses the parameters of 'a', but their inputs have the shapes (3,) and (4,)" in message
    assert net.init(key, (3,)).keys() == {"a", "b"}


# Cast.


def test_cast_computes_in_its_dtype_and_gives_back_the_inputs(key: jax.Array):
    seen = []

    def look(params: Any, x: jax.Array) -> jax.Array:
        seen.append((x.dtype.name, params["w"].dtype.name))
        return x @ params["w"]

    net = fnn.Cast(fnn.lift(lambda key, in_shape: {"w": jax.random.normal(key, (*in_shape, 3))}, look), "bfloat16")
    params = net.init(key, (4,))
    assert params["w"].dtype == jnp.float32
    x = jax.random.normal(key, (5, 4))

    @jax.jit
    def run(params: Any, x: jax.Array) -> Any:
        expected = (x.astype(jnp.bfloat16) @ params["w"].astype(jnp.bfloat16)).astype(x.dtype)
        return net.apply(params, x), expected, jax.grad(lambda p: jnp.sum(net.apply(p, x)))(params)

    y, expected, grads = run(params, x)
    assert set(seen) == {("bfloat16", "bfloat16")}
    assert (y.dtype, grads["w"].dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_allclose(y, expected, rtol=2**-7, atol=2**-7)  # bfloat16 has 8 bits
    assert not np.allclose(y, np.asarray(x) @ np.asarray(params["w"]), rtol=1e-4)
    assert net.out_shape((4,)) == (3,)


@pytest.mark.parametrize("dtype_name", ["uint8", "int32"])
def test_cast_takes_integers_such_as_the_bytes_of_an_image(dtype_name: str, key: jax.Array):
    net = fnn.Cast(fnn.Serial(fnn.Flatten(), fnn.Dense(2)), "float32")
    params = net.init(key, (2, 2))
    x = jnp.array([[[0, 255], [7, 1]]], dtype_name)
    y = net.apply(params, x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, x.reshape(1, 4).astype(np.float32) @ params[1]["w"], rtol=1e-5, atol=1e-4)  # float32


# WeightNoise.


def test_weight_noise_adds_what_it_says_to_the_weights(key: jax.Array):
    dense = fnn.Dense(300, w_init="zeros", b_init=1.0)
    noisy = fnn.WeightNoise(dense, std=0.2)
    x = jnp.eye(300)

    @jax.jit
    def run(key: jax.Array) -> Any:
        params = noisy.init(key, (300,))
        other = jax.random.fold_in(key, 1)
        return noisy.apply(params, x), *(noisy.apply(params, x, key=k, train=True) for k in (key, key, other))

    plain, one, again, other = (np.asarray(a) for a in run(key))
    np.testing.assert_array_equal(plain, 1)
    n = one - 1
    assert abs(n.mean()) < 5 * 0.2 / 300  # 90,000 draws, 5 standard deviations of their mean
    assert abs(n.std() / 0.2 - 1) < 5 / 300
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)


def test_weight_noise_on_the_named_leaves(key: jax.Array):
    layer = fnn.Serial(fnn.Dense(3), fnn.Dense(3), fnn.Rbf(2, epsilon=1.0))
    params = layer.init(key, (3,))

    def moved(leaves: Any) -> list[str]:
        noisy = fnn.WeightNoise(layer, 0.1, leaves=leaves).perturb(params, key, True)
        changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), params, noisy)
        return [jax.tree_util.keystr(path) for path, flag in jax.tree_util.tree_leaves_with_path(changed) if flag]

    assert moved(("w",)) == moved("w") == moved(["w"]) == ["[0]['w']", "[1]['w']"]
    assert moved(("b", "c")) == ["[0]['b']", "[1]['b']", "[2]['c']"]
    assert len(moved(None)) == 5
    assert hash(UNTYPED.WeightNoise(layer, 0.1, leaves="w")) == hash(fnn.WeightNoise(layer, 0.1))
    # Two leaves of one shape get other numbers.
    noise = jax.tree.map(lambda a, b: b - a, params, fnn.WeightNoise(layer, 0.1).perturb(params, key, True))
    assert not np.allclose(noise[0]["w"], noise[1]["w"])
    message = message_of(
        lambda: fnn.WeightNoise(fnn.Rbf(2, epsilon=1.0), 0.1).apply(params[2], jnp.ones((1, 3)), key=key, train=True)
    )
    assert "for the parameters called ('w',), and there are none among {'c': float32[2, 3]}" in message
    assert "leaves=None for all" in message


def test_selected_leaves_are_in_the_order_of_the_tree():
    params = ({"w": 1, "b": 2}, (), {"a": {"w": 3}, "w": {"b": 4}}, 5)
    assert select_leaves(params, ("w",), "owner") == [False, True, True, False, False]
    assert select_leaves(params, None, "owner") == [True] * 5
