"""What users hand over, looked at before anything is compiled: errors that name the argument and the right one."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnn.data.shards import NAMES
from funcnn.layer import describe_params


def check_count(name: str, count: Any) -> int:
    """The count as an integer of Python; raises unless it is a positive one."""
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or not 1 <= count < 2**31:
        hint = " (it is below 2**31)" if isinstance(count, int) and count > 1 else ""
        raise ValueError(f"{name} is a positive integer, got {count!r}{hint}")
    return int(count)


def check_key(key: Any) -> None:
    """Raises unless `key` is one of the keys of `jax.random.key`."""
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)) or key.shape:
        raise TypeError(f"key is a random key, such as jax.random.key(0), got {describe(key)}")


def numbers(name: str, values: Mapping[str, Any] | None) -> dict[str, jax.Array]:
    """Hyper-parameters as arrays of the default floating dtype; raises unless each is a number."""
    if not isinstance(values, Mapping | None):
        raise TypeError(f"{name} is a mapping from names to numbers, such as {{'learning_rate': 1e-3}}, got {values!r}")
    for key, value in (values or {}).items():
        array = np.asarray(value) if not callable(value) else np.asarray(None)
        if (
            array.ndim
            or not np.issubdtype(array.dtype, np.number)
            or isinstance(value, bool)
            or not isinstance(key, str)
        ):
            raise TypeError(
                f"{name} has numbers by name, which become arguments of the program, got {key!r}: {value!r}"
            )
    return {name: jnp.asarray(value, jnp.result_type(float)) for name, value in (values or {}).items()}


def seed_numbers(seeds: int | Sequence[int]) -> np.ndarray:
    """The seeds of the runs."""
    if isinstance(seeds, int | np.integer) and not isinstance(seeds, bool):
        seeds = range(check_count("seeds", seeds))
    numbers = _array(seeds)
    if numbers.ndim != 1 or not numbers.size or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(f"seeds is how many, or a list of whole numbers, got {seeds!r}")
    if (numbers < 0).any() or (numbers >= 2**32).any() or len(set(numbers.tolist())) < len(numbers):
        raise ValueError(f"seeds are from 0 to 2**32 - 1, each once, got {seeds!r}")
    return numbers


def grid_values(grid: Mapping[str, Sequence[float]] | None) -> dict[str, np.ndarray]:
    """The values of each hyper-parameter."""
    if not isinstance(grid, Mapping | None):
        raise TypeError(
            f"grid is a mapping from names to values, such as {{'learning_rate': [1e-3, 1e-2]}}, got {grid!r}"
        )
    if "seed" in (grid or {}):
        raise ValueError("'seed' is no axis of the grid: seeds says which there are")
    axes = {}
    for name, values in (grid or {}).items():
        array = _array(values)
        if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.number) or np.isnan(array).any():
            raise ValueError(f"grid's {name!r} is a list of numbers, at least one, got {values!r}")
        axes[name] = array.astype(float)
    return axes


def check_rows(name: str, arrays: Sequence[Any]) -> None:
    """Raises unless arrays hold numbers and have as many rows, one at least."""
    shapes = [np.shape(array) for array in arrays]
    if any(not shape or shape[0] != shapes[0][0] for shape in shapes) or not shapes[0][0]:
        raise ValueError(f"{name}: x, y and weight have one row per example, at least one; got shapes {shapes}")
    for letter, array in zip(NAMES, arrays, strict=False):
        if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
            raise TypeError(f"{name}: {letter} holds numbers, got an array of dtype {array.dtype}")


def check_weight(name: str, weight: Any) -> None:
    """Raises where a weight is negative or not a number, or all are zero."""
    values = np.asarray(weight)
    if not (np.isfinite(values) & (values >= 0)).all():
        i = int(np.argmin(np.isfinite(values) & (values >= 0)))
        raise ValueError(f"{name}: weights are finite and not negative, got {values[i]} at index {i}")
    if not values.any():
        raise ValueError(f"{name}: the weight is zero for every example, so that their weighted mean is 0 / 0")


def describe(thing: Any) -> str:
    """A value in few words for a message: arrays by dtype and shape."""
    if hasattr(thing, "opt_state") and hasattr(thing, "params"):
        return "a train.State (its parameters are state.params)"
    if isinstance(thing, tuple | list | dict):
        return describe_params(thing)
    return describe_params(thing) if hasattr(thing, "shape") and hasattr(thing, "dtype") else repr(thing)


def _array(values: Any) -> np.ndarray:
    """What can be gone through as an array; a text as one thing."""
    return np.asarray(list(values) if isinstance(values, Iterable) and not isinstance(values, str) else values)


@contextlib.contextmanager
def named(where: str) -> Iterator[None]:
    """Adds to an error that the user's own function raises which function it was."""
    try:
        yield
    except Exception as error:
        error.add_note(f"({where})")
        raise
