"""Networks and graphs drawn at random, nested at random: the rules against autodiff."""

from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
from hypothesis import given, settings

import funcnn as fnn
from tests.backprop.agree import TOLERANCES, assert_agree, draw_layer, layer_gradients

UNITS = st.sampled_from(
    [
        fnn.Identity(),
        fnn.Sigmoid(),
        fnn.Tanh(),
        fnn.Relu(),
        fnn.LeakyRelu(),
        fnn.Absolute(),
        fnn.Swish(1.5),
        fnn.HardSwish(),
        fnn.Gelu(),
        fnn.Softplus(),
        fnn.Elu(),
        fnn.Step(),
        fnn.Softmax(),
        fnn.LogSoftmax(),
        fnn.Prelu(),
        fnn.Prelu(shared=True),
        fnn.Dropout(0.3),
        fnn.GaussianNoise(0.2),
    ]
)
WIDTHS = st.integers(1, 4)


def linear(width: int) -> st.SearchStrategy[fnn.Layer]:
    """A layer with parameters, of any input width."""
    return st.one_of(
        st.just(fnn.Dense(width)),
        st.just(fnn.Dense(width, bias=False)),
        st.builds(fnn.Maxout, st.just(width), st.integers(1, 3)),
        st.just(fnn.Rbf(width, 0.4)),
    )


@st.composite
def layers(draw: st.DrawFn, depth: int) -> fnn.Layer:
    """Any layer, for examples of any width."""
    kinds = ["unit", "linear", "serial", "residual", "concat", "add", "noise", "graph"]
    kind = draw(st.sampled_from(kinds if depth else kinds[:2]))
    inner = layers(depth - 1)
    width = draw(WIDTHS)
    ending = linear(width)
    match kind:
        case "unit":
            return draw(UNITS)
        case "linear":
            return draw(ending)
        case "serial":
            return fnn.Serial(*draw(st.lists(inner, min_size=1, max_size=3)))
        case "residual":
            return fnn.Residual(fnn.Serial(draw(inner), draw(ending)), shortcut=draw(ending))
        case "concat":
            return fnn.Parallel(*draw(st.lists(inner, min_size=1, max_size=3)))
        case "add":
            branches = draw(st.lists(inner, min_size=1, max_size=3))
            return fnn.Parallel(*(fnn.Serial(branch, draw(ending)) for branch in branches), join="add")
        case "noise":
            return fnn.WeightNoise(fnn.Serial(draw(inner), fnn.Dense(width)), 0.1)
        case _:
            return draw(graphs(depth - 1))


@st.composite
def graphs(draw: st.DrawFn, depth: int) -> fnn.Graph:
    """A directed acyclic graph with fan-out, joins of both kinds, values used twice at one node, and shared parameters.

    All nodes but the first have one width, so that any of them can be added; what nobody takes goes into the last.
    """
    width = draw(WIDTHS)
    nodes: dict[str, fnn.Node] = {"start": fnn.Node(draw(linear(width)), "input")}
    owners: list[str] = []  # nodes whose parameters others may use: they all see examples of that width
    for i in range(draw(st.integers(1, 4))):
        sources = tuple(draw(st.lists(st.sampled_from(sorted(nodes)), min_size=1, max_size=3)))
        layer = fnn.Serial(draw(layers(depth)), draw(linear(width))) if depth else draw(linear(width))
        if owners and draw(st.booleans()):
            owner = draw(st.sampled_from(owners))
            nodes[f"n{i}"] = fnn.Node(nodes[owner].layer, sources, params_of=owner)
        elif draw(st.booleans()):
            nodes[f"n{i}"] = fnn.Node(layer, sources)
            owners.append(f"n{i}")
        else:
            nodes[f"n{i}"] = fnn.Node(layer, sources, join="concat")
    taken = {source for node in nodes.values() for source in node.inputs}
    loose = tuple(sorted(set(nodes) - taken))
    nodes["end"] = fnn.Node(fnn.Dense(2), loose, join=draw(st.sampled_from(["add", "concat"])))
    return fnn.Graph(draw(st.permutations(sorted(nodes.items()))), output="end")


NOISE = st.sampled_from([fnn.Dropout(0.3), fnn.GaussianNoise(0.2)])


@st.composite
def noisy(draw: st.DrawFn, depth: int) -> fnn.Layer:
    """A layer or graph with noise in front of it and, or not, on all weights, between layers that have parameters.

    So that each of a few draws has parameters and, in training, noise.
    """
    begin, inner = draw(linear(draw(WIDTHS))), draw(st.one_of(layers(depth), graphs(depth - 1)))
    net = fnn.Serial(begin, draw(NOISE), inner, fnn.Dense(2))
    return draw(st.sampled_from([net, fnn.WeightNoise(net, 0.1)]))


@st.composite
def chains(draw: st.DrawFn) -> fnn.Serial:
    """Layers one after another, with noise between them."""
    smooth = UNITS.filter(lambda layer: layer != fnn.Step())  # nothing comes back through one
    weights = st.one_of(linear(3), st.just(fnn.WeightNoise(fnn.Dense(3), 0.1)))
    first, second = draw(weights), draw(weights)
    return fnn.Serial(first, draw(smooth), draw(NOISE), second, draw(smooth), fnn.Dense(2))


def check(net: fnn.Layer, seed: int) -> None:
    """By the rules as by autodiff, in training."""
    with jax.enable_x64(True):
        draws: Any = draw_layer(np.random.default_rng(seed), net, (3,), 4)
        by_hand, by_autodiff = jax.jit(layer_gradients(net, jax.random.key(seed), True))(*draws)
        assert_agree(by_hand, by_autodiff, TOLERANCES["float64"])


few = settings(max_examples=12, deadline=None, derandomize=True, database=None)


LOSSES = st.sampled_from([fnn.losses.squared_error, fnn.losses.softmax_cross_entropy])


def draw_problem(
    net: fnn.Layer, seed: int, loss: fnn.losses.Loss = fnn.losses.squared_error
) -> tuple[fnn.Objective, Any, Any]:
    """An objective with one of `LOSSES`, parameters, and a batch of four examples."""
    rng = np.random.default_rng(seed)
    x, y = (jax.numpy.asarray(rng.normal(size=(4, *shape))) for shape in ((3,), net.out_shape((3,))))
    y = jax.nn.softmax(y) if isinstance(loss, fnn.losses.ClassLoss) else y
    return fnn.Objective(net, loss), net.init(jax.random.key(seed), (3,)), (x, y)


fewer = settings(few, max_examples=4)  # for what is compared with whole matrices, which take long to compile
SEEDS = st.integers(0, 2**31)


@few
@given(net=layers(depth=2), seed=SEEDS)
def test_random_networks(net: fnn.Layer, seed: int):
    check(net, seed)


@few
@given(net=graphs(depth=1), seed=SEEDS)
def test_random_graphs(net: fnn.Layer, seed: int):
    check(net, seed)
