"""Descriptions: values that compare, hash, print as the code that makes them, and round-trip through JSON."""

import dataclasses
import math
import pickle
from typing import Any

import jax
import pytest

import funcnn as fnn
from funcnn import losses, penalties
from funcnn.description import Description
from tests.problems import LAYERS, LOSSES, NETWORKS

VALUES: dict[str, Description] = {
    **{name: problem.layer for name, problem in LAYERS.items()},
    **{f"loss-{name}": problem.loss for name, problem in LOSSES.items()},
    **{f"network-{name}": problem.objective for name, problem in NETWORKS.items()},
    "init": fnn.Init("variance_scaling", scale=2.0, mode="fan_avg", distribution="uniform"),
    "dense-init": fnn.Dense(3, w_init=fnn.Init("normal", stddev=0.01), b_init=1),
    "rbf-init": fnn.Rbf(3, epsilon=2, c_init=fnn.Init("uniform", scale=4.0)),
    "cast": fnn.Cast(fnn.Serial(fnn.Dense(3), fnn.Relu()), "bfloat16"),
    "weight_noise-all": fnn.WeightNoise(fnn.Dense(3), 0.1, leaves=None),
    "node": fnn.Node(fnn.Dense(3), ("a", "b"), join="concat", params_of="c"),
    "penalty": penalties.l1(0.1) + penalties.l2(0.01, leaves=("w", "c")) + penalties.l2(1, leaves=None),
}

each_value = pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())


def code(description: Description) -> Any:
    """The value of the description's `repr`, evaluated with the names that a user has."""
    return eval(repr(description), {**vars(penalties), **vars(losses), **vars(fnn)})


@each_value
def test_a_value(value: Description):
    same = code(value)
    assert same == value
    assert repr(same) == repr(value)
    assert hash(same) == hash(value)
    assert type(same) is type(value)
    text = fnn.to_json(value)
    assert fnn.from_json(text) == value
    assert repr(fnn.from_json(text)) == repr(value)  # 1 and 1.0 are equal and not the same code
    assert fnn.to_json(fnn.from_json(text)) == text
    assert pickle.loads(pickle.dumps(value)) == value
    assert value.replace() == value


@each_value
def test_immutable(value: Description):
    for name in [*(field.name for field in dataclasses.fields(value)), "anything"]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, 1)


def test_different_values_differ():
    distinct = {repr(value): value for value in VALUES.values()}
    assert len(distinct) > 70
    assert len(set(VALUES.values())) == len(distinct)
    assert fnn.Dense(3) != fnn.Dense(3, bias=False)
    assert fnn.Swish() != fnn.Silu()
    assert fnn.Serial(fnn.Dense(3)) != fnn.Parallel(fnn.Dense(3))


def test_repr_is_short():
    net = fnn.Serial(fnn.Dense(8, b_init=0.1), fnn.LeakyRelu(0.2), fnn.Parallel(fnn.Dense(2), fnn.Tanh(), join="add"))
    assert repr(net) == "Serial(Dense(8, b_init=0.1), LeakyRelu(beta=0.2), Parallel(Dense(2), Tanh(), join='add'))"
    assert repr(fnn.Prelu(shared=True)) == "Prelu(shared=True)"
    assert repr(penalties.l1(0.1) + penalties.l2(0.2)) == "l1(0.1) + l2(0.2)"
    objective = fnn.Objective(fnn.Dense(2), losses.softmax_cross_entropy(label_smoothing=0.1), penalties.l2(1e-4))
    assert repr(objective) == "Objective(Dense(2), softmax_cross_entropy(label_smoothing=0.1), penalty=l2(0.0001))"
    assert str(objective) == repr(objective)


def test_json_is_short_and_plain():
    assert fnn.to_json(fnn.Dense(2)) == '{"type": "Dense", "features": 2}'
    graph = fnn.Graph({"y": (fnn.Tanh(), "input")}, "y")
    assert fnn.to_json(graph) == (
        '{"type": "Graph", "nodes": [["y", {"type": "Node", "layer": {"type": "Tanh"}, "inputs": ["input"]}]], '
        '"output": "y"}'
    )


@dataclasses.dataclass(frozen=True)
class Doubled(fnn.Layer):
    """A layer of a user's."""

    inner: fnn.Layer
    times: int = 2

    def init(self, key: jax.Array, in_shape: tuple[int, ...]) -> Any:
        return self.inner.init(key, in_shape)

    def apply(self, params: Any, x: jax.Array, *, key: jax.Array | None = None, train: bool = False) -> jax.Array:
        return self.times * self.inner.apply(params, x)


def test_a_layer_of_ones_own_in_json():
    net = fnn.Serial(Doubled(fnn.Dense(2), times=3), fnn.Relu())
    assert repr(net) == "Serial(Doubled(Dense(2), times=3), Relu())"
    text = fnn.to_json(net)
    assert fnn.from_json(text, types=[Doubled]) == net
    with pytest.raises(ValueError, match=r"unknown description type 'Doubled'.*types=\[\.\.\.\]"):
        fnn.from_json(text)


def test_a_function_costs_only_the_json():
    init = jax.nn.initializers.normal(0.1)
    net = fnn.Serial(fnn.Tanh(), fnn.Dense(3, w_init=init))
    assert net == fnn.Serial(fnn.Tanh(), fnn.Dense(3, w_init=init))
    assert hash(net) == hash(fnn.Serial(fnn.Tanh(), fnn.Dense(3, w_init=init)))
    with pytest.raises(TypeError, match=r"Serial\.layers\[1\]\.w_init holds <function .*no JSON form"):
        fnn.to_json(net)
    with pytest.raises(TypeError, match=r"Objective\.loss holds <function .*no JSON form"):
        fnn.to_json(fnn.Objective(fnn.Dense(3), lambda f, y: f[:, 0]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["not a description"]),
        ("{", ["not a description"]),
        ("[" * 100_000, ["not a description"]),
        ("[1]", ["expected an object with a 'type'", "list"]),
        ("3", ["expected an object with a 'type'", "int"]),
        ("{}", ["unknown description type None"]),
        ('{"type": "Dance", "features": 2}', ["unknown description type 'Dance'"]),
        ('{"type": ["Dense"], "features": 2}', ["unknown description type ['Dense']"]),
        ('{"type": "eval"}', ["unknown description type 'eval'"]),
        ('{"type": "Dense", "feature": 2}', ["Dense has no field feature"]),
        ('{"type": "Dense"}', ["Dense cannot be made from {}", "features"]),
        ('{"type": "Dense", "features": -2}', ["Dense's features is a positive integer, got -2"]),
        ('{"type": "Serial", "layers": [{"type": "Dense", "features": "2"}]}', ["features", "'2'"]),
        ('{"type": "Serial", "layers": [3]}', ["Serial is made of layers", "number 0 is 3"]),
        ('{"type": "Layer"}', ["Layer cannot be made from {}", "abstract"]),
        ('{"type": "Init", "name": "normals"}', ["no initialiser is named 'normals'"]),
    ],
)
def test_json_that_is_none(text: str, words: list[str]):
    with pytest.raises(ValueError) as caught:
        fnn.from_json(text)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_replace():
    assert fnn.Dense(8).replace(bias=False) == fnn.Dense(8, bias=False)
    assert fnn.Serial(fnn.Tanh()).replace(layers=(fnn.Relu(), fnn.Tanh())) == fnn.Serial(fnn.Relu(), fnn.Tanh())
    branches = fnn.Parallel(fnn.Tanh(), fnn.Relu())
    assert branches.replace(join="add") == fnn.Parallel(fnn.Tanh(), fnn.Relu(), join="add")
    with pytest.raises(TypeError, match=r"Dense has no field feature; its fields are \['b_init', 'bias', 'features'"):
        fnn.Dense(8).replace(feature=9)
    with pytest.raises(fnn.LayerError, match="positive integer"):
        fnn.Dense(8).replace(features=0)


def test_numbers_that_are_equal_print_as_they_are():
    assert repr(fnn.Dropout(0)) == "Dropout(0)"
    assert repr(fnn.Swish(1)) == "Swish(beta=1)"
    assert fnn.from_json(fnn.to_json(fnn.Swish(math.inf))) == fnn.Swish(math.inf)
