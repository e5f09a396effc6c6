"""Checkpoints of a run, by Orbax: all that it takes to go on as if nothing had happened, checked when it is read.

Orbax writes a checkpoint beside its place and moves it there when it is whole, on threads of its own. What it does not
do is done here: the structure is compared leaf by leaf before anything is restored, and each array has a checksum, so
that a file that was damaged later is found out.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import warnings
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from funcnn.description import Description, from_json, to_json
from funcnn.layer import Layer, Params
from funcnn.storage import build, flat_names, flatten, shapes
from funcnn.train import loop
from funcnn.train import steps as one_step
from funcnn.train.errors import CheckpointError
from funcnn.train.history import History, Recorder
from funcnn.train.shuffle import mix

FORMAT = 1


class _Damaged(Exception):
    """A checkpoint that cannot be trusted."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where and when a run is saved, and what is kept.

    A run that is given a directory with checkpoints of its own goes on from the newest sound one, to the last bit as if
    it had not been interrupted; `epochs` may have become more.

    Args:
        directory: where to; it is made where it is not there.
        every_epochs: how many epochs pass from one checkpoint to the next; None: none for this.
        every_steps: how many steps, likewise.
        keep: how many of the last are kept.
        best: the value by which the best checkpoint is kept beside them, such as "valid loss"; None: none.
        maximize: whether more of it is better.

    Example:
        >>> import funcnn as fnn
        >>> fnn.train.Checkpoints("out/run", every_steps=500, keep=2)
        Checkpoints(directory='out/run', every_epochs=1, every_steps=500, keep=2, best='valid loss', maximize=False)
    """

    directory: str | os.PathLike[str]
    every_epochs: int | None = 1
    every_steps: int | None = None
    keep: int = 3
    best: str | None = "valid loss"
    maximize: bool = False

    def __post_init__(self) -> None:
        for name in ("every_epochs", "every_steps", "keep"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1) and not (value is None and name != "keep"):
                raise ValueError(f"{name} is a positive integer{' or None' if name != 'keep' else ''}, got {value!r}")


class Keeper:
    """Saves and restores one run. Of several processes each has one, and all of them save together."""

    def __init__(self, checkpoints: Checkpoints, plan: loop.Plan, identity: dict[str, Any], per_epoch: int | None):
        ocp = orbax()
        from orbax.checkpoint.checkpoint_managers import preservation_policy as policy  # noqa: PLC0415

        self.ocp, self.checkpoints, self.plan = ocp, checkpoints, plan
        self.identity, self.per_epoch = identity, per_epoch
        self.directory = pathlib.Path(checkpoints.directory).expanduser().resolve()
        kept: list[Any] = [policy.LatestN(checkpoints.keep)]
        if checkpoints.best is not None:
            kept.append(
                policy.BestN(
                    get_metric_fn=lambda metrics: metrics["value"],
                    reverse=not checkpoints.maximize,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self.manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy.AnyPreservationPolicy(kept), cleanup_tmp_directories=True
            ),
        )
        self.newest = self.manager.latest_step()

    @classmethod
    def open(cls, checkpoints: Checkpoints, plan: loop.Plan, feed: Any, run: loop.Run) -> "Keeper":
        """The keeper of a run that has not begun."""
        objective = one_step.made(plan.recipe.objective, feed.hyper)
        identity = {
            "network": description(objective.net),
            "loss": description(objective.loss),
            "penalty": None if objective.penalty is None else description(objective.penalty),
            "batch_size": plan.batch_size * jax.process_count(),
            "shuffle": plan.shuffle,
            "examples": None if feed.n is None else feed.n * jax.process_count(),
            "metrics": [name for name, _ in plan.recipe.metrics],
            "early stopping": [plan.monitor, plan.maximize, plan.patience, plan.min_delta],
            "hyper": {name: float(value) for name, value in feed.hyper.items()},
            "key": np.asarray(jax.random.key_data(run.state.key)).tolist(),
            "arrays": shapes(run),
        }
        return cls(checkpoints, plan, identity, feed.per_epoch)

    def pause(self, step: int) -> int:
        """The number of the next step before which the run is to be saved."""
        every = [self.checkpoints.every_steps or 0, (self.checkpoints.every_epochs or 0) * (self.per_epoch or 0)]
        return min((step - step % n + n for n in every if n), default=2**31)

    def due(self, step: int, epoch_ended: int | None) -> bool:
        """Whether the run is to be saved after `step` steps, where an epoch of this number, if any, has just ended."""
        steps, epochs = self.checkpoints.every_steps, self.checkpoints.every_epochs
        by_epoch = epochs is not None and epoch_ended is not None and epoch_ended % epochs == 0
        return by_epoch or (steps is not None and step // steps > (self.newest or 0) // steps)

    def save(self, run: loop.Run, position: tuple[int, int], recorder: Recorder) -> None:
        """Begins to write a checkpoint; the writing goes on while the run does."""
        step = int(run.state.step)
        if self.newest is not None and step <= self.newest:
            return
        arrays = plain_arrays(run)
        # On the host, where their number may change without a compilation; one more, since Orbax saves no empty array.
        losses = np.concatenate([np.zeros(1), recorder.losses])
        body = {
            "format": FORMAT,
            "identity": self.identity,
            "position": list(position),
            "rows": recorder.rows,
            "best_epoch": recorder.best_epoch,
            "stopped": recorder.stopped,
            "seconds": recorder.seconds,
            "losses": len(losses),
            "losses sha256": hashlib.sha256(losses.tobytes()).hexdigest(),
            "compile_seconds": recorder.compile_seconds,
            "checksums": {name: np.asarray(value).tolist() for name, value in checksums(arrays).items()},
            "shapes": {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()},
            "params": nesting(run.state.params),
            "value": self._value(recorder, step),
            "maximize": self.checkpoints.maximize,
        }
        value = body["value"]
        # Read back at once: it is written while the run goes on and `recorder` with it.
        sealed = {"body": json.loads(json.dumps(body)), "sha256": digest(body)}
        args = self.ocp.args
        self.manager.save(
            step,
            args=args.Composite(
                arrays=args.StandardSave(arrays | {"losses": losses}),
                meta=args.JsonSave(sealed),
            ),
            metrics=None if value is None else {"value": value},
        )
        self.newest = step

    def _value(self, recorder: Recorder, step: int) -> float | None:
        """By what this checkpoint may be the best; None where it is not at an epoch's end, or has no value."""
        row = recorder.rows[-1] if recorder.rows else {"step": -1}
        value = row.get(self.checkpoints.best or "", math.nan)
        return value if row["step"] == step and math.isfinite(value) else None

    def restore(self, like: loop.Run, epochs: int) -> tuple[loop.Run, Recorder, tuple[int, int]] | None:
        """The newest sound checkpoint of this run, of at most so many epochs; None where there are none."""
        steps = sorted(self.manager.all_steps(), reverse=True)
        for step in steps:
            try:
                body = read_body(self.manager, step)
                self._check(step, body)
                if len(body["rows"]) > epochs:
                    raise CheckpointError(
                        f"the run in {self.directory} has {len(body['rows'])} epochs already, and epochs={epochs}"
                    )
                wanted = {
                    name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
                    for name, leaf in plain_arrays(like).items()
                }
                arrays, losses = read_arrays(self.manager, step, body, wanted)
            except _Damaged as error:
                warnings.warn(
                    f"the checkpoint of step {step} in {self.directory} is damaged and left out: {error}", stacklevel=2
                )
                self._set_aside(step)
                continue
            self.newest = step
            return from_plain_arrays(like, list(arrays.values())), recorder_of(body, losses), tuple(body["position"])
        if steps or any(self.directory.glob("damaged-*")):
            raise CheckpointError(
                f"none of the checkpoints in {self.directory} can be used: all are damaged; "
                "begin anew in another directory"
            )
        return None

    def close(self) -> None:
        """Waits for what is being written."""
        self.manager.wait_until_finished()
        self.manager.close()

    def _check(self, step: int, body: dict[str, Any]) -> None:
        """Raises unless the checkpoint is of this run; every difference is named."""
        if body["format"] != FORMAT:
            raise CheckpointError(f"{self.directory}: checkpoints of format {body['format']}, where {FORMAT} is known")
        there, here = body["identity"], json.loads(json.dumps(self.identity))
        names = [name for name in here if name != "arrays"]
        faults = [f"{n} is {there.get(n)} there and {here[n]} here" for n in names if there.get(n) != here[n]]
        old, new = there["arrays"], here["arrays"]
        faults += [f"run{p} is {old[p]} there and {new[p]} here" for p in new if p in old and old[p] != new[p]]
        faults += [f"run{p} ({new[p]}) is not there" for p in new if p not in old]
        faults += [f"run{p} ({old[p]}) is there and not here" for p in old if p not in new]
        if faults:
            raise CheckpointError(
                f"the checkpoint of step {step} in {self.directory} is of another run:\n  " + "\n  ".join(faults)
            )

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            place = next(path for path in self.directory.iterdir() if path.name == str(step))
            place.rename(self.directory / f"damaged-{step}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"funcnn: the checkpoint of step {step} is set aside")
        self.manager.reload()


def load_checkpoint(
    directory: str | os.PathLike[str],
    which: str | int = "newest",
    *,
    net: Layer | None = None,
    types: Iterable[type[Description]] = (),
) -> tuple[Layer, Params, History]:
    """The network, parameters and history of a checkpoint, without the data that it was trained on.

    Args:
        directory: where `Checkpoints` saved them.
        which: "newest", "best" (by the value that they were saved with), or a number of steps.
        net: the network, where it holds functions of your own and so has no description.
        types: your own description types that the network may be made of.

    Returns:
        The network, its parameters, and the history up to there.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged, or its network cannot be made.

    Example:
        >>> import tempfile, jax, jax.numpy as jnp, optax, funcnn as fnn
        >>> objective = fnn.Objective(fnn.Dense(1), fnn.losses.squared_error)
        >>> params = objective.net.init(jax.random.key(0), (2,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     state, _ = fnn.train.fit(
        ...         objective, optax.sgd(0.1), params, (jnp.ones((4, 2)), jnp.ones((4, 1))), epochs=2, batch_size=4,
        ...         key=jax.random.key(1), checkpoints=folder, progress=None)
        ...     net, params, history = fnn.train.load_checkpoint(folder)
        >>> net, bool((params["w"] == state.params["w"]).all()), len(history["loss"])
        (Dense(1), True, 2)
    """
    ocp = orbax()
    where = pathlib.Path(directory).expanduser().resolve()
    if not where.is_dir():
        raise CheckpointError(f"{where}: no such directory")
    manager = ocp.CheckpointManager(where, options=ocp.CheckpointManagerOptions(read_only=True))
    try:
        bodies = {step: read_body(manager, step) for step in manager.all_steps()}
        step = _chosen(which, bodies, where)
        body = bodies[step]
        if body["params"] is None:
            raise CheckpointError(f"{where}: its parameters are not nested dicts and tuples of arrays")
        wanted = {name: np.zeros(shape, dtype) for name, (dtype, shape) in body["shapes"].items()}
        arrays, losses = read_arrays(manager, step, body, wanted)
        description = body["identity"]["network"]
        made = from_json(description, types) if net is None else net
    except (_Damaged, ValueError) as error:
        hint = "" if net is not None else "; a network that holds functions is given: load_checkpoint(..., net=net)"
        raise CheckpointError(f"{where}: cannot be loaded: {error}{hint}") from error
    finally:
        manager.close()
    paths = list(body["identity"]["arrays"])
    leaves = [arrays[f"{i:04d}"] for i, path in enumerate(paths) if path.startswith(".state.params")]
    names = flat_names(body["params"])
    return made, build(body["params"], dict(zip(names, leaves, strict=True))), recorder_of(body, losses).history()


def _chosen(which: str | int, bodies: dict[int, Any], where: pathlib.Path) -> int:
    """The number of steps of the checkpoint that was asked for."""
    if isinstance(which, int) and which in bodies:
        return which
    if which == "newest" and bodies:
        return max(bodies)
    valued = {step: body["value"] for step, body in bodies.items() if body["value"] is not None}
    if which == "best" and valued:
        return (max if next(iter(bodies.values()))["maximize"] else min)(valued, key=lambda step: valued[step])
    raise CheckpointError(
        f'{where}: which is "newest", "best" or a number of steps, got {which!r}; there are {sorted(bodies)}, and with '
        f"a value {sorted(valued)}"
    )


def orbax() -> Any:
    """The library that writes the files."""
    try:
        import orbax.checkpoint as ocp  # noqa: PLC0415 - in the `checkpoint` extra
    except ImportError as error:
        raise ImportError("checkpoints need Orbax; install it with: pip install 'funcnn[checkpoint]'") from error
    return ocp


def read_body(manager: Any, step: int) -> dict[str, Any]:
    """What a checkpoint says of itself, checked to be what was written."""
    sealed = _read(manager, step, "meta", orbax().args.JsonRestore())
    if digest(sealed["body"]) != sealed["sha256"]:
        raise _Damaged("its description has another checksum than it had when it was written")
    return sealed["body"]


def read_arrays(manager: Any, step: int, body: dict[str, Any], wanted: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """A checkpoint's arrays, as `wanted` and checked likewise, and the losses of its steps."""
    arrays = _read(manager, step, "arrays", orbax().args.StandardRestore(wanted | {"losses": np.zeros(body["losses"])}))
    losses = np.asarray(arrays.pop("losses"))
    if hashlib.sha256(losses.tobytes()).hexdigest() != body["losses sha256"]:
        raise _Damaged("the losses of its steps have another checksum than they had when it was written")
    for name, value in checksums(arrays).items():
        if np.asarray(value).tolist() != body["checksums"][name]:
            path = list(body["identity"]["arrays"])[int(name)]
            raise _Damaged(f"run{path} has another checksum than it had when it was written")
    return arrays, losses[1:]


def recorder_of(body: dict[str, Any], losses: np.ndarray) -> Recorder:
    """What had been recorded."""
    rest = {name: body[name] for name in ("rows", "compile_seconds", "best_epoch", "stopped", "seconds")}
    return Recorder(losses=losses.astype(jnp.result_type(float)), **rest)


def nesting(params: Params) -> Any:
    """How the parameters are nested, as JSON; None where they are more than dicts and tuples."""
    try:
        return flatten(params)[1]
    except TypeError:
        return None


def _read(manager: Any, step: int, item: str, args: Any) -> Any:
    try:
        return manager.restore(step, args=orbax().args.Composite(**{item: args}))[item]
    except Exception as error:
        raise _Damaged(f"its {item} cannot be read: {type(error).__name__}: {error}") from error


def description(thing: Any) -> str:
    """What a checkpoint says of a network, loss or penalty: its JSON, or, where it has none, its repr."""
    try:
        return to_json(thing)
    except (TypeError, AttributeError):
        return repr(thing) if isinstance(thing, Layer) else getattr(thing, "__qualname__", type(thing).__qualname__)


def plain_arrays(run: loop.Run) -> dict[str, jax.Array]:
    """The leaves of a run by number, random keys as the integers that they are."""
    return {f"{i:04d}": _data(leaf) for i, leaf in enumerate(jax.tree.leaves(run))}


def from_plain_arrays(like: loop.Run, arrays: list[jax.Array]) -> loop.Run:
    """The run of these leaves."""
    leaves, treedef = jax.tree.flatten(like)
    again = [
        jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else array
        for leaf, array in zip(leaves, arrays, strict=True)
    ]
    return jax.tree.unflatten(treedef, again)


@jax.jit
def checksums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Two 32-bit numbers for each array, the same however it is spread over devices.

    c1 = sum_i (2 h(i) + 1) w_i,  c2 = sum_i h(w_i + h(i))  mod 2**32, over the words w_i of the array with a hash h. A
    change of one word always changes c1, since its factor is odd; any other, all but once in 2**64.
    """
    return {name: _checksum(array) for name, array in arrays.items()}


def digest(body: Any) -> str:
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
