"""One training step: `(state, batch) -> (state, metrics)`, from an objective, an optimizer and a gradient function."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from funcnn import backprop
from funcnn.layer import Key, Params
from funcnn.objective import Batch, Objective, mean_weights, unpack
from funcnn.train.placement import Placement

Metric = Callable[[jax.Array, jax.Array], jax.Array]  # (outputs, targets) -> (N,)
Augment = Callable[[Key, Batch], Batch]
Prepare = Callable[[Batch], Batch]
Hyper = Mapping[str, Any]

GRADIENTS: dict[str, Callable[..., Any]] = {"autodiff": jax.value_and_grad, "backprop": backprop.value_and_grad}

# Two streams of random numbers beside those of the layers, which fold small numbers into the step's key.
_AUGMENT = 2**32 - 1
_ORDER = 2**32 - 2

ONE_DEVICE = Placement()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What training changes, as a pytree.

    Attributes:
        params: the network's parameters.
        opt_state: the optimizer's state.
        step: how many steps were taken, int32.
        key: the random key of the whole run: a step's key is `fold_in(key, step)`, so that it never changes.
    """

    params: Params
    opt_state: Any
    step: jax.Array
    key: Key


def start(optimizer: optax.GradientTransformation, params: Params, key: Key) -> State:
    """The state before the first step.

    Args:
        optimizer: any optax transformation.
        params: the network's parameters; they are copied, so that a step may reuse the memory of the state.
        key: the random key of the run, for dropout, noise and augmentation.

    Returns:
        A `State` with `step` 0.

    Example:
        >>> import jax, optax, funcnn as fnn
        >>> params = fnn.Dense(2).init(jax.random.key(0), (3,))
        >>> print(fnn.train.start(optax.sgd(0.1), params, jax.random.key(1)).step)
        0
    """
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), first_state(optimizer, params, key))


def first_state(optimizer: optax.GradientTransformation, params: Params, key: Key) -> State:
    """`start` without the copy."""
    check_key(key)
    params = jax.tree.map(jnp.asarray, params)
    # An array of a weak type, such as jnp.zeros_like(2.0), would be of another type after a step: a second compilation.
    opt_state = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), optimizer.init(params))
    return State(params, opt_state, jnp.zeros((), jnp.int32), key)


def step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    gradient: str | Callable[..., Any] = "autodiff",
    *,
    metrics: Mapping[str, Metric] | None = None,
    augment: Augment | Iterable[Augment] = (),
    prepare: Prepare | None = None,
) -> Any:
    """A compiled training step.

    g = dC/dparams at `fold_in(key, step)` under `train=True`;  params <- params + optimizer(g)

    Args:
        objective: net + loss + penalty.
        optimizer: any optax transformation: chains, schedules, clipping, masks, `MultiSteps`, `inject_hyperparams`, and
            those that ask for `value` or `value_fn`, such as `lbfgs`.
        gradient: "autodiff" (`jax.value_and_grad`), "backprop" (`funcnn.backprop.value_and_grad`), or a function of
            their signature, `(objective, has_aux=False)`; without metrics it is not asked for `has_aux`.
        metrics: functions `(outputs, targets) -> (N,)` by name; their weighted means are returned.
        augment: functions `(key, batch) -> batch`, in the order in which they are applied.
        prepare: a function `batch -> batch` that comes before, such as `data.Pixels(255)`.

    Returns:
        A pure function `(state, batch) -> (state, {"loss": value, ...})`, jitted. It uses up the state that it is
        given: go on with the one that it returns. A batch is `(x, y)` or `(x, y, weight)`.

    Raises:
        TypeError: one of these is not what it should be.

    Example:
        >>> import jax, jax.numpy as jnp, optax, funcnn as fnn
        >>> objective = fnn.Objective(fnn.Dense(1, w_init="zeros"), fnn.losses.squared_error)
        >>> optimizer = optax.sgd(0.1)
        >>> step = fnn.train.step(objective, optimizer)
        >>> state = fnn.train.start(optimizer, objective.net.init(jax.random.key(0), (1,)), jax.random.key(1))
        >>> state, metrics = step(state, (jnp.ones((4, 1)), jnp.ones((4, 1))))
        >>> print(metrics["loss"], state.params["w"])
        1.0 [[0.2]]

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), algorithm 8.1.
    """
    recipe = Recipe.of(objective, optimizer, gradient, metrics, augment, prepare)

    def take(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        state, sums = update(recipe, state, batch, {})
        return state, means(sums)

    return jax.jit(take, donate_argnums=0)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All of a step that is fixed while a program runs. It hashes, so that it can be a static argument of `jit`.

    `objective` and `optimizer` may be functions of hyper-parameters that return them (see `made`).
    """

    objective: Any
    optimizer: Any
    gradient: str | Callable[..., Any]
    metrics: tuple[tuple[str, Metric], ...]
    augment: tuple[Augment, ...]
    prepare: Prepare | None
    placement: Placement = ONE_DEVICE

    @classmethod
    def of(
        cls,
        objective: Any,
        optimizer: Any,
        gradient: str | Callable[..., Any],
        metrics: Mapping[str, Metric] | None,
        augment: Augment | Iterable[Augment],
        prepare: Prepare | None,
        hyper: Hyper | None = None,
    ) -> "Recipe":
        """The recipe of these parts, checked."""
        if not isinstance(objective, Objective) and not (hyper and callable(objective)):
            raise TypeError(f"training takes an fnn.Objective(net, loss), got {objective!r}")
        if isinstance(optimizer, optax.MultiSteps):
            optimizer = optimizer.gradient_transformation()
        if not isinstance(optimizer, optax.GradientTransformation) and not (hyper and callable(optimizer)):
            hint = "; with hyper={...} it may be a function of them, such as optax.adam" if callable(optimizer) else ""
            raise TypeError(f"optimizer is an optax transformation, such as optax.adam(1e-3), got {optimizer!r}{hint}")
        if isinstance(objective, Objective) and objective.aux is not None:
            raise TypeError("the objective has an aux, which training has no use for: pass metrics={name: function}")
        if not (callable(gradient) or gradient in GRADIENTS):
            raise TypeError(
                f"gradient is one of {', '.join(map(repr, GRADIENTS))}, or a function of the signature of "
                f"jax.value_and_grad, got {gradient!r}"
            )
        if not (metrics is None or isinstance(metrics, Mapping)):
            raise TypeError(f"metrics is a mapping such as {{'accuracy': train.accuracy}}, got {metrics!r}")
        metrics = dict(metrics or {})
        if metrics and callable(gradient) and not arguments_of(gradient, {"has_aux": True}):
            raise TypeError(
                f"with metrics, gradient is a function of the signature of jax.value_and_grad, and has_aux is no "
                f"argument of {gradient!r}"
            )
        for name, function in metrics.items():
            if not callable(function) or name in RESERVED or name.startswith("valid "):
                raise TypeError(
                    f"metrics are functions (outputs, targets) -> (N,) by a name that is none of {sorted(RESERVED)}, "
                    f"got {name!r}: {function!r}"
                )
        augment = tuple(augment) if isinstance(augment, Iterable) else (augment,)
        for function in augment:
            if not callable(function):
                raise TypeError(f"augment is a function (key, batch) -> batch, or several, got {function!r}")
        if not (prepare is None or callable(prepare)):
            raise TypeError(f"prepare is a function batch -> batch, got {prepare!r}")
        return cls(objective, optimizer, gradient, tuple(metrics.items()), augment, prepare)


RESERVED = {"loss", "weight", "epoch", "step", "seconds"}


def update(recipe: Recipe, state: State, batch: Batch, hyper: Hyper) -> tuple[State, dict[str, jax.Array]]:
    """One step, and the sums over the batch of loss, metrics and weights."""
    objective, optimizer = made(recipe.objective, hyper), made(recipe.optimizer, hyper)
    key, batch = ready(recipe, state, batch)
    gradient = GRADIENTS[recipe.gradient] if isinstance(recipe.gradient, str) else recipe.gradient
    place, metrics = recipe.placement, {}
    params = place.gather(state.params)
    if recipe.metrics:
        measured = objective.replace(aux=lambda outputs, batch: per_example(recipe.metrics, outputs, batch))
        (value, metrics), grads = gradient(measured, has_aux=True)(params, batch, key=key, train=True)
    else:  # so that a gradient function of one's own may do without has_aux
        value, grads = gradient(objective)(params, batch, key=key, train=True)
    grads = place.scatter(grads)
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
        grads,
        state.opt_state,
        state.params,
        value=value,
        grad=grads,
        value_fn=lambda params: objective(params, batch, key=key, train=True),
    )
    params = place.scatter(optax.apply_updates(state.params, updates))
    opt_state = place.scatter_state(opt_state)
    return State(params, opt_state, state.step + 1, state.key), weighted_sums(batch, value, metrics)


def ready(recipe: Recipe, state: State, batch: Batch) -> tuple[Key, Batch]:
    """The key of a step, and the batch as it is trained on: prepared and augmented."""
    key = jax.random.fold_in(state.key, state.step)
    batch = prepared(recipe, batch)
    for i, function in enumerate(recipe.augment):
        batch = recipe.placement.automatic(function)(jax.random.fold_in(jax.random.fold_in(key, _AUGMENT), i), batch)
    return key, batch


def prepared(recipe: Recipe, batch: Batch) -> Batch:
    """The batch as the network takes it."""
    return batch if recipe.prepare is None else recipe.prepare(batch)


def order_key(key: Key, epoch: int | jax.Array) -> Key:
    """The key of the order in which epoch number `epoch` of a run goes through the examples."""
    return jax.random.fold_in(jax.random.fold_in(key, _ORDER), epoch)


def per_example(metrics: tuple[tuple[str, Metric], ...], outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Each metric's values (N,)."""
    values = {}
    for name, function in metrics:
        value = function(outputs, batch[1])
        if jnp.shape(value) != outputs.shape[:1]:
            raise ValueError(
                f"metric {name!r} gives one number per example, {outputs.shape[:1]}, and gave {jnp.shape(value)} for "
                f"outputs {outputs.shape}; leave the mean to training, which weighs every example once"
            )
        values[name] = value
    return values


def weighted_sums(batch: Batch, value: jax.Array, metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The batch's total weight, and the value and metrics (means over the batch) times it: what an epoch adds up."""
    _, _, weight = unpack(batch)
    dtype = value.dtype if value.dtype.itemsize >= 4 else jnp.dtype("float32")  # not summed in bfloat16
    total = jnp.asarray(len(batch[0]), dtype) if weight is None else jnp.sum(weight.astype(dtype))
    shares = {name: mean_weights(v := values.astype(dtype), weight) * v for name, values in metrics.items()}
    return {"weight": total, "loss": value.astype(dtype) * total} | {k: jnp.sum(v) * total for k, v in shares.items()}


def means(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What `weighted_sums` of one or many batches were the sums of."""
    return {name: value / sums["weight"] for name, value in sums.items() if name != "weight"}


def made(thing: Any, hyper: Hyper) -> Any:
    """`thing`, or, where it is a function of hyper-parameters, what it returns for those that it has arguments for."""
    if isinstance(thing, Objective | optax.GradientTransformation):
        return thing
    return thing(**{name: value for name, value in hyper.items() if name in arguments_of(thing, hyper)})


def arguments_of(function: Callable[..., Any], hyper: Hyper) -> set[str]:
    """Which of the hyper-parameters are arguments of `function`."""
    taken = inspect.signature(function).parameters.values()
    if any(argument.kind is argument.VAR_KEYWORD for argument in taken):
        return set(hyper)
    return {argument.name for argument in taken} & set(hyper)


def check_key(key: Any) -> None:
    """Raises unless `key` is one of the keys of `jax.random.key`."""
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)) or key.shape:
        raise TypeError(f"key is a random key, such as jax.random.key(0), got {key!r}")
