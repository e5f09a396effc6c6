"""Graphs: order, fan-out, shared parameters, and the errors of graphs that are none."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from tests.messages import message_of

UNTYPED: Any = fnn  # for the calls that a type checker would refuse


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


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: UNTYPED.Node(fnn.Relu, "input"), ["Node is made of layers (an instance"]),
        (lambda: UNTYPED.Node(fnn.Relu(), ()), ["a Node's inputs are names of nodes, at least one, got ()"]),
        (lambda: UNTYPED.Node(fnn.Relu(), (1,)), ["a Node's inputs are names of nodes", "(1,)"]),
        (lambda: UNTYPED.Node(fnn.Relu(), "a", join="mean"), ["Node's join is 'add' or 'concat', got 'mean'"]),
    ],
)
def test_what_no_node_can_be_made_of(make: Callable[[], Any], words: list[str]):
    message = message_of(make)
    assert all(word in message for word in words), message
