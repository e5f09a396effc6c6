"""Trains a network: `fit`; and measures one: `evaluate`."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from funcnn.layer import Key, Params
from funcnn.objective import Objective
from funcnn.storage import gathered
from funcnn.train import loop, source
from funcnn.train import steps as one_step
from funcnn.train.arguments import check_count, check_key, describe, numbers
from funcnn.train.checkpoint import Checkpoints
from funcnn.train.feed import Memory, Stream, check_arrays, evaluate_source
from funcnn.train.history import History
from funcnn.train.placement import ParamSharding, Placement, place
from funcnn.train.progress import JsonLines, as_progress
from funcnn.train.steps import Augment, Hyper, Metric, Prepare, Recipe, State
from funcnn.train.trainer import Trainer
from funcnn.train.watch import Watch
from funcnn.wrappers import Cast

_NO_OPTIMIZER = optax.identity()


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Stops when a validation value has not become better for a while, and keeps the best state.

    Args:
        patience: how many validations in a row may pass without a better value.
        monitor: what is looked at, such as "valid loss" or "valid accuracy"; without validation, "loss".
        maximize: whether more is better, as for an accuracy.
        min_delta: by how much a value has to be better, in its own unit.

    Example:
        >>> import funcnn as fnn
        >>> fnn.train.EarlyStopping(patience=5, monitor="valid accuracy", maximize=True)
        EarlyStopping(patience=5, monitor='valid accuracy', maximize=True, min_delta=0.0)

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), algorithm 7.1.
    """

    patience: int
    monitor: str = "valid loss"
    maximize: bool = False
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "patience", check_count("EarlyStopping's patience", self.patience))
        if not isinstance(self.min_delta, int | float | np.floating) or not self.min_delta >= 0:
            raise ValueError(f"EarlyStopping's min_delta is a number and not negative, got {self.min_delta!r}")
        object.__setattr__(self, "min_delta", float(self.min_delta))


def fit(
    objective: Objective | Callable[..., Objective],
    optimizer: Any,
    params: Params | Callable[..., Params],
    data: Any,
    *,
    epochs: int,
    batch_size: int,
    key: Key,
    valid: Any = None,
    valid_every: int = 1,
    valid_batch_size: int | None = None,
    gradient: str | Callable[..., Any] = "autodiff",
    metrics: Mapping[str, Metric] | None = None,
    hyper: Mapping[str, Any] | None = None,
    prepare: Prepare | None = None,
    augment: Augment | Sequence[Augment] = (),
    shuffle: bool = True,
    stream: bool = False,
    chunk_steps: int | None = None,
    early_stopping: EarlyStopping | None = None,
    watch: Watch | None = None,
    compute_dtype: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
    batch_axis: str | None = None,
    param_sharding: ParamSharding | None = None,
    checkpoints: Checkpoints | str | os.PathLike[str] | None = None,
    progress: Any = "auto",
    log: str | os.PathLike[str] | None = None,
) -> tuple[State, History]:
    """Trains a network.

    Each epoch goes through all examples once, in an order drawn from `key`; an epoch's last batch may be smaller (it is
    filled up with examples of weight 0, so that each example counts once). Data in memory stay on the device, and many
    epochs run as one compiled program, which is traced once.

    Args:
        objective: net + loss + penalty; or, with `hyper`, a function of hyper-parameters that returns it.
        optimizer: any optax transformation; or, with `hyper`, such a function: `optax.adam` and
            `hyper={"learning_rate": 1e-3}` train with every learning rate by the same compiled program.
        params: the parameters to begin with; or a function of a key (and of hyper-parameters), which is given the first
            of `jax.random.split(key)`, and the second becomes the run's key.
        data: (x, y) or (x, y, weight): arrays, x (N, ...), y (N, ...), weight (N,). NumPy memmaps, `data.Shards`, an
            iterable of such batches and a function `epoch -> iterable of batches` (epoch from 0) are streamed.
        epochs: how many times to go through the data.
        batch_size: examples a step.
        key: the random key of the run: order, dropout, noise, augmentation.
        valid: examples that are not trained on, as arrays; or, where `data` are streamed, anything that `data` can be.
        valid_every: how many epochs pass from one validation to the next; the last epoch has one too.
        valid_batch_size: examples at a time in validation; `batch_size` unless given.
        gradient: "autodiff", "backprop", or a function of `jax.value_and_grad`'s signature.
        metrics: functions `(outputs, targets) -> (N,)` by name, such as `{"accuracy": train.accuracy}`.
        hyper: numbers by name, arguments of those of `objective`, `optimizer` and `params` that are functions.
        prepare: a function `batch -> batch` for training and validation, such as `data.Pixels(255)`, so that images
            stay bytes on the device.
        augment: functions `(key, batch) -> batch` for training, in their order, such as those of `data.augment`.
        shuffle: whether to draw an order; else the data's own.
        stream: whether to stream `data` that are arrays, because the device cannot hold them.
        chunk_steps: steps a dispatch for streamed data; chosen by size unless given.
        early_stopping: when to stop, and what is best: the state after the best epoch is returned then.
        watch: what to look at every so many steps, such as `train.Watch(backprop.diagnose, every=50)`; it is kept as
            `history.watched`.
        compute_dtype: such as "bfloat16": the dtype that the network runs in. Parameters, losses, gradients and the
            optimizer's state keep theirs.
        mesh: devices to train on, as from `jax.make_mesh`, with Auto or Explicit axes.
        batch_axis: the mesh's axis that batches are split over; the first unless given.
        param_sharding: where the parameters live: `train.fully_sharded(axis)`, `train.by_features(axis)`, a pytree of
            `jax.P`, or None: on every device.
        checkpoints: where and when to save, or a directory, to save there after each epoch; a run that finds its own
            checkpoints goes on from there.
        progress: "auto" (a bar on a terminal, else lines), "bar", "lines", None for silence, or your own.
        log: a file to append a line of JSON to for each epoch as it ends.

    Returns:
        The state after the last step (the best one with `early_stopping`) and the `History`.

    Raises:
        NonFiniteError: a loss is NaN or infinite; it names epoch, step and layer, and holds the state before.
        DataStreamError: a source failed or gave something else than a batch; it holds the state before.
        CheckpointError: the checkpoints are of another run.
        TypeError, ValueError: an argument is not what it should be.

    Example:
        >>> import jax, optax, funcnn as fnn
        >>> (x, y), valid = fnn.data.load_digits().arrays()
        >>> net = fnn.Serial(fnn.Dense(64), fnn.Relu(), fnn.Dense(10))
        >>> objective = fnn.Objective(net, fnn.losses.softmax_cross_entropy)
        >>> params = net.init(jax.random.key(0), (64,))
        >>> state, history = fnn.train.fit(
        ...     objective, optax.adam(1e-2), params, (x, y), epochs=10, batch_size=32, key=jax.random.key(1),
        ...     valid=valid, metrics={"accuracy": fnn.train.accuracy}, progress=None)
        >>> print(state.step, history["valid accuracy"][-1] > 0.95)
        430 True

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), algorithm 8.1.
    """
    epochs, batch_size = check_count("epochs", epochs), check_count("batch_size", batch_size)
    check_key(key)
    if not isinstance(watch, Watch | None):
        raise TypeError(f"watch is a train.Watch, such as Watch(backprop.diagnose, every=50), got {describe(watch)}")
    if isinstance(checkpoints, str | os.PathLike):
        checkpoints = Checkpoints(checkpoints)
    hyper = numbers("hyper", hyper)
    recipe = Recipe.of(cast_objective(objective, compute_dtype), optimizer, gradient, metrics, augment, prepare, hyper)
    check_hyper(hyper, recipe.objective, recipe.optimizer, params)
    if callable(params):
        init_key, key = jax.random.split(key)
        params = one_step.drawn(params, init_key, hyper)
    where = place(mesh, batch_axis, param_sharding, params, one_step.made(recipe.optimizer, hyper))
    if mesh is not None and batch_size % mesh.shape[where.axis]:
        raise ValueError(
            f"batch_size {batch_size} cannot be split over the {mesh.shape[where.axis]} devices of axis {where.axis!r}"
        )
    plan = loop.Plan(
        recipe=dataclasses.replace(recipe, placement=where),
        batch_size=batch_size,
        valid_batch_size=batch_size if valid_batch_size is None else check_count("valid_batch_size", valid_batch_size),
        shuffle=shuffle,
        valid_every=check_count("valid_every", valid_every),
        watch=watch,
        **monitoring(early_stopping, valid, dict(recipe.metrics)),
    )
    in_memory = source.is_memory(data) and not stream and jax.process_count() == 1
    feed = Memory(plan, data, valid, hyper) if in_memory else Stream(plan, data, valid, hyper, chunk_steps)
    feed.check_first_batch(params)
    with where.active():
        trainer = Trainer(plan, feed, epochs, as_progress(progress), JsonLines(log), checkpoints)
        return trainer.train(loop.begin(plan, _placed(where, one_step.made(recipe.optimizer, hyper), params, key)))


def _placed(where: Placement, optimizer: Any, params: Params, key: Key) -> State:
    """The first state, where it lives."""
    state = one_step.first_state(optimizer, params, key)
    return State(
        params=where.device_put(state.params, where.params),
        opt_state=where.device_put(state.opt_state, where.opt_state),
        step=where.device_put(state.step),
        key=where.device_put(state.key),
    )


def evaluate(
    objective: Objective,
    params: Params,
    data: Any,
    *,
    batch_size: int,
    metrics: Mapping[str, Metric] | None = None,
    prepare: Prepare | None = None,
) -> dict[str, float]:
    """Loss and metrics over a data set, each example counted once, without noise.

    C = sum_n w_n loss_n / sum_n w_n + penalty, and so for each metric

    Args:
        objective: net + loss + penalty.
        params: its parameters.
        data: what `fit` takes as `data`.
        batch_size: examples at a time.
        metrics: functions `(outputs, targets) -> (N,)` by name.
        prepare: as in `fit`.

    Returns:
        {"loss": value, and each metric}.

    Raises:
        TypeError, ValueError: an argument is not what it should be.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> objective = fnn.Objective(fnn.Dense(1, w_init="zeros"), fnn.losses.squared_error)
        >>> params = objective.net.init(jax.random.key(0), (1,))
        >>> fnn.train.evaluate(objective, params, (jnp.ones((5, 1)), jnp.arange(5.0)[:, None]), batch_size=2)
        {'loss': 6.0}
    """
    check_count("batch_size", batch_size)
    recipe = Recipe.of(objective, _NO_OPTIMIZER, "autodiff", metrics, (), prepare)
    plan = loop.Plan(recipe, batch_size, batch_size, False, 1, None, False, 0, 0.0)
    params = gathered(params)
    if source.is_memory(data):
        check_arrays("data", data)
        values = loop.evaluate(plan, params, tuple(map(jnp.asarray, data)), {})
    else:
        values, _ = evaluate_source(plan, params, source.as_source(data, batch_size, False), {}, "the data of evaluate")
    return {name: float(values[name]) for name in loop.value_names(plan)}


def accuracy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Whether each example is classified rightly: 1 or 0, a metric for `fit`.

    Args:
        outputs: logits or probabilities (N, K): the largest is the answer; or, for two classes, one logit (N,) or
            (N, 1): its sign is.
        targets: class numbers (N,), or one-hot or probabilities (N, K); for two classes 0 and 1, or -1 and 1.

    Returns:
        (N,) of 0 and 1.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> print(fnn.train.accuracy(jnp.array([[2.0, 1.0], [0.0, 1.0]]), jnp.array([0, 0])))
        [1. 0.]
    """
    dtype = jnp.result_type(float)
    if outputs.ndim == 1 or outputs.shape[1:] == (1,):
        return ((outputs.reshape(-1) > 0) == (targets.reshape(-1) > 0)).astype(dtype)
    if outputs.ndim != 2 or targets.shape not in (outputs.shape[:1], outputs.shape):
        raise ValueError(
            f"accuracy takes outputs (N, K) and targets (N,) or (N, K), got {outputs.shape}, {targets.shape}"
        )
    wanted = targets if targets.ndim == 1 else targets.argmax(1)
    return (outputs.argmax(1) == wanted).astype(dtype)


def cast_objective(objective: Any, compute_dtype: str | None) -> Any:
    """The objective whose network runs in another dtype; the same value for the same arguments, so that it caches."""
    if compute_dtype is None:
        return objective
    try:
        compute_dtype = jnp.dtype(compute_dtype).name
    except TypeError as error:
        raise ValueError(f"compute_dtype is a floating dtype, such as 'bfloat16', got {compute_dtype!r}") from error
    if not jnp.issubdtype(compute_dtype, jnp.floating) or jax.dtypes.canonicalize_dtype(compute_dtype) != compute_dtype:
        raise ValueError(
            f"compute_dtype is a floating dtype, such as 'bfloat16', got {compute_dtype!r} (and JAX has float64 under "
            "jax.enable_x64(True) only)"
        )
    if isinstance(objective, Objective):
        return objective.replace(net=Cast(objective.net, compute_dtype))
    return _cast_function(objective, compute_dtype)


@functools.cache
def _cast_function(function: Any, compute_dtype: str) -> Any:
    @functools.wraps(function)
    def cast(**hyper: Any) -> Objective:
        return cast_objective(function(**hyper), compute_dtype)

    return cast


def check_hyper(hyper: Hyper, *users: Any) -> None:
    """Raises where nobody takes a hyper-parameter, which would silently do nothing."""
    taken: set[str] = set()
    for user in users:
        if callable(user) and not isinstance(user, Objective | optax.GradientTransformation):
            taken |= one_step.arguments_of(user, hyper)
    if unused := sorted(set(hyper) - taken):
        raise TypeError(
            f"no function takes the hyper-parameter {', '.join(map(repr, unused))}: objective, optimizer or params "
            "has to be a function with an argument of that name, such as optax.adam for 'learning_rate'"
        )


def monitoring(stopping: EarlyStopping | None, valid: Any, metrics: Iterable[str]) -> dict[str, Any]:
    """What of a `Plan` early stopping decides, checked."""
    if stopping is None:
        return {"monitor": None, "maximize": False, "patience": 1, "min_delta": 0.0}
    if not isinstance(stopping, EarlyStopping):
        raise TypeError(f"early_stopping is a train.EarlyStopping, such as EarlyStopping(patience=5), got {stopping!r}")
    names = ["loss", *metrics]
    known = names + ([f"valid {name}" for name in names] if valid is not None else [])
    if stopping.monitor not in known:
        hint = "" if valid is not None else "; for a validation value pass valid=(x, y)"
        raise ValueError(f"early stopping monitors one of {known}, got {stopping.monitor!r}{hint}")
    return {name: getattr(stopping, name) for name in ("monitor", "maximize", "patience", "min_delta")}
