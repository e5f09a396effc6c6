"""The gradient checker: hand-written rules against `jax.grad`, against finite differences, and against themselves.

Each array of parameters, and the input, is checked on its own:

- structure, shape and dtype of the gradient g that the rules give;
- g against the gradient a of `jax.grad`, in the arrays' own dtype and again in float64;
- g and a against a central difference along random directions, in float64, with its own error bar;
- the slope of the Taylor remainder |C(p + h t) - C(p) - h <g, t>| over h: 2 for a gradient, 1 for anything else;
- the adjoint law <J t, c> = <t, J^T c> of the network, for a random tangent t and a random cotangent c.

Every cotangent is random: that of the network's output, and, by random example weights, that of each example's loss.
A kink at the point is recognised by its second difference, which there does not shrink as h^2. It is reported, not
averaged away: g is held against `jax.grad` at the kink, and against differences at a point nearby that is moved by 1 %.
"""

from funcnn.gradcheck.checker import compare as compare
from funcnn.gradcheck.report import TOLERANCES as TOLERANCES
from funcnn.gradcheck.report import LeafCheck as LeafCheck
from funcnn.gradcheck.report import Report as Report
