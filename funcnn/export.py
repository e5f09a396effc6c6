"""A network as a program that runs without funcnn: StableHLO for CPU, GPU and TPU, for any number of examples."""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnn.layer import Layer, Params, Shape, check_in_shape
from funcnn.storage import StorageError, gathered, write_whole

PLATFORMS = ("cpu", "cuda", "tpu")
_MAGIC = b"funcnn export 1 sha256 "


@dataclasses.dataclass(frozen=True, eq=False)
class Exported:
    """A network with its parameters inside, as `jax.export` has it. Call it with examples (N, *in_shape).

    Attributes:
        artifact: the `jax.export.Exported`.

    Example:
        See `export`.
    """

    artifact: Any

    @property
    def in_shape(self) -> Shape:
        """The shape of one example."""
        return self.artifact.in_avals[0].shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the examples."""
        return self.artifact.in_avals[0].dtype

    @property
    def platforms(self) -> tuple[str, ...]:
        """Where it runs."""
        return self.artifact.platforms

    def __call__(self, x: Any) -> jax.Array:
        x = jnp.asarray(x)
        if x.shape[1:] != self.in_shape or x.dtype != self.dtype or not x.ndim:
            raise ValueError(f"this network takes {self._takes()}, got {x.dtype}{list(x.shape)}")
        return self.artifact.call(x)

    def __repr__(self) -> str:
        out = self.artifact.out_avals[0]
        return f"<Exported {self._takes()} -> {out.dtype}{['N', *out.shape[1:]]} for {self.platforms}>"

    def _takes(self) -> str:
        return f"{self.dtype}{['N', *self.in_shape]}"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it to one file: a line with its SHA-256, then what `jax.export.deserialize` reads."""
        content = bytes(self.artifact.serialize())
        write_whole(path, _MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n" + content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Exported":
        """Reads what `save` wrote.

        Raises:
            StorageError: the file is cut short, damaged, or something else.
        """
        head, _, content = pathlib.Path(path).read_bytes().partition(b"\n")
        if not head.startswith(_MAGIC):
            raise StorageError(f"{os.fspath(path)}: not a file that Exported.save wrote")
        if head.removeprefix(_MAGIC) != hashlib.sha256(content).hexdigest().encode():
            raise StorageError(f"{os.fspath(path)}: cut short or damaged: its content has another SHA-256")
        try:
            return cls(jax.export.deserialize(bytearray(content)))
        except Exception as error:  # of whatever kind: the content is not what this JAX reads
            raise StorageError(f"{os.fspath(path)}: not a program that this JAX reads: {error}") from error


def export(
    net: Layer, params: Params, in_shape: Shape, *, dtype: Any = None, platforms: tuple[str, ...] = PLATFORMS
) -> Exported:
    """Compiles a network, with its parameters inside, to a program for every platform and any number of examples.

    Args:
        net: the network; it runs without noise.
        params: its parameters.
        in_shape: the shape of one example.
        dtype: the dtype of the examples; JAX's default floating dtype unless given.
        platforms: of "cpu", "cuda", "rocm" and "tpu".

    Returns:
        An `Exported`, to be called or saved.

    Raises:
        LayerError: the parameters or `in_shape` do not fit the network.

    Example:
        >>> import pathlib, tempfile, jax, jax.numpy as jnp, funcnn as fnn
        >>> net = fnn.Serial(fnn.Dense(2), fnn.Softmax())
        >>> exported = fnn.export(net, net.init(jax.random.key(0), (3,)), (3,))
        >>> exported
        <Exported float32['N', 3] -> float32['N', 2] for ('cpu', 'cuda', 'tpu')>
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported.save(pathlib.Path(folder, "net.bin"))
        ...     fnn.Exported.load(pathlib.Path(folder, "net.bin"))(jnp.ones((5, 3))).shape
        (5, 2)

    Source: https://docs.jax.dev/en/latest/export/export.html
    """
    if not isinstance(net, Layer):
        raise TypeError(f"export takes a network, its parameters and the shape of one example, got {net!r}")
    params = gathered(params)
    (count,) = jax.export.symbolic_shape("N")
    x = jax.ShapeDtypeStruct((count, *check_in_shape(in_shape)), jnp.result_type(float) if dtype is None else dtype)
    return Exported(jax.export.export(jax.jit(lambda x: net.apply(params, x)), platforms=platforms)(x))
