"""Looking at a network while it is trained, every so many steps, inside the compiled program."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import backprop
from funcnn.backprop.diagnosis import by_name
from funcnn.objective import Batch
from funcnn.train import steps as one_step
from funcnn.train.arguments import check_count, describe, named
from funcnn.train.steps import Hyper, Recipe, State


@dataclasses.dataclass(frozen=True)
class Watch:
    """What `fit` looks at before the steps number 0, every, 2 every, ...: the history has it as `history.watched`.

    Args:
        function: `function(objective, params, batch, *, key, train)` that returns a pytree of arrays, such as
            `backprop.diagnose`, or your own that returns a dict of them. It is given the parameters before the step and
            the step's own batch and key, and what the step is going to add to the parameters, if it has an argument
            `updates`. It is compiled with the step.
        every: how many steps pass from one look to the next.

    The history's names are the pytree's paths, such as "layers/2/chi".

    Raises:
        TypeError, ValueError: an argument is not what it should be.

    Example:
        >>> import jax, optax, funcnn as fnn
        >>> (x, y), _ = fnn.data.load_digits().arrays()
        >>> net = fnn.Serial(fnn.Dense(64), fnn.Relu(), fnn.Dense(10))
        >>> objective = fnn.Objective(net, fnn.losses.softmax_cross_entropy)
        >>> _, history = fnn.train.fit(
        ...     objective, optax.adam(1e-2), net.init(jax.random.key(0), (64,)), (x, y), epochs=4, batch_size=32,
        ...     key=jax.random.key(1), watch=fnn.train.Watch(every=50), progress=None)
        >>> print(history.watched["step"], history.watched["layers/2/update_ratio"].shape)
        [  0  50 100 150] (4,)
    """

    function: Callable[..., Any] = backprop.diagnose
    every: int = 50

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(
                "a Watch's function is one of (objective, params, batch, *, key, train), such as backprop.diagnose, "
                f"got {self.function!r}"
            )
        asked = {"key": None, "train": None}
        if missing := sorted(set(asked) - one_step.arguments_of(self.function, asked)):
            raise TypeError(
                f"a Watch's function is one of (objective, params, batch, *, key, train), and {self.function!r} has no "
                f"argument {missing[0]!r}"
            )
        object.__setattr__(self, "every", check_count("Watch's every", self.every))

    def first(self, step: Any) -> Any:
        """The number of the first look at a step that is not before this one."""
        return -(-step // self.every)

    def seen(self, watched: dict[str, jax.Array], begin: int, end: int) -> dict[str, np.ndarray]:
        """What was seen of the steps begin..end-1, where `watched` has room for more; "step" is which these were."""
        steps = np.arange(self.first(begin), self.first(end)) * self.every
        return {"step": steps} | {name: np.asarray(values)[: len(steps)] for name, values in watched.items()}

    def look(self, recipe: Recipe, state: State, batch: Batch, hyper: Hyper) -> dict[str, jax.Array]:
        """What is seen before a step, by name."""
        key, ready = one_step.ready(recipe, state, batch)
        options: dict[str, Any] = {"key": key, "train": True}
        if one_step.arguments_of(self.function, {"updates": None}):
            after, _ = one_step.update(recipe, state, batch, hyper)
            options["updates"] = jax.tree.map(jnp.subtract, after.params, state.params)
        with named(f"in the watch's function, {self.function!r}"):
            seen = self.function(
                one_step.made(recipe.objective, hyper), recipe.placement.gather(state.params), ready, **options
            )
            return _named_arrays(seen)


def _named_arrays(seen: Any) -> dict[str, jax.Array]:
    """What a watch's function returned, by name."""
    found = by_name(seen)
    if not found or {"", "step"} & set(found):
        raise ValueError(
            "what a Watch's function returns has a name for each array, as {'angle': angle}, and none of them is "
            f"'step', got {describe(seen)}"
        )
    for name, leaf in found.items():
        if not isinstance(leaf, jax.Array | np.ndarray | np.number | int | float):
            raise TypeError(f"a Watch's function returns arrays, and its {name!r} is {leaf!r}")
    return {name: jnp.asarray(leaf) for name, leaf in found.items()}
