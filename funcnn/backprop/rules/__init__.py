"""The hand-written rules: one file for one file of `layers/`, and for each of the files beside it that have rules."""

from funcnn.backprop.rule import Rules
from funcnn.backprop.rules import (
    activation,
    compose,
    dense,
    feedback,
    graph,
    losses,
    maxout,
    noise,
    penalties,
    rbf,
    repeat,
    shape,
    wrappers,
)

RULES = Rules(
    dense.RULES
    | feedback.RULES
    | activation.RULES
    | maxout.RULES
    | rbf.RULES
    | repeat.RULES
    | noise.RULES
    | shape.RULES
    | compose.RULES
    | graph.RULES
    | wrappers.RULES
    | losses.RULES
    | penalties.RULES
)
