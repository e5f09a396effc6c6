"""Losses: `loss(outputs, targets) -> (N,)`, one number per example, neither summed nor averaged over the examples.

A loss is an immutable value that you call. Called with outputs and targets it computes; called with options alone it
gives the loss with these options, to hand to an `Objective`::

    losses.softmax_cross_entropy(logits, labels)                # (N,)
    losses.softmax_cross_entropy(label_smoothing=0.1)           # a loss
    losses.bernoulli_nll(logits, y, signed=True)                # (N,)

Letters: N examples, K outputs or classes, f the outputs, z outputs that are logits, y the targets. All axes but the
first are summed (averaged in `mse` and `mae`). Every loss and its gradient is free of NaN for every finite input,
infinite only where the true value overflows (with a learned variance: or where the squares do), and right to the
rounding of the terms that are summed in it. In a softmax one such term is 1: a cross-entropy of 1e-9 is 0 in float32.

Where the values are traced, under `jit`, they cannot be looked at: a label outside the classes then gives a NaN loss
and a NaN gradient for its example, and a target outside the range of `bernoulli_nll` is used in the equation as it is.
`funcnn.validate` looks at the values outside `jit`.
"""

import abc
import dataclasses
import math
import re
from typing import Any, ClassVar, Self, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import nn
from jax.core import Tracer

from funcnn import lazy_logits
from funcnn.description import Description
from funcnn.layer import magnitude
from funcnn.lazy_logits import LazyLogits


class LossError(ValueError):
    """A loss was given outputs and targets that do not belong together."""


@dataclasses.dataclass(frozen=True)
class Loss(Description):
    """Base of the losses. A loss of your own is any function `(outputs, targets) -> (N,)`, or a subclass."""

    needs_values: ClassVar[bool] = False  # whether `check_values` has anything to look at

    @abc.abstractmethod
    def per_example(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """The losses (N,), for arguments that were checked."""

    @overload
    def __call__(self, outputs: Any, targets: Any, /, **options: Any) -> jax.Array: ...
    @overload
    def __call__(self, /, **options: Any) -> Self: ...
    def __call__(self, *arrays: Any, **options: Any) -> Any:
        loss = self.replace(**options) if options else self
        if not arrays:
            return loss
        if len(arrays) != 2:
            raise TypeError(f"{loss!r} takes (outputs, targets), or options by keyword alone, got {len(arrays)} arrays")
        outputs, targets = loss.as_outputs(arrays[0]), jnp.asarray(arrays[1])
        loss.check(outputs, targets)
        return loss.per_example(outputs, targets)

    def as_outputs(self, outputs: Any) -> Any:
        """What the loss was called with in the place of the outputs, as an array."""
        return jnp.asarray(outputs)

    def check(self, outputs: Any, targets: jax.Array) -> None:
        """Raises LossError unless shapes, dtypes and, where they are not traced, values of the targets fit."""
        if not jnp.issubdtype(outputs.dtype, jnp.floating):
            raise LossError(f"{self!r} takes outputs of a floating dtype, got {outputs.dtype}")
        if not outputs.ndim or not outputs.size:
            raise LossError(f"{self!r} takes outputs of shape (N, ...) with N > 0, got {outputs.shape}: an empty batch")
        self.check_shapes(outputs, targets)
        if self.needs_values and not isinstance(targets, Tracer):
            self.check_values(outputs, np.asarray(targets))

    def check_shapes(self, outputs: jax.Array, targets: jax.Array) -> None:
        """Raises LossError unless the targets have the outputs' shape."""
        if outputs.shape != targets.shape:
            hint = ""
            if targets.shape == outputs.shape[:-1] and outputs.shape[-1] == 1:
                hint = "; give the targets the output's last axis: y[:, None]"
            elif targets.ndim < outputs.ndim and jnp.issubdtype(targets.dtype, jnp.integer):
                hint = "; for class labels, use softmax_cross_entropy or one-hot targets"
            raise LossError(
                f"{self!r} takes targets of the outputs' shape, got outputs {outputs.shape}, targets {targets.shape}"
                + hint
            )

    def check_values(self, outputs: jax.Array, targets: np.ndarray) -> None:
        """Raises LossError where a target's value is impossible."""

    def _code_name(self) -> str:
        return re.sub(r"(?<!^)([A-Z])", r"_\1", type(self).__name__).lower()

    def __repr__(self) -> str:
        arguments = ", ".join(self._arguments())
        return f"{self._code_name()}({arguments})" if arguments else self._code_name()


def _sum(terms: jax.Array) -> jax.Array:
    """Over all axes but the first: (N, ...) -> (N,)."""
    return jnp.sum(terms, axis=tuple(range(1, terms.ndim)))


def half_difference(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """(f - y) / 2, which is finite for all finite f and y, as f - y is not."""
    return outputs / 2 - targets.astype(outputs.dtype) / 2


def width(outputs: jax.Array) -> int:
    """K, the number of outputs of one example."""
    return math.prod(outputs.shape[1:])


@dataclasses.dataclass(frozen=True)
class SquaredError(Loss):
    """Squared error: sum_k (f_k - y_k)^2.

    Args of the call: outputs f (N, ...) and targets y of the same shape. Returns (N,), in squared units of f.

    Raises:
        LossError: the shapes differ (they are never broadcast).

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.losses.squared_error(jnp.array([[3.0, 1.0]]), jnp.array([[1.0, 1.0]]))
        Array([4.], dtype=float32)

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), section 5.1.4.
    """

    def per_example(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return _sum(jnp.square(outputs - targets.astype(outputs.dtype)))  # overflows only where its square does


@dataclasses.dataclass(frozen=True)
class Mse(Loss):
    """Mean squared error over the outputs: 1/K sum_k (f_k - y_k)^2.

    Args of the call: outputs f (N, ...) and targets y of the same shape. Returns (N,), in squared units of f.

    Raises:
        LossError: the shapes differ (they are never broadcast).

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.losses.mse(jnp.array([[3.0, 1.0]]), jnp.array([[1.0, 1.0]]))
        Array([2.], dtype=float32)
    """

    def per_example(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        # Divided before it is summed, since the sum of squares may overflow where their mean does not. The difference
        # is taken twice: autodiff then adds two halves of the gradient, neither of which overflows before the whole.
        scaled = half_difference(outputs, targets) * (4 / width(outputs))
        return _sum(half_difference(outputs, targets) * scaled)


@dataclasses.dataclass(frozen=True)
class Mae(Loss):
    """Mean absolute error over the outputs: 1/K sum_k |f_k - y_k|; its gradient at f = y is 0.

    Args of the call: outputs f (N, ...) and targets y of the same shape. Returns (N,), in units of f.

    Raises:
        LossError: the shapes differ (they are never broadcast).

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.losses.mae(jnp.array([[3.0, 1.0]]), jnp.array([[1.0, 1.0]]))
        Array([1.], dtype=float32)
    """

    def per_example(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return _sum(magnitude(half_difference(outputs, targets)) * (2 / width(outputs)))


@dataclasses.dataclass(frozen=True)
class GaussianNll(Loss):
    """Negative log-likelihood of a normal distribution around the outputs.

    Given variance v:  sum_k (f_k - y_k)^2 / (2 v) + log(2 pi v) / 2, with f and y (N, K).

    Learned variance:  outputs (N, 2 K) hold the means f in their first half of the last axis and the log-variances s
    in the second: sum_k (f_k - y_k)^2 exp(-s_k) / 2 + s_k / 2 + log(2 pi) / 2.

    Args:
        variance: v > 0, in squared units of f, or "learned".

    Raises:
        LossError: the shapes do not fit, or v is not positive.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.losses.gaussian_nll(jnp.array([[3.0]]), jnp.array([[1.0]]))
        Array([2.9189386], dtype=float32)
        >>> fnn.losses.gaussian_nll(jnp.array([[3.0, 0.0]]), jnp.array([[1.0]]), variance="learned")
        Array([2.9189386], dtype=float32)

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), section 6.2.2; Nix and Weigend (1994).
    """

    variance: float | str = 1.0

    def __post_init__(self) -> None:
        if self.variance != "learned" and (isinstance(self.variance, str) or not 0 < self.variance < math.inf):
            raise LossError(f"gaussian_nll's variance is a positive number or 'learned', got {self.variance!r}")

    def check_shapes(self, outputs: jax.Array, targets: jax.Array) -> None:
        if self.variance != "learned":
            super().check_shapes(outputs, targets)
        elif outputs.ndim < 2 or targets.ndim < 2 or outputs.shape != (*targets.shape[:-1], 2 * targets.shape[-1]):
            raise LossError(
                f"{self!r} takes outputs (N, 2 K), means and log-variances, for targets (N, K), "
                f"got outputs {outputs.shape}, targets {targets.shape}"
            )

    def standardized(self, outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, Any, Any]:
        """(q, e, s) with s the log-variance, sigma = exp(s / 2), q = (f - y) / sigma and e = sigma^{-1/2}.

        Multiplying twice by e keeps q right where 1 / sigma alone would overflow; where f = y, q is 0 whatever sigma,
        and s is left out of it, so that 0 times infinity does not arise.
        """
        if not isinstance(self.variance, str):
            e = self.variance**-0.25
            return 2 * (half_difference(outputs, targets) * e * e), e, math.log(self.variance)
        outputs, s = jnp.split(outputs, 2, axis=-1)
        half = half_difference(outputs, targets)
        used = jnp.where(half == 0, 0, s)
        fixed = jax.lax.stop_gradient(used)
        e = jnp.exp(fixed / -4)
        # The last factor is 1, and its derivative -1/2 is all that q has for s: through e that may overflow on its way.
        return 2 * (half * e * e) * jnp.exp((fixed - used) / 2), e, s

    def per_example(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        # Taken twice: autodiff then adds two halves of the gradient, neither of which overflows before the whole.
        (q, _, s), (again, _, _) = (self.standardized(outputs, targets) for _ in range(2))
        squares, k = _sum(q * (again / 2)), width(targets)
        if not isinstance(s, jax.Array):
            return squares + k * (s + math.log(2 * math.pi)) / 2
        # Divided by a power of two, which costs no digit: log-variances of both signs may overflow on their way.
        p = 2.0 ** math.ceil(math.log2(k))
        return (squares / p + _sum(s / (2 * p) + math.log(2 * math.pi) / (2 * p))) * p


@dataclasses.dataclass(frozen=True)
class LaplaceNll(Loss):
    """Negative log-likelihood of a Laplace distribution around the outputs: sum_k |f_k - y_k| / b + log(2 b).

    Args:
        scale: b > 0, in units of f.

    Raises:
        LossError: the shapes differ, or b is not positive.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.losses.laplace_nll(jnp.array([[3.0]]), jnp.array([[1.0]]), scale=0.5)
        Array([4.], dtype=float32)

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), section 3.9.4.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise LossError(f"laplace_nll's scale is positive, got {self.scale!r}")

    def per_example(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return _sum(magnitude(half_difference(outputs, targets)) * (2 / self.scale) + math.log(2 * self.scale))


@dataclasses.dataclass(frozen=True)
class BernoulliNll(Loss):
    """Negative log-likelihood of yes-or-no targets under the logits z: sum_k softplus((1 - 2 y_k) z_k).

    That is for y in {0, 1}; soft labels in [0, 1] mix the two cases, y softplus(-z) + (1 - y) softplus(z).

    Args:
        signed: the targets are -1 and +1 instead of 0 and 1: softplus(-y z).

    Raises:
        LossError: the shapes differ; a target is outside [0, 1], or [-1, 1] where signed (outside jit).

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.losses.bernoulli_nll(jnp.array([[0.0], [100.0]]), jnp.array([[1], [0]]))
        Array([  0.6931472, 100.       ], dtype=float32)

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), section 6.2.2.2.
    """

    signed: bool = False

    needs_values = True

    def check_values(self, outputs: jax.Array, targets: np.ndarray) -> None:
        low = -1 if self.signed else 0
        bad = ~((targets >= low) & (targets <= 1))
        if bad.any():
            hint = "; for targets in {-1, +1} use signed=True" if not self.signed and (targets == -1).any() else ""
            raise LossError(f"{self!r} takes targets in [{low}, 1], got {targets[bad][0]} at {_where(bad)}{hint}")

    def probabilities(self, outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The targets as probabilities of a yes and of a no, in the outputs' dtype.

        Both from the target itself: one less the other would lose the digits of the smaller.
        """
        y = targets.astype(outputs.dtype)
        return ((1 + y) / 2, (1 - y) / 2) if self.signed else (y, 1 - y)

    def per_example(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        yes, no = self.probabilities(outputs, targets)
        return _sum(yes * nn.softplus(-outputs) + no * nn.softplus(outputs))


class ClassLoss(Loss):
    """A loss whose targets are classes: integer labels (N, ...), or one-hot or soft targets (N, ..., K)."""

    needs_values = True

    def check_shapes(self, outputs: jax.Array, targets: jax.Array) -> None:
        if outputs.ndim < 2:
            raise LossError(f"{self!r} takes outputs (N, ..., K), the classes last, got {outputs.shape}")
        if targets.shape == outputs.shape:
            return
        if targets.shape != outputs.shape[:-1]:
            raise LossError(
                f"{self!r} takes labels {outputs.shape[:-1]} or one-hot targets {outputs.shape}, got {targets.shape}"
                + ("; use y[..., 0]" if targets.shape == (*outputs.shape[:-1], 1) else "")
            )
        if not jnp.issubdtype(targets.dtype, jnp.integer):
            raise LossError(
                f"{self!r} takes integer labels, got {targets.dtype} of shape {targets.shape}; "
                f"use y.astype(jnp.int32), or targets of shape {outputs.shape}"
            )

    def check_values(self, outputs: jax.Array, targets: np.ndarray) -> None:
        classes = outputs.shape[-1]
        labels = targets.shape != outputs.shape
        bad = ~((targets >= 0) & (targets < classes)) if labels else ~(targets >= 0)
        if bad.any():
            wanted = f"labels in 0..{classes - 1}" if labels else "targets that are not negative"
            raise LossError(
                f"{self!r} takes {wanted} for outputs {outputs.shape}, got {targets[bad][0]} at {_where(bad)}"
                + ("; give the network more outputs, or correct the labels" if labels else "")
            )

    def distribution(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """The targets as (N, ..., K) in the outputs' dtype: one-hot rows for labels; NaN for one that is no class."""
        if targets.shape == outputs.shape:
            return targets.astype(outputs.dtype)
        # In a dtype that holds every class and every label: small ones, such as the bytes of a file, wrap around.
        dtype = targets.dtype if targets.dtype.itemsize >= 4 else jnp.dtype("int32")
        classes = jnp.arange(outputs.shape[-1], dtype=dtype)
        labels = targets[..., None].astype(dtype)
        known = (labels >= 0) & (labels < outputs.shape[-1])
        # Compared, not gathered: the comparison fuses with what uses it, and its gradient needs no scatter.
        hot = labels == classes.reshape((1,) * targets.ndim + (-1,))
        return jnp.where(known, hot.astype(outputs.dtype), jnp.nan)


@dataclasses.dataclass(frozen=True)
class SoftmaxCrossEntropy(ClassLoss):
    """Cross-entropy between targets and the softmax of logits: sum_k y_k (log sum_j exp(z_j) - z_k).

    Args of the call: logits z (N, ..., K), where -inf masks a class; targets: integer labels (N, ...), or one-hot or
    soft targets (N, ..., K). Returns (N,), in nats; axes between the first and the last are summed.

    Args:
        label_smoothing: a in [0, 1]: the targets become (1 - a) y + a u, u uniform over the classes not masked.

    Raises:
        LossError: the shapes do not fit; labels are no integers or (outside jit) no classes.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> z = jnp.array([[0.0, 0.0], [3e38, -3e38]])
        >>> fnn.losses.softmax_cross_entropy(z, jnp.array([1, 0]))
        Array([0.6931472, 0.       ], dtype=float32)

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), section 6.2.2.3; Szegedy et al. (2016).
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise LossError(f"label_smoothing is in [0, 1], got {self.label_smoothing!r}")

    def distribution(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        y = super().distribution(outputs, targets)
        if not self.label_smoothing:
            return y
        open_ = (outputs > -jnp.inf).astype(outputs.dtype)
        uniform = open_ / jnp.sum(open_, axis=-1, keepdims=True)
        return (1 - self.label_smoothing) * y + self.label_smoothing * uniform

    def per_example(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        y = self.distribution(outputs, targets)
        top = jax.lax.stop_gradient(jnp.max(outputs, axis=-1, keepdims=True))
        # log sum_j exp(z_j) less the top logit. The sum is K at most, which may be more than float16 holds.
        wide = outputs.dtype if outputs.dtype.itemsize >= 4 else jnp.dtype("float32")
        log_sum = jnp.log(jnp.sum(jnp.exp(outputs - top), axis=-1, dtype=wide)).astype(outputs.dtype)
        # Half the distance from the top logit is finite for all finite logits, where the distance may overflow.
        half = jnp.where(y == 0, 0, y * (top / 2 - outputs / 2))
        return _sum(jnp.sum(y, axis=-1) * log_sum + 2 * jnp.sum(half, axis=-1))


@dataclasses.dataclass(frozen=True)
class LinearCrossEntropy(SoftmaxCrossEntropy):
    """Softmax cross-entropy of a dense layer's outputs, of which only a chunk is there at a time.

    v = sum_k y_k (log sum_j exp(z_j) - z_k),  z = x w + b

    Logits of many classes, and their gradient, take most of the memory of a training step. Here they are made for a
    chunk of the examples and used at once: for the losses and, where a gradient is asked for, for that of x, w and b.

    In an `Objective` whose network ends in a `Dense` (in `Serial`, `Cast` and `WeightNoise` too) this loss takes the
    place of `softmax_cross_entropy`, with the same parameters, value and gradients. The logits are whole after all
    where they are asked for: by `aux`, and so by the metrics of `fit`, in validation, by what looks into the backward
    pass, such as `backprop.record`, and by a rule or saving policy of your own for the last layer.

    Args of the call: `(x, w)` or `(x, w, b)` with x (N, ..., D), w (D, K) and b (K,), where -inf masks a class, or
    logits (N, ..., K); targets: integer labels (N, ...), or one-hot or soft targets (N, ..., K). Returns (N,), in nats,
    for `(x, w, b)` in float32 at least; axes between the first and the last are summed.

    Args:
        label_smoothing: a in [0, 1]: the targets become (1 - a) y + a u, u uniform over the classes not masked.
        chunk: how many examples, or positions of examples, are in a chunk. None: D / 2, so that its logits and their
            gradient take the memory of w, or as many as have a million logits, if these are more.

    `jax.grad` of an objective makes each logit once; of the losses (N,) themselves twice. It takes no gradient for the
    targets, and `jax.jvp` is not defined.

    Raises:
        LossError: the shapes do not fit; labels are no integers or (outside jit) no classes; `chunk` is not positive.
        TypeError: the objective's network does not end in a `Dense`; a gradient for the targets is asked for.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> x, w, y = jnp.ones((2, 3)), jnp.zeros((3, 4)), jnp.array([0, 3])
        >>> print(fnn.losses.linear_cross_entropy((x, w), y))  # log(4)
        [1.3862944 1.3862944]
        >>> net = fnn.Serial(fnn.Dense(256), fnn.Relu(), fnn.Dense(50_000))
        >>> objective = fnn.Objective(net, fnn.losses.linear_cross_entropy)

    Source: Hsu et al., Liger Kernel (2024); Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models (2024).
    """

    chunk: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk is not None and (
            isinstance(self.chunk, bool) or not isinstance(self.chunk, int) or self.chunk < 1
        ):
            raise LossError(f"linear_cross_entropy's chunk is a positive integer, or None, got {self.chunk!r}")

    def as_outputs(self, outputs: Any) -> Any:
        if isinstance(outputs, LazyLogits):
            return outputs
        if not isinstance(outputs, tuple):
            return super().as_outputs(outputs)
        arrays = [jnp.asarray(array) for array in outputs if array is not None]
        shapes = [array.shape for array in arrays]
        fits = len(arrays) in (2, 3) and len(shapes[0]) >= 2 and len(shapes[1]) == 2 and shapes[0][-1] == shapes[1][0]
        if not fits or shapes[2:] not in ([], [shapes[1][1:]]):
            raise LossError(
                f"{self!r} takes (x, w) or (x, w, b) with x (N, ..., D), w (D, K) and b (K,), or logits (N, ..., K), "
                f"got a tuple of shapes {', '.join(map(str, shapes))}"
            )
        if not all(jnp.issubdtype(array.dtype, jnp.floating) for array in arrays):
            raise LossError(
                f"{self!r} takes x, w and b of a floating dtype, got {', '.join(str(array.dtype) for array in arrays)}"
            )
        return LazyLogits(*arrays)

    def per_example(self, outputs: Any, targets: jax.Array) -> jax.Array:
        if isinstance(outputs, LazyLogits):
            return lazy_logits.each(self, outputs, targets)
        return super().per_example(outputs, targets)

    def weighted_sum(self, outputs: Any, targets: jax.Array, weights: jax.Array) -> jax.Array:
        """sum_n weights_n v_n of `LazyLogits`, with weights (N,) or (); for its gradient each logit is made once."""
        self.check(outputs, targets)
        return lazy_logits.weighted_sum(self, outputs, targets, weights)

    def delta(self, z: jax.Array, targets: jax.Array) -> jax.Array:
        """dv/dz = softmax(z) sum_k y_k - y (C, K), of a chunk of logits."""
        y = self.distribution(z, targets)
        return nn.softmax(z, axis=-1) * jnp.sum(y, axis=-1, keepdims=True) - y


@dataclasses.dataclass(frozen=True)
class Nll(ClassLoss):
    """Negative log-likelihood of classes under log-probabilities: -sum_k y_k l_k.

    Args of the call: log-probabilities l (N, ..., K), such as `LogSoftmax` gives; targets: integer labels (N, ...), or
    one-hot or soft targets (N, ..., K). Returns (N,), in nats.

    Raises:
        LossError: the shapes do not fit; labels are no integers or (outside jit) no classes.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.losses.nll(jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([0]))
        Array([1.3862944], dtype=float32)
    """

    def per_example(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        y = self.distribution(outputs, targets)
        return -_sum(jnp.where(y == 0, 0, y * outputs))


def _where(bad: np.ndarray) -> str:
    index = tuple(int(i[0]) for i in np.nonzero(bad))
    return f"index {index[0] if len(index) == 1 else index} ({int(bad.sum())} in all)"


squared_error = SquaredError()
mse = Mse()
mae = Mae()
gaussian_nll = GaussianNll()
laplace_nll = LaplaceNll()
bernoulli_nll = BernoulliNll()
softmax_cross_entropy = SoftmaxCrossEntropy()
linear_cross_entropy = LinearCrossEntropy()
nll = Nll()
