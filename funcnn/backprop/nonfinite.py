"""Where a number that is not finite came from: the first layer that gave it, and in which direction."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from funcnn.backprop.engine import record, value_and_grad
from funcnn.backprop.rule import Rules, as_rules
from funcnn.backprop.rules import RULES
from funcnn.layer import Key, Params
from funcnn.losses import LossError
from funcnn.objective import Batch, Objective, unpack, weighted_mean


@dataclasses.dataclass(frozen=True)
class NonFinite:
    """What `find_nonfinite` found.

    Attributes:
        direction: "forward" (an output, or the loss), "backward" (a delta or a gradient), or "before" (the batch or the
            parameters).
        path: of the layer; None where it is none.
        message: what is not finite, how many numbers of it, and which is the first.
    """

    direction: str
    path: str | None
    message: str

    def __str__(self) -> str:
        return f"{self.direction}: {self.message}"


def find_nonfinite(
    objective: Objective,
    params: Params,
    batch: Batch,
    *,
    key: Key | None = None,
    train: bool = False,
    rules: Rules = RULES,
    extras: Mapping[str, Any] | None = None,
) -> NonFinite | None:
    """The first layer with a NaN or an infinity, and the direction in which it appears.

    Looked at are the batch and the parameters, then the outputs from the input on and the loss, then deltas and
    gradients from the loss back. Not to be called under jit: it looks at values.

    Args:
        objective: net + loss + penalty.
        params: its parameters.
        batch: (x, y) or (x, y, weight).
        key: random key, needed where `train` draws random numbers.
        train: whether noise is on.
        rules: the backward pass; autodiff stands in for what is missing.
        extras: a pytree for each path whose rule asks for one.

    Returns:
        A `NonFinite`, which prints as a line; None where all is finite.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> net = fnn.Serial(fnn.Dense(1, bias=False), fnn.Softplus(), fnn.Dense(1, bias=False))
        >>> params = ({"w": jnp.array([[3e38]])}, (), {"w": jnp.array([[1.0]])})
        >>> batch = jnp.array([[1.0], [9.0]]), jnp.array([[0.0], [0.0]])
        >>> print(fnn.backprop.find_nonfinite(fnn.Objective(net, fnn.losses.mse), params, batch))
        forward: the output of layer '0', Dense(1, bias=False): 1 of 2 numbers, the first inf at [1, 0]
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, batch, key))):
        raise TypeError(
            "find_nonfinite looks at values, which a function under jit or grad, or that a train.Watch calls, has not: "
            "call it with the parameters and the batch that gave the number, as fit does where a loss is not finite"
        )
    _, _, weight = unpack(batch)
    if weight is not None and not np.any(weight):
        return NonFinite(
            "before", None, "the weighted mean of the losses, since the weights of all examples in the batch are 0"
        )
    for name, array in zip(("x", "y", "weight"), batch, strict=False):
        if found := _describe(array):
            return NonFinite("before", None, f"{name} of the batch: {found}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if found := _describe(leaf):
            return NonFinite("before", None, f"the parameter params{jax.tree_util.keystr(path)}: {found}")
    rules = Rules(as_rules(rules), missing="autodiff")
    # Compiled, so that a target that is impossible gives a NaN here, and the error that names it below.
    run = jax.jit(functools.partial(record(objective, rules=rules, extras=extras), train=train))
    entries = run(params, batch, key=key)
    for path, entry in entries.items():
        if found := _describe(entry.y):
            return NonFinite("forward", path, f"the output of layer {path!r}, {entry.layer!r}: {found}")
    try:
        values = objective.loss(objective.net.apply(params, jnp.asarray(batch[0]), key=key, train=train), batch[1])
    except LossError as error:
        return NonFinite("forward", None, f"the loss: {error}")
    if found := _describe(values):
        return NonFinite("forward", None, f"the loss, {objective.loss!r}: {found}; all layers' outputs are finite")
    if found := _describe(weighted_mean(values, weight)):
        return NonFinite("forward", None, f"the mean of the losses, {objective.loss!r}, which are finite: {found}")
    if objective.penalty is not None and (found := _describe(objective.penalty(params))):
        return NonFinite("forward", None, f"the penalty, {objective.penalty!r}: {found}; all losses are finite")
    for path, entry in reversed(entries.items()):
        for name, tree in (
            ("delta (the gradient for its output)", entry.dy),
            ("gradient", entry.grads),
            ("gradient for the input", entry.dx),
        ):
            for leaf in jax.tree.leaves(tree):
                if found := _describe(leaf):
                    return NonFinite("backward", path, f"the {name} of layer {path!r}, {entry.layer!r}: {found}")
    if objective.penalty is not None:
        _, grads = jax.jit(
            functools.partial(value_and_grad(objective.replace(aux=None), rules=rules, extras=extras), train=train)
        )(params, batch, key=key)
        for place, leaf in jax.tree_util.tree_leaves_with_path(grads):
            if found := _describe(leaf):
                where = f"params{jax.tree_util.keystr(place)}"
                return NonFinite(
                    "backward", None, f"the gradient of the penalty, {objective.penalty!r}, for {where}: {found}"
                )
    return None


def _describe(array: Any) -> str:
    """How many numbers of an array are not finite, and which is the first; empty where all are."""
    if array is None or not jnp.issubdtype(jnp.result_type(array), jnp.floating):
        return ""
    values = np.asarray(array, np.float64)
    bad = ~np.isfinite(values)
    if not bad.any():
        return ""
    index = np.unravel_index(int(np.argmax(bad)), bad.shape)
    return f"{int(bad.sum())} of {bad.size} numbers, the first {values[index]} at {[int(i) for i in index]}"
