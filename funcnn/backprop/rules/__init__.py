"""The hand-written rules: one file for one file of `layers/`, `compose.py`, `losses.py` and `penalties.py`."""

from funcnn.backprop.rule import Rules
from funcnn.backprop.rules import activation, compose, dense, losses, maxout, noise, penalties, rbf, shape

RULES = Rules(
    dense.RULES
    | activation.RULES
    | maxout.RULES
    | rbf.RULES
    | noise.RULES
    | shape.RULES
    | compose.RULES
    | losses.RULES
    | penalties.RULES
)
