"""The rule of `lazy_logits.py`: of a dense layer that leaves its product to the loss.

Its outputs are its input and its parameters, side by side; and so are their gradients, which the loss has made.
"""

from typing import Any

import jax

from funcnn.backprop.rule import Context, Rule
from funcnn.layer import Params
from funcnn.lazy_logits import LazyDense, LazyLogits


def lazy_fwd(layer: LazyDense, params: Params, x: jax.Array, ctx: Context) -> tuple[LazyLogits, Any]:
    """(x, w, b). No residuals."""
    return layer.apply(params, x), ()


def lazy_bwd(layer: LazyDense, params: Params, nothing: Any, dz: LazyLogits, ctx: Context) -> tuple[Params, Any]:
    """{dw, db} and dx."""
    return {"w": dz.w, "b": dz.b} if layer.bias else {"w": dz.w}, dz.x


LAZY_DENSE = Rule(lazy_fwd, lazy_bwd)
