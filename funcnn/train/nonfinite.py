"""Where a number that is not finite came from: the step, and the first layer that gave it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from funcnn import backprop
from funcnn.layer import Key, Params
from funcnn.losses import LossError
from funcnn.objective import Batch, Objective


def finite(tree: Any) -> bool:
    """Whether all floating numbers of a pytree are."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)]
    return all(map(bool, jax.device_get(_finite(leaves))))


@jax.jit
def _finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jax.numpy.isfinite(leaf).all() for leaf in leaves]


def last_sound(replay: Callable[[int], Any], first: int, failed: int) -> tuple[int, Any]:
    """The latest step before which all parameters were finite, and the run there.

    `replay(step)` is the run after the steps first..step-1. The loss of step number `failed` was not finite; the
    gradient of a step before it may already have been, with a loss that was, so that the parameters were lost there.
    """
    run = replay(failed)
    if finite(run.state.params):
        return failed, run
    low, high = first, failed  # sound before `low` (or there from the start), not before `high`
    while high - low > 1:
        middle = (low + high) // 2
        if finite(replay(middle).state.params):
            low = middle
        else:
            high = middle
    return low, replay(low)


def first_nonfinite(objective: Objective, params: Params, batch: Batch, key: Key) -> tuple[str | None, str]:
    """The path of the first layer with a number that is not finite in the record of a batch, and what it is.

    The forward pass is looked at first, from the input on; then the backward pass, from the loss back.
    """
    for name, array in zip(("x", "y", "weight"), batch, strict=False):
        if found := _describe(array):
            return None, f"{name} of the batch: {found}"
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if found := _describe(leaf):
            return None, f"the parameter params{jax.tree_util.keystr(path)}: {found}"
    rules = backprop.Rules(backprop.RULES, missing="autodiff")
    # Compiled, so that a target that is impossible gives a NaN here, and the error that names it below.
    run = jax.jit(functools.partial(backprop.record(objective, rules=rules), train=True))
    record = run(params, batch, key=key)
    for path, entry in record.items():
        if found := _describe(entry.y):
            return path, f"the output of layer {path!r}, {entry.layer!r}: {found}"
    try:
        values = objective.loss(objective.net.apply(params, batch[0], key=key, train=True), batch[1])
    except LossError as error:
        return None, f"the loss: {error}"
    if found := _describe(values):
        return None, f"the loss, {objective.loss!r}: {found}; all layers' outputs are finite"
    for path, entry in reversed(record.items()):
        for name, tree in (("delta (the gradient for its output)", entry.dy), ("gradient", entry.grads)):
            for leaf in jax.tree.leaves(tree):
                if found := _describe(leaf):
                    return path, f"the {name} of layer {path!r}, {entry.layer!r}: {found}"
    return None, "the mean of the losses, or the penalty; every output, delta and gradient is finite"


def _describe(array: Any) -> str:
    """How many numbers of an array are not finite, and which is the first; empty where all are."""
    if array is None or not jax.numpy.issubdtype(array.dtype, jax.numpy.floating):
        return ""
    values = np.asarray(array, np.float64)
    bad = ~np.isfinite(values)
    if not bad.any():
        return ""
    index = np.unravel_index(int(np.argmax(bad)), bad.shape)
    return f"{int(bad.sum())} of {bad.size} numbers, the first {values[index]} at {[int(i) for i in index]}"
