"""Combinators: what they compute, their paths in errors and keys, and what they are not made of."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from tests.messages import message_of
from tests.problems import BATCHED

EXACT = 1e-12  # float64, sums of a few numbers of order 1
UNTYPED: Any = fnn  # for the calls that a type checker would refuse


def shapes(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.shape, params)


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
    ],
)
def test_what_no_combinator_can_be_made_of(make: Callable[[], Any], words: list[str]):
    message = message_of(make)
    assert all(word in message for word in words), message
