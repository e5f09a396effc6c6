"""What is in a checkpoint: the arrays of a run by number, and what is said of them, each with its checksum."""

import hashlib
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnn.train import loop
from funcnn.train.history import Recorder
from funcnn.train.shuffle import mix


class Damaged(Exception):
    """A checkpoint that cannot be trusted."""


def orbax() -> Any:
    """The library that writes the files."""
    try:
        import orbax.checkpoint as ocp  # noqa: PLC0415 - in the `checkpoint` extra
    except ImportError as error:
        raise ImportError("checkpoints need Orbax; install it with: pip install 'funcnn[checkpoint]'") from error
    return ocp


def sealed(body: dict[str, Any]) -> dict[str, Any]:
    """A copy of what a checkpoint says of itself, with its checksum; what `body` refers to may change afterwards."""
    return {"body": json.loads(json.dumps(body)), "sha256": _digest(body)}


def read_body(manager: Any, step: int) -> dict[str, Any]:
    """What a checkpoint says of itself, checked to be what was written."""
    read = _read(manager, step, "meta", orbax().args.JsonRestore())
    if not isinstance(read, dict) or set(read) != {"body", "sha256"} or _digest(read["body"]) != read["sha256"]:
        raise Damaged("its description has another checksum than it had when it was written")
    return read["body"]


def traces_of(recorder: Recorder) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What was recorded of single steps, as arrays to be saved, and what a checkpoint says of them."""
    recorded = {"losses": recorder.losses} | {f"watched/{name}": array for name, array in recorder.watched.items()}
    arrays = {f"trace{i}": _not_empty(array) for i, array in enumerate(recorded.values())}
    said = {
        name: {"name": of, "dtype": str(array.dtype), "shape": array.shape, "sha256": _sha256(array)}
        for of, (name, array) in zip(recorded, arrays.items(), strict=True)
    }
    return arrays, said


def _not_empty(array: np.ndarray) -> np.ndarray:
    """The array behind a row of zeros, since Orbax saves no empty one."""
    return np.concatenate([np.zeros_like(array, shape=(1, *array.shape[1:])), array])


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def read_arrays(
    manager: Any, step: int, body: dict[str, Any], wanted: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A checkpoint's arrays, as `wanted` and checked likewise, and what was recorded of single steps, by name."""
    room = {name: np.zeros(said["shape"], said["dtype"]) for name, said in body["traces"].items()}
    arrays = _read(manager, step, "arrays", orbax().args.StandardRestore(wanted | room))
    traces = {}
    for name, said in body["traces"].items():
        trace = np.asarray(arrays.pop(name))
        if _sha256(trace) != said["sha256"]:
            raise Damaged(f"the {said['name']} of its steps have another checksum than they had when it was written")
        traces[said["name"]] = trace[1:]
    for name, value in checksums(arrays).items():
        if np.asarray(value).tolist() != body["checksums"][name]:
            path = list(body["identity"]["arrays"])[int(name)]
            raise Damaged(f"run{path} has another checksum than it had when it was written")
    return arrays, traces


def recorder_of(body: dict[str, Any], traces: dict[str, np.ndarray]) -> Recorder:
    """What had been recorded."""
    rest = {name: body[name] for name in ("rows", "compile_seconds", "best_epoch", "stopped", "seconds")}
    watched = {name.removeprefix("watched/"): array for name, array in traces.items() if name != "losses"}
    return Recorder(losses=traces["losses"].astype(jnp.result_type(float)), watched=watched, **rest)


def _read(manager: Any, step: int, item: str, args: Any) -> Any:
    try:
        return manager.restore(step, args=orbax().args.Composite(**{item: args}))[item]
    except Exception as error:
        raise Damaged(f"its {item} cannot be read: {type(error).__name__}: {error}") from error


def plain_arrays(run: loop.Run) -> dict[str, jax.Array]:
    """The leaves of a run by name, random keys as the integers that they are."""
    return {name_of(i): _data(leaf) for i, leaf in enumerate(jax.tree.leaves(run))}


def from_plain_arrays(like: loop.Run, arrays: dict[str, jax.Array]) -> loop.Run:
    """The run of these leaves."""
    leaves, treedef = jax.tree.flatten(like)
    again = [
        jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else array
        for leaf, array in ((leaf, arrays[name_of(i)]) for i, leaf in enumerate(leaves))
    ]
    return jax.tree.unflatten(treedef, again)


def name_of(i: int) -> str:
    """The name of leaf number i in a checkpoint."""
    return f"{i:04d}"


@jax.jit
def checksums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Two 32-bit numbers for each array, the same however it is spread over devices.

    c1 = sum_i (2 h(i) + 1) w_i,  c2 = sum_i h(w_i + h(i))  mod 2**32, over the words w_i of the array with a hash h. A
    change of one word always changes c1, since its factor is odd; any other, all but once in 2**64.
    """
    return {name: _checksum(array) for name, array in arrays.items()}


def _digest(body: Any) -> str:
    """The SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _checksum(array: jax.Array) -> jax.Array:
    size = array.dtype.itemsize
    if array.dtype == bool:
        words = array.astype(jnp.uint32)
    else:
        unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32)
        words = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        stride = math.prod(words.shape[axis + 1 :]) % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride)
    h = mix(place)
    first = jnp.sum((2 * h + 1) * words, dtype=jnp.uint32)
    return jnp.stack([first, jnp.sum(mix(words + h), dtype=jnp.uint32)])


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _data(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf
