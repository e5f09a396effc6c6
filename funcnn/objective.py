"""An objective: net + loss + penalty composed into one pure scalar function of `(params, batch)`."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from funcnn.description import Description
from funcnn.layer import Key, Layer, Params, describe_params, float_dtype
from funcnn.layers.dense import Dense
from funcnn.lazy_logits import LazyDense, last_layer, with_lazy_logits
from funcnn.losses import LinearCrossEntropy, Loss
from funcnn.penalties import Penalty
from funcnn.wrappers import WeightNoise

Batch = Any  # (x, y) or (x, y, weight)
LossFunction = Callable[[jax.Array, jax.Array], jax.Array]


class BatchError(ValueError):
    """A batch is not of the form that an objective takes."""


@dataclasses.dataclass(frozen=True)
class Objective(Description):
    """The weighted mean of the loss over a batch, plus the penalty.

    C(params) = sum_n w_n loss(net(x_n), y_n) / sum_n w_n + penalty(params), with all w_n = 1 where none are given.

    Args:
        net: the network.
        loss: one of `funcnn.losses`, or a function `(outputs (N, ...), targets) -> (N,)`.
        penalty: one of `funcnn.penalties`, a sum of them, or None.
        aux: a function `(outputs, batch) -> pytree`; with it the objective returns `(value, aux)`, for
            `value_and_grad(objective, has_aux=True)`.

    Call: `objective(params, batch, *, key=None, train=False)`; batch is `(x, y)` or `(x, y, weight)` with x (N, ...), y
    as the loss takes it, weight (N,). Returns a scalar.

    Raises:
        BatchError: the batch is empty, is not of that form, or its arrays differ in N. Under jit, weights that sum to
            zero give NaN, as 0 / 0 does; `funcnn.validate` reports them.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> net = fnn.Serial(fnn.Dense(2, w_init="zeros"))
        >>> objective = fnn.Objective(net, fnn.losses.softmax_cross_entropy, fnn.penalties.l2(1e-4))
        >>> batch = jnp.ones((4, 3)), jnp.array([0, 1, 1, 0])
        >>> print(objective(net.init(jax.random.key(0), (3,)), batch))
        0.6931472

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), sections 5.1 and 7.1.
    """

    net: Layer
    loss: LossFunction
    penalty: Penalty | None = None
    aux: Callable[[jax.Array, Batch], Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.net, Layer):
            raise TypeError(f"Objective's net is a layer, got {self.net!r}")
        if not callable(self.loss) or isinstance(self.loss, type):
            raise TypeError(f"Objective's loss is a function (outputs, targets) -> (N,), got {self.loss!r}")
        if self.penalty is not None and (not callable(self.penalty) or isinstance(self.penalty, type)):
            raise TypeError(
                f"Objective's penalty is a function of the parameters, such as penalties.l2(1e-4), got {self.penalty!r}"
            )
        if not (self.aux is None or callable(self.aux)):
            raise TypeError(f"Objective's aux is a function (outputs, batch) -> pytree, got {self.aux!r}")
        if isinstance(self.loss, LinearCrossEntropy) and type(last_layer(self.net)[1]) not in (Dense, LazyDense):
            raise TypeError(
                f"{self.loss!r} is for a network that ends in a Dense, got {self.net!r}; use softmax_cross_entropy"
            )

    def __call__(self, params: Params, batch: Batch, *, key: Key | None = None, train: bool = False) -> Any:
        x, targets, weight = unpack(batch)
        if isinstance(self.loss, LinearCrossEntropy) and self.aux is None:
            outputs = with_lazy_logits(self.net).apply(params, x, key=key, train=train)
            value = self.loss.weighted_sum(outputs, targets, mean_weights(outputs, weight))
        else:
            outputs = self.net.apply(params, x, key=key, train=train)
            values = self.loss(outputs, targets)
            check_losses(self.loss, values, outputs)
            value = weighted_mean(values, weight)
        if self.penalty is not None:
            penalty = self.penalty(params)
            check_penalty(self.penalty, penalty)
            value = value + jnp.asarray(penalty, value.dtype)
        return value if self.aux is None else (value, self.aux(outputs, batch))


def unpack(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """(x, y, weight or None) of a batch, checked for form and shape."""
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise BatchError(f"a batch is (x, y) or (x, y, weight), got {describe_params(batch)}")
    x, y, *rest = (jnp.asarray(array) for array in batch if array is not None)
    weight = rest[0] if rest else None
    if not x.ndim or not x.shape[0]:
        raise BatchError(f"the batch is empty: x has shape {x.shape}, where (N, ...) with N > 0 is needed")
    if not y.ndim or y.shape[0] != x.shape[0]:
        raise BatchError(f"x and y have one row per example, got x {x.shape} and y {y.shape}")
    if weight is not None and weight.shape != x.shape[:1]:
        raise BatchError(f"weight is one number per example, of shape {x.shape[:1]}, got {weight.shape}")
    return x, y, weight


def check_losses(loss: LossFunction, values: jax.Array, outputs: jax.Array) -> None:
    """Raises unless the loss gave one number per example."""
    if not jnp.issubdtype(jnp.result_type(values), jnp.floating):
        raise BatchError(f"a loss gives floating numbers, and {loss!r} gave {jnp.result_type(values)}")
    if jnp.shape(values) != outputs.shape[:1]:
        raise BatchError(
            f"a loss gives one number per example, and {loss!r} gave shape {jnp.shape(values)} for outputs "
            f"{outputs.shape}; leave the mean over the examples to Objective"
        )


def check_penalty(penalty: Any, value: Any) -> None:
    """Raises unless the penalty gave one number."""
    if jnp.shape(value) != ():
        raise BatchError(f"a penalty gives one number, and {penalty!r} gave shape {jnp.shape(value)}")


def mean_weights(values: jax.Array, weight: jax.Array | None) -> jax.Array:
    """w_n / sum_n w_n: what each example's loss counts in the mean; its gradient too. Shape () where all are equal."""
    if weight is None:
        return jnp.asarray(1 / values.shape[0], values.dtype)
    weight = weight.astype(values.dtype)
    return weight / jnp.sum(weight)


def weighted_mean(values: jax.Array, weight: jax.Array | None) -> jax.Array:
    """sum_n w_n v_n / sum_n w_n, of (N,) values."""
    return jnp.sum(values * mean_weights(values, weight))


def weight_noise(std: float, leaves: tuple[str, ...] | None = ("w",)) -> Callable[[Objective], Objective]:
    """A transform of an objective: under `train=True` its loss is taken at weights with normal noise added.

    C'(w) = C(w + std n), n ~ Normal(0, 1), drawn anew from each call's key; the penalty sees the weights without noise.

    Args:
        std: the standard deviation, in units of the weights.
        leaves: the names of the parameters that get noise; None for all.

    Returns:
        A function from an `Objective` to an `Objective`, whose parameters are the same.

    Example:
        >>> import funcnn as fnn
        >>> objective = fnn.Objective(fnn.Dense(2), fnn.losses.mse)
        >>> fnn.weight_noise(0.1)(objective)
        Objective(WeightNoise(Dense(2), 0.1), mse)

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), section 7.5; Graves (2011).
    """

    def transform(objective: Objective) -> Objective:
        if not isinstance(objective, Objective):
            raise TypeError(
                f"weight_noise(std) transforms an Objective, got {objective!r}; a layer: WeightNoise(layer)"
            )
        return objective.replace(net=WeightNoise(objective.net, std, leaves))

    return transform


def validate(objective: Objective, params: Params, batch: Batch) -> None:
    """Looks, outside jit, at everything that a traced program cannot: shapes, names, dtypes and values.

    Args:
        objective: what is going to be trained.
        params: its parameters.
        batch: `(x, y)` or `(x, y, weight)`, of concrete arrays; the whole data set will do.

    Raises:
        ValueError: with one line for each fault: the parameters are not those of the network (which leaf, which shape),
            a number is not finite (where), a label is no class, a weight is negative or all are zero, ...
        TypeError: called under jit, where there are no values to look at.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> objective = fnn.Objective(fnn.Dense(2), fnn.losses.softmax_cross_entropy)
        >>> params = objective.net.init(jax.random.key(0), (3,))
        >>> fnn.validate(objective, params, (jnp.ones((4, 3)), jnp.array([0, 1, 1, 0])))
    """
    if not isinstance(objective, Objective):
        raise TypeError(f"validate takes an Objective, its parameters and a batch, got {objective!r}")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, batch))):
        raise TypeError("validate looks at values, and these are traced: call it outside jit")
    x, y, weight = unpack(batch)
    try:
        wanted = jax.eval_shape(lambda: objective.net.init(jax.random.key(0), x.shape[1:]))
    except ValueError as error:
        faults = [f"the network does not take examples of shape {x.shape[1:]}: {error}"]
    else:
        faults = _parameter_faults(wanted, params)
        fault = _loss_fault(objective, wanted if faults else params, x, y)
        faults += [fault] if fault else []
    arrays = {"x": x, "y": y} | ({} if weight is None else {"weight": weight})
    arrays |= {f"params{jax.tree_util.keystr(p)}": leaf for p, leaf in jax.tree_util.tree_leaves_with_path(params)}
    faults += [fault for name, array in arrays.items() if (fault := _not_finite(name, array))]
    if weight is not None:
        if (np.asarray(weight) < 0).any():
            faults.append(f"weight is negative at index {int(np.argmax(np.asarray(weight) < 0))}")
        if not np.asarray(weight).any():
            faults.append("weight is zero for every example, so that their weighted mean is 0 / 0")
    if faults:
        raise ValueError("\n".join(faults))


def _loss_fault(objective: Objective, params: Params, x: jax.Array, y: jax.Array) -> str | None:
    """What `objective` says of parameters of the right shapes and this batch."""
    try:
        outputs = jax.eval_shape(objective.net.apply, params, x)
        if isinstance(objective.loss, Loss):
            objective.loss.check(outputs, y)
        check_losses(objective.loss, jax.eval_shape(objective.loss, outputs, y), outputs)
        if objective.penalty is not None:
            jax.eval_shape(objective.penalty, params)
    except ValueError as error:
        return str(error)
    return None


def _parameter_faults(wanted: Params, params: Params) -> list[str]:
    want, have = (
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (wanted, params)
    )
    faults = [f"params{path} is missing: shape {want[path].shape}" for path in want if path not in have]
    strange = {path: leaf for path, leaf in have.items() if path not in want}
    faults += [f"params{path} is not of this network: {describe_params(leaf)}" for path, leaf in strange.items()]
    for path in want:
        if path in have and np.shape(have[path]) != want[path].shape:
            faults.append(f"params{path} has shape {np.shape(have[path])}, where {want[path].shape} is needed")
        elif path in have and jnp.issubdtype(want[path].dtype, jnp.floating) and not _is_floating(have[path]):
            faults.append(f"params{path} is {describe_params(have[path])}, where a floating dtype is needed")
    if not faults and jax.tree.structure(wanted) != jax.tree.structure(params):
        faults.append(f"params is {describe_params(params)}, where {describe_params(wanted)} is needed")
    return faults


def _is_floating(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _not_finite(name: str, array: Any) -> str | None:
    values = np.asarray(array)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return None
    bad = ~np.isfinite(values.astype(float_dtype(jnp.zeros(0))) if values.dtype == jnp.bfloat16 else values)
    if not bad.any():
        return None
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape)) if bad.ndim else ()
    return f"{name} is not finite: {values[index]} at {list(index)} ({int(bad.sum())} of {math.prod(bad.shape)})"
