"""One training step: `(state, batch) -> (state, metrics)`, from an objective, an optimizer and a gradient function."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from funcnn import backprop
from funcnn.layer import Key, Params
from funcnn.objective import Batch, Objective, unpack
from funcnn.train.arguments import check_key, describe, named
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
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            "a state is made by start(optimizer, params, key), where optimizer is an optax transformation, got "
            f"{describe(optimizer)}"
        )
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
    augment: Augment | Sequence[Augment] = (),
    prepare: Prepare | None = None,
) -> Any:
    """A compiled training step.

    g = dC/dparams at `fold_in(key, step)` under `train=True`;  params <- params + optimizer(g)

    Args:
        objective: net + loss + penalty.
        optimizer: any optax transformation: chains, schedules, clipping, masks, `MultiSteps`, `inject_hyperparams`, and
            those that ask for `value` or `value_fn`, such as `lbfgs`, or for `batch` and `key`, such as `kfac`.
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
        _check_state(recipe.optimizer, state)
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
        augment: Augment | Sequence[Augment],
        prepare: Prepare | None,
        hyper: Hyper | None = None,
    ) -> "Recipe":
        """The recipe of these parts, checked."""
        if not isinstance(objective, Objective) and not (hyper and callable(objective)):
            raise TypeError(f"training takes an fnn.Objective(net, loss), got {describe(objective)}")
        if isinstance(optimizer, optax.MultiSteps):
            optimizer = optimizer.gradient_transformation()
        if not isinstance(optimizer, optax.GradientTransformation) and not (hyper and callable(optimizer)):
            hint = "; with hyper={...} it may be a function of them, such as optax.adam" if callable(optimizer) else ""
            raise TypeError(
                f"optimizer is an optax transformation, such as optax.adam(1e-3), got {describe(optimizer)}{hint}"
            )
        if isinstance(objective, Objective):
            made(objective, {})
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
            named = isinstance(name, str) and name and name not in RESERVED and not name.startswith("valid ")
            if not callable(function) or not named:
                raise TypeError(
                    f"metrics are functions (outputs, targets) -> (N,) by a name that is none of {sorted(RESERVED)} "
                    f'and does not begin with "valid ", got {name!r}: {function!r}'
                )
        functions: tuple[Any, ...] = tuple(augment) if isinstance(augment, tuple | list) else (augment,)
        for function in functions:
            if not callable(function) or isinstance(function, type):
                raise TypeError(f"augment is a function (key, batch) -> batch, or several, got {function!r}")
        if not (prepare is None or callable(prepare)):
            raise TypeError(f"prepare is a function batch -> batch, got {prepare!r}")
        return cls(objective, optimizer, gradient, tuple(metrics.items()), functions, prepare)


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
        # A function of the parameters. The other arguments are there as optax's line searches hand on all that they are
        # given beside, and refuse what `value_fn` does not take.
        value_fn=lambda params, batch=batch, key=key: objective(params, batch, key=key, train=True),
        batch=batch,
        key=key,
    )
    params = place.scatter(optax.apply_updates(state.params, updates))
    opt_state = place.scatter_state(opt_state)
    return State(params, opt_state, state.step + 1, state.key), weighted_sums(batch, value, metrics)


def ready(recipe: Recipe, state: State, batch: Batch) -> tuple[Key, Batch]:
    """The key of a step, and the batch as it is trained on: prepared and augmented."""
    key = jax.random.fold_in(state.key, state.step)
    batch = prepared(recipe, batch)
    for i, function in enumerate(recipe.augment):
        own_key = jax.random.fold_in(jax.random.fold_in(key, _AUGMENT), i)
        batch = _changed("augment", function, batch, recipe.placement.automatic(function), own_key, batch)
    return key, batch


def prepared(recipe: Recipe, batch: Batch) -> Batch:
    """The batch as the network takes it."""
    return batch if recipe.prepare is None else _changed("prepare", recipe.prepare, batch, recipe.prepare, batch)


def _changed(name: str, function: Any, batch: Batch, call: Callable[..., Any], *args: Any) -> Batch:
    """What a function of the user's made of a batch: one of as many arrays and examples."""
    letters = "(x, y, weight)" if len(batch) > 2 else "(x, y)"
    with named(f"in {name}, {function!r}, which was given a batch {letters}"):
        changed = call(*args)
    counts = {np.shape(array)[:1] for array in changed} if isinstance(changed, tuple | list) else set()
    if not isinstance(changed, tuple | list) or len(changed) != len(batch) or counts != {np.shape(batch[0])[:1]}:
        raise ValueError(
            f"{name}, {function!r}, was given a batch {letters} of {len(batch[0])} examples, and has to give one like "
            f"it (x, *rest = batch; return (new_x, *rest)); it gave {describe(changed)}. A batch has weights where the "
            "data have, and where the last batch of an epoch is filled up"
        )
    return tuple(changed)


def order_key(key: Key, epoch: int | jax.Array) -> Key:
    """The key of the order in which epoch number `epoch` of a run goes through the examples."""
    return jax.random.fold_in(jax.random.fold_in(key, _ORDER), epoch)


def per_example(metrics: tuple[tuple[str, Metric], ...], outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Each metric's values (N,)."""
    values = {}
    for name, function in metrics:
        with named(f"in metric {name!r}, {function!r}"):
            value = function(outputs, batch[1])
        if jnp.shape(value) != outputs.shape[:1]:
            raise ValueError(
                f"metric {name!r} gives one number per example, {outputs.shape[:1]}, and gave {jnp.shape(value)} for "
                f"outputs {outputs.shape}; leave the mean to training, which weighs every example once"
            )
        values[name] = value
    return values


def weighted_sums(batch: Batch, value: jax.Array, metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """`example_sums` of the metrics, and the value, a mean over the batch, times its weight: what an epoch adds up."""
    sums = example_sums(batch, metrics)
    dtype = jnp.promote_types(value.dtype, jnp.float32)
    return sums | {"loss": value.astype(dtype) * sums["weight"].astype(dtype)}


def example_sums(batch: Batch, values: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The batch's total weight, sum_n w_n, and sum_n w_n v_n of each of the values (N,); in float32 at least.

    An example of weight 0 counts nothing, whatever its value.
    """
    _, _, weight = unpack(batch)

    def total(value: jax.Array) -> jax.Array:
        value = value.astype(jnp.promote_types(value.dtype, jnp.float32))
        if weight is None:
            return jnp.sum(value)
        return jnp.sum(jnp.where(weight == 0, 0, value * weight.astype(value.dtype)))

    ones = jnp.ones(len(batch[0]))
    return {"weight": total(ones)} | {name: total(value) for name, value in values.items()}


def means(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What `weighted_sums` of one or many batches were the sums of."""
    return {name: value / sums["weight"] for name, value in sums.items() if name != "weight"}


def made(thing: Any, hyper: Hyper) -> Any:
    """`thing`, or, where it is a function of hyper-parameters, what it returns for those that it has arguments for."""
    if not isinstance(thing, Objective | optax.GradientTransformation):
        taken = arguments_of(thing, hyper)
        with named(f"in {thing!r}, which was given the numbers {sorted(taken)} of the compiled program"):
            thing = thing(**{name: value for name, value in hyper.items() if name in taken})
    if isinstance(thing, Objective) and thing.aux is not None:
        raise TypeError("the objective has an aux, which training has no use for: pass metrics={name: function}")
    return thing


def drawn(params: Callable[..., Params], key: Key, hyper: Hyper) -> Params:
    """The parameters to begin with, by the user's function of a key and of hyper-parameters."""
    with named(f"in params, {params!r}, a function of a key such as lambda key: net.init(key, (64,))"):
        return params(key, **{name: hyper[name] for name in arguments_of(params, hyper)})


def arguments_of(function: Callable[..., Any], hyper: Hyper) -> set[str]:
    """Which of the hyper-parameters are arguments of `function`."""
    taken = inspect.signature(function).parameters.values()
    if any(argument.kind is argument.VAR_KEYWORD for argument in taken):
        return set(hyper)
    return {argument.name for argument in taken} & set(hyper)


def _check_state(optimizer: optax.GradientTransformation, state: Any) -> None:
    """Raises unless this is a state, and of this optimizer."""
    if not isinstance(state, State):
        raise TypeError(f"a step takes a state, such as train.start(optimizer, params, key), got {describe(state)}")
    wanted = jax.tree.structure(jax.eval_shape(optimizer.init, state.params))
    if wanted != jax.tree.structure(state.opt_state):
        raise TypeError(
            f"the state is of another optimizer than the step's: {jax.tree.structure(state.opt_state)}, where "
            f"{wanted} is needed; make it with train.start(optimizer, params, key)"
        )
