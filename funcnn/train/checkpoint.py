"""Checkpoints of a run, by Orbax: all that it takes to go on as if nothing had happened, checked when it is read.

Orbax writes a checkpoint beside its place and moves it there when it is whole, on threads of its own. What it does not
do is done here: the structure is compared leaf by leaf before anything is restored, and each array has a checksum, so
that a file that was damaged later is found out.
"""

import dataclasses
import itertools
import json
import math
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from funcnn.description import Description, from_json, to_json
from funcnn.layer import Layer, Params
from funcnn.storage import build, check_dtypes, flat_names, flatten, portable_repr, shapes
from funcnn.train import loop
from funcnn.train import steps as one_step
from funcnn.train.checkpoint_file import (
    Damaged,
    checksums,
    from_plain_arrays,
    name_of,
    orbax,
    plain_arrays,
    read_arrays,
    read_body,
    recorder_of,
    sealed,
    traces_of,
)
from funcnn.train.errors import CheckpointError
from funcnn.train.history import History, Recorder

FORMAT = 2
MOST_FAULTS = 20  # that a message names
BEST = "valid loss"
REMOVED = ".removed"  # in the directory: what is about to be deleted, so that a numbered folder is always a whole one


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where and when a run is saved, and what is kept.

    A run that is given a directory with checkpoints of its own goes on from the newest sound one, to the last bit as if
    it had not been interrupted. `epochs` may have become more; the validation after what was the last epoch then stays,
    where `valid_every` would not have asked for it. Compared are network, loss and penalty, the names of metrics and
    gradient, batch size, order, early stopping, hyper-parameters, `prepare` and `augment`, and the shapes and dtypes of
    data and state; not the numbers in the data and in the optimizer, and not the parameters of the beginning.

    Args:
        directory: where to; it is made where it is not there.
        every_epochs: how many epochs pass from one checkpoint to the next; None: none for this.
        every_steps: how many steps, likewise.
        keep: how many of the last are kept.
        best: the value by which the best checkpoint is kept beside them, where the run has such a value; None: none.
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
    best: str | None = BEST
    maximize: bool = False

    def __post_init__(self) -> None:
        for name in ("every_epochs", "every_steps", "keep"):
            value = getattr(self, name)
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1
            if not whole and not (value is None and name != "keep"):
                raise ValueError(f"{name} is a positive integer{' or None' if name != 'keep' else ''}, got {value!r}")
            object.__setattr__(self, name, None if value is None else int(value))


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
        self._delete_removed()
        self.manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy.AnyPreservationPolicy(kept),
                cleanup_tmp_directories=True,
                todelete_subdir=REMOVED,
            ),
        )
        self.newest = self.manager.latest_step()

    @classmethod
    def open(cls, checkpoints: Checkpoints, plan: loop.Plan, feed: Any, run: loop.Run) -> "Keeper":
        """The keeper of a run that has not begun."""
        names = loop.row_names(plan, feed.valid is not None)
        if checkpoints.best not in (None, BEST, *names):  # the default needs no validation to be there
            raise ValueError(f"the best checkpoint is chosen by one of {names}, got best={checkpoints.best!r}")
        _check_directory(checkpoints)
        objective = one_step.made(plan.recipe.objective, feed.hyper)
        identity = {
            "network": description(objective.net),
            "loss": description(objective.loss),
            "penalty": None if objective.penalty is None else description(objective.penalty),
            "gradient": plan.recipe.gradient if isinstance(plan.recipe.gradient, str) else "a function",
            "prepare": None if plan.recipe.prepare is None else description(plan.recipe.prepare),
            "augment": [description(function) for function in plan.recipe.augment],
            "batch_size": plan.batch_size * jax.process_count(),
            "shuffle": plan.shuffle,
            "examples": None if feed.n is None else feed.n * jax.process_count(),
            "data": feed.kinds,
            "validation": None if feed.valid is None else f"every {plan.valid_every} epochs",
            "metrics": [name for name, _ in plan.recipe.metrics],
            "watch": plan.watch and f"every {plan.watch.every} steps, {portable_repr(plan.watch.function)}",
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
        traces, said = traces_of(recorder)  # on the host, where their number may change without a compilation
        body = {
            "format": FORMAT,
            "identity": self.identity,
            "position": list(position),
            "rows": recorder.rows,
            "best_epoch": recorder.best_epoch,
            "stopped": recorder.stopped,
            "seconds": recorder.seconds,
            "traces": said,
            "compile_seconds": recorder.compile_seconds,
            "checksums": {name: np.asarray(value).tolist() for name, value in checksums(arrays).items()},
            "shapes": {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()},
            "params": nesting(run.state.params),
            "value": self._value(recorder, step),
            "maximize": self.checkpoints.maximize,
        }
        value = body["value"]
        args = self.ocp.args
        self.manager.wait_until_finished()
        self._delete_removed()
        self.manager.save(
            step,
            args=args.Composite(
                arrays=args.StandardSave(arrays | traces),
                meta=args.JsonSave(sealed(body)),  # a copy: it is written while the run goes on, and `recorder` with it
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
                arrays, traces = read_arrays(self.manager, step, body, wanted)
            except Damaged as error:
                warnings.warn(
                    f"the checkpoint of step {step} in {self.directory} is damaged and left out: {error}", stacklevel=2
                )
                self._set_aside(step)
                continue
            self.newest = step
            return from_plain_arrays(like, arrays), recorder_of(body, traces), tuple(body["position"])
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
        self._delete_removed()

    def _check(self, step: int, body: dict[str, Any]) -> None:
        """Raises unless the checkpoint is of this run; every difference is named."""
        _check_format(self.directory, body)
        there, here = body["identity"], json.loads(json.dumps(self.identity))
        names = [name for name in here if name != "arrays"]
        faults = [f"{n} is {there.get(n)} there and {here[n]} here" for n in names if there.get(n) != here[n]]
        old, new = there["arrays"], here["arrays"]
        faults += [f"run{p} is {old[p]} there and {new[p]} here" for p in new if p in old and old[p] != new[p]]
        faults += [f"run{p} ({new[p]}) is not there" for p in new if p not in old]
        faults += [f"run{p} ({old[p]}) is there and not here" for p in old if p not in new]
        if faults:
            more = [f"and {len(faults) - MOST_FAULTS} differences more"] if len(faults) > MOST_FAULTS else []
            raise CheckpointError(
                f"the checkpoint of step {step} in {self.directory} is of another run; begin in another directory, "
                "or make them the same:\n  " + "\n  ".join(faults[:MOST_FAULTS] + more)
            )

    def _delete_removed(self) -> None:
        """Deletes what Orbax moved away: a process that is killed while it deletes leaves half of one."""
        if jax.process_index() == 0:
            shutil.rmtree(self.directory / REMOVED, ignore_errors=True)

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            unused = self.directory / f"damaged-{step}"
            for i in itertools.count(2):
                if not unused.exists():
                    break
                unused = self.directory / f"damaged-{step}-{i}"
            (self.directory / str(step)).rename(unused)
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
    if (where / "meta").is_dir():
        raise CheckpointError(f"{where} is one checkpoint: give the directory of the run, {where.parent}, and which")
    options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)
    manager = ocp.CheckpointManager(where, options=options)
    try:
        body, arrays, traces = _sound(manager, which, where)
    finally:
        manager.close()
    nested = body["params"]
    if nested is None:
        raise CheckpointError(f"{where}: its parameters are not nested dicts and tuples of arrays")
    made: Any = net
    if made is None:
        try:
            made = from_json(body["identity"]["network"], types)
        except ValueError as error:
            raise CheckpointError(
                f"{where}: cannot be loaded: {error}; a network that holds functions is given: "
                "load_checkpoint(..., net=net)"
            ) from error
    paths = list(body["identity"]["arrays"])
    leaves = [arrays[name_of(i)] for i, path in enumerate(paths) if path.startswith(".state.params")]
    check_dtypes(where, dict(zip(flat_names(nested), leaves, strict=True)))
    params = build(nested, dict(zip(flat_names(nested), leaves, strict=True)))
    return made, params, recorder_of(body, traces).history()


def _sound(manager: Any, which: str | int, where: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """What the checkpoint that was asked for holds; or, where it is damaged and not asked for by number, the next."""
    bodies: dict[int, Any] = {}
    faults: dict[int, Damaged] = {}

    def damaged(step: int, error: Damaged) -> None:
        faults[step] = error
        if step != which:
            warnings.warn(f"the checkpoint of step {step} in {where} is damaged and left out: {error}", stacklevel=5)

    for step in manager.all_steps():
        try:
            bodies[step] = read_body(manager, step)
            _check_format(where, bodies[step])
        except Damaged as error:
            damaged(step, error)
    for step in _candidates(which, bodies):
        body = bodies[step]
        try:
            wanted = {name: np.zeros(shape, dtype) for name, (dtype, shape) in body["shapes"].items()}
            return body, *read_arrays(manager, step, body, wanted)
        except Damaged as error:
            damaged(step, error)
    if which in faults:
        raise CheckpointError(f"{where}: the checkpoint of step {which} is damaged: {faults[which]}") from faults[which]
    sound = sorted(set(bodies) - set(faults))
    if not sound:
        raise CheckpointError(f"{where}: there are no sound checkpoints here")
    raise CheckpointError(
        f'{where}: which is "newest", "best" or a number of steps, got {which!r}; there are {sound}, and with a value '
        f"{sorted(_valued(bodies).keys() & set(sound))}"
    )


def _candidates(which: str | int, bodies: dict[int, Any]) -> list[int]:
    """The numbers of steps of the checkpoints that can be meant, the best choice first."""
    if which == "newest":
        return sorted(bodies, reverse=True)
    if which == "best":
        values = _valued(bodies)
        maximize = any(body["maximize"] for body in bodies.values())
        return sorted(values, key=lambda step: values[step], reverse=maximize)
    return [which] if isinstance(which, int) and which in bodies else []


def _valued(bodies: dict[int, Any]) -> dict[int, float]:
    return {step: body["value"] for step, body in bodies.items() if body["value"] is not None}


def _check_format(where: pathlib.Path, body: dict[str, Any]) -> None:
    if body["format"] != FORMAT:
        raise CheckpointError(f"{where}: checkpoints of format {body['format']}, where {FORMAT} is known")


def nesting(params: Params) -> Any:
    """How the parameters are nested, as JSON; None where they are more than dicts and tuples."""
    try:
        return flatten(params)[1]
    except TypeError:
        return None


def description(thing: Any) -> str:
    """What a checkpoint says of a network, loss or penalty: its JSON, or, where it has none, its repr."""
    try:
        return to_json(thing)
    except (TypeError, AttributeError):
        return portable_repr(thing)


def _check_directory(checkpoints: Checkpoints) -> None:
    """Raises where the directory is none, or holds numbered folders that are no checkpoints and not to be touched."""
    where = pathlib.Path(checkpoints.directory).expanduser()
    if where.exists() and not where.is_dir():
        raise CheckpointError(f"{where} is a file: checkpoints go to a directory")
    numbered = [path for path in where.iterdir() if path.name.isdigit()] if where.is_dir() else []
    if strange := [path.name for path in numbered if not any((path / name).exists() for name in ("meta", "arrays"))]:
        raise CheckpointError(f"{where}: {', '.join(sorted(strange))} is no checkpoint; give another directory")
