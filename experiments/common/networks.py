"""The networks of the experiments, each for examples of shape (D,)."""

import itertools
from collections.abc import Sequence

import funcnn as fnn

ACTIVATIONS: dict[str, fnn.Layer] = {
    "relu": fnn.Relu(),
    "tanh": fnn.Tanh(),
    "silu": fnn.Silu(),
    "sigmoid": fnn.Sigmoid(),
    "gelu": fnn.Gelu(),
    "elu": fnn.Elu(),
    "softplus": fnn.Softplus(),
}


def mlp(hidden: Sequence[int], activation: fnn.Layer, classes: int = 10, dropout: float = 0.0) -> fnn.Serial:
    """Dense layers, one after another, with dropout behind each activation where asked."""
    layers = [layer for width in hidden for layer in (fnn.Dense(width), activation, *_dropout(dropout))]
    return fnn.Serial(*layers, fnn.Dense(classes))


def maxout(hidden: Sequence[int], pieces: int, classes: int = 10, dropout: float = 0.0) -> fnn.Serial:
    """Maxout layers, each unit the largest of `pieces` affine functions."""
    layers = [layer for width in hidden for layer in (fnn.Maxout(width, pieces), *_dropout(dropout))]
    return fnn.Serial(*layers, fnn.Dense(classes))


def residual(hidden: Sequence[int], activation: fnn.Layer, classes: int = 10, dropout: float = 0.0) -> fnn.Serial:
    """A dense layer, then a residual block for each further width; where the width changes, the shortcut is linear."""
    layers: list[fnn.Layer] = [fnn.Dense(hidden[0]), activation]
    for before, width in itertools.pairwise(hidden):
        body = fnn.Serial(fnn.Dense(width), activation, *_dropout(dropout))
        layers.append(fnn.Residual(body) if width == before else fnn.Residual(body, fnn.Dense(width, bias=False)))
    return fnn.Serial(*layers, fnn.Dense(classes))


def fan_out(hidden: Sequence[int], activation: fnn.Layer, classes: int = 10, dropout: float = 0.0) -> fnn.Graph:
    """A graph: each stage feeds two branches of the next width; these and the stage together are the next stage."""
    nodes = {"stem": fnn.Node(fnn.Serial(fnn.Dense(hidden[0]), activation), "input")}
    stage: tuple[str, ...] = ("stem",)
    for i, width in enumerate(hidden[1:], start=1):
        for branch, function in (("left", activation), ("right", fnn.Tanh())):
            body = fnn.Serial(fnn.Dense(width), function, *_dropout(dropout))
            nodes[f"{branch}{i}"] = fnn.Node(body, stage, join="concat")
        stage = (f"left{i}", f"right{i}", *stage)
    return fnn.Graph(nodes | {"logits": fnn.Node(fnn.Dense(classes), stage, join="concat")}, output="logits")


def _dropout(rate: float) -> tuple[fnn.Layer, ...]:
    return (fnn.Dropout(rate),) if rate else ()
