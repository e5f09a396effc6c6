"""A network and its parameters in one file: safetensors, with the description in its metadata."""

import json
import os
import pathlib
import re
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from funcnn.description import Description, from_json, to_json
from funcnn.layer import Layer, Params

_DTYPES = {  # the format's names
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip


class StorageError(ValueError):
    """A file is no saved network, is damaged, or does not fit what was asked for. The message names file and part."""


def save(path: str | os.PathLike[str], net: Layer, params: Params) -> None:
    """Writes a network and its parameters to one file, which appears whole or not at all.

    The format is safetensors: any tool that reads it finds each array under its path, such as "0/w", and the network's
    JSON description in the metadata under "net".

    Args:
        path: the file.
        net: the network. One that holds functions of your own has no description: its `repr` is written, and
            `load(path, net=net)` reads the parameters back.
        params: its parameters.

    Raises:
        TypeError: params hold something else than nested dicts and tuples of arrays.
        StorageError: there is no directory for the file.

    Example:
        >>> import pathlib, tempfile, jax, funcnn as fnn
        >>> net = fnn.Serial(fnn.Dense(2), fnn.Tanh())
        >>> params = net.init(jax.random.key(0), (3,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "net.safetensors")
        ...     fnn.save(path, net, params)
        ...     again, same = fnn.load(path)
        >>> again == net, bool((same[0]["w"] == params[0]["w"]).all())
        (True, True)

    Source: the safetensors format, https://huggingface.co/docs/safetensors.
    """
    import safetensors.numpy  # noqa: PLC0415 - what only some runs need is not imported with the library

    if not isinstance(net, Layer):
        raise TypeError(f"save takes a file, a network and its parameters, got {net!r} as the network")
    arrays, structure = flatten(params)
    metadata = {"format": "funcnn 1", "structure": json.dumps(structure), "repr": portable_repr(net)}
    try:
        metadata["net"] = to_json(net)
    except TypeError as error:
        metadata["no net"] = str(error)
    tensors = {name: np.asarray(gathered(array), order="C") for name, array in arrays.items()}
    for name, array in tensors.items():
        if array.dtype.name not in _DTYPES.values():
            raise TypeError(f"params {name!r} is {array.dtype}, which the format has no name for")
    write_whole(path, safetensors.numpy.save(tensors, metadata))


def gathered(params: Params) -> Params:
    """Parameters that live on several devices as arrays of one, which any program takes; others as they are.

    Raises:
        TypeError: they are spread over several processes, and no one of them has the whole.
    """

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer) or len(leaf.sharding.device_set) == 1:
            return leaf
        if leaf.is_fully_replicated:
            return leaf.addressable_data(0)
        if not leaf.is_fully_addressable:
            raise TypeError(
                f"parameters {leaf.dtype}{list(leaf.shape)} are spread over several processes: gather them first, for "
                "example by jax.jit(lambda params: params, out_shardings=jax.NamedSharding(mesh, jax.P()))(params)"
            )
        return jnp.asarray(np.asarray(leaf))

    return jax.tree.map(one, params)


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file that appears whole or not at all."""
    target = pathlib.Path(path)
    if not target.parent.is_dir() or target.is_dir():
        why = "it is a directory" if target.is_dir() else f"there is no directory {target.parent}"
        raise StorageError(f"{target} cannot be written: {why}")
    unfinished = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def load(
    path: str | os.PathLike[str], *, net: Layer | None = None, types: Iterable[type[Description]] = ()
) -> tuple[Layer, Params]:
    """Reads what `save` wrote. Runs no code but the constructors of known description types.

    Args:
        path: the file.
        net: the network that the file is of, where it holds functions and so could not be written.
        types: your own description types that the network may be made of.

    Returns:
        The network and its parameters.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: the file is cut short, damaged, no safetensors, or not one that `save` wrote.

    Example:
        See `save`.
    """
    from safetensors import SafetensorError, deserialize  # noqa: PLC0415

    where = os.fspath(path)
    content = pathlib.Path(path).read_bytes()
    try:
        found = dict(deserialize(content))
    except SafetensorError as error:
        raise StorageError(f"{where}: not a safetensors file, or cut short or damaged: {error}") from error
    try:
        metadata = read_metadata(content)
        structure = json.loads(metadata["structure"])
        arrays = {name: _array(entry) for name, entry in found.items()}
        params = build(structure, arrays)
    except KeyError as error:
        raise StorageError(f"{where}: not a file that funcnn.save wrote: it has no {error}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise StorageError(f"{where}: damaged: {error}") from error
    check_dtypes(where, arrays)
    if net is not None:
        if metadata.get("repr") != portable_repr(net):
            raise StorageError(f"{where}: holds the parameters of {metadata.get('repr')}, not of {net!r}")
        return net, params
    if "net" not in metadata:
        raise StorageError(
            f"{where}: its network has no description ({metadata.get('no net')}); "
            f"give it: load(path, net={metadata.get('repr')})"
        )
    try:
        made = from_json(metadata["net"], types)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{where}: its network cannot be made: {error}") from error
    if not isinstance(made, Layer):
        raise StorageError(f"{where}: it describes {made!r}, which is no network")
    return made, params


def check_dtypes(where: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Raises where JAX, as it is set, would keep less of an array than was saved."""
    for name, array in arrays.items():
        if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
            raise StorageError(f"{where}: {name!r} is {array.dtype}, which JAX has under jax.enable_x64(True) only")


def read_metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file, whose form was checked: 8 bytes of length, then JSON."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]).get("__metadata__", {})


def flatten(params: Params) -> tuple[dict[str, Any], Any]:
    """The arrays of nested dicts and tuples by path ("0/w"), and the nesting as JSON: a list of pairs, or a path.

    Raises:
        TypeError: there is something else in it, or a name that is no text or has a slash.
    """
    arrays: dict[str, Any] = {}

    def walk(tree: Any, path: tuple[str, ...]) -> Any:
        if type(tree) is dict:
            if bad := [name for name in tree if not isinstance(name, str) or "/" in name]:
                raise TypeError(f"names of parameters are texts without a slash, got {bad} at {'/'.join(path)!r}")
            return {"dict": [[name, walk(inner, (*path, name))] for name, inner in sorted(tree.items())]}
        if type(tree) is tuple:
            return {"tuple": [walk(inner, (*path, str(i))) for i, inner in enumerate(tree)]}
        if not (hasattr(tree, "shape") and hasattr(tree, "dtype")):
            raise TypeError(
                f"parameters are nested dicts and tuples of arrays, got {type(tree).__name__} at {'/'.join(path)!r}"
            )
        arrays["/".join(path)] = tree
        return "/".join(path)

    return arrays, walk(params, ())


def build(structure: Any, arrays: dict[str, Any]) -> Params:
    """The parameters that `flatten` took apart.

    Raises:
        ValueError: the nesting is not one, or its arrays are not those that there are.
    """
    left = set(arrays)

    def walk(node: Any) -> Any:
        if isinstance(node, str):
            if node not in left:
                raise ValueError(f"array {node!r} is missing, or is asked for twice")
            left.discard(node)
            return jnp.asarray(arrays[node])
        if isinstance(node, dict) and list(node) == ["tuple"] and isinstance(node["tuple"], list):
            return tuple(map(walk, node["tuple"]))
        if isinstance(node, dict) and list(node) == ["dict"] and isinstance(node["dict"], list):
            inner = {_name(pair): pair[1] for pair in node["dict"]}
            if len(inner) < len(node["dict"]):
                raise ValueError(f"a name is there twice among {[_name(pair) for pair in node['dict']]}")
            return {name: walk(tree) for name, tree in inner.items()}
        raise ValueError(f"the nesting of the parameters is not one: {str(node)[:80]}")

    params = walk(structure)
    if left:
        raise ValueError(f"the arrays {sorted(left)} have no place")
    return params


def flat_names(structure: Any) -> list[str]:
    """The paths of the arrays in a nesting, in the order of the leaves."""
    if isinstance(structure, str):
        return [structure]
    inner = structure["tuple"] if "tuple" in structure else [node for _, node in structure["dict"]]
    return [name for node in inner for name in flat_names(node)]


def portable_repr(thing: Any) -> str:
    """The repr without addresses of functions, which are others in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))


def shapes(tree: Any) -> dict[str, str]:
    """Each leaf of any pytree by its path: its dtype and shape as text."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _name(pair: Any) -> str:
    if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
        raise ValueError(f"a name and what it stands for are a pair, got {str(pair)[:80]}")
    return pair[0]


def _array(entry: dict[str, Any]) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"dtype {entry['dtype']} is not known here")
    return np.frombuffer(entry["data"], jnp.dtype(_DTYPES[entry["dtype"]])).reshape(entry["shape"])
