"""The hand-written rules: one file for one file of `layers/`, and for each of the files beside it that have rules."""

from funcnn.backprop.rule import Rules
from funcnn.backprop.rules import (
    activation,
    compose,
    dense,
    graph,
    losses,
    maxout,
    noise,
    penalties,
    rbf,
    shape,
    wrappers,
)

RULES = Rules(
    dense.RULES
    | activation.RULES
    | maxout.RULES
    | rbf.RULES
    | noise.RULES
    | shape.RULES
    | compose.RULES
    | graph.RULES
    | wrappers.RULES
    | losses.RULES
    | penalties.RULES
)
