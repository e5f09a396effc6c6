"""At which step of a run a number that is not finite came in."""

from collections.abc import Callable
from typing import Any

import jax


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
