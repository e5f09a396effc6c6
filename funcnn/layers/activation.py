"""Activations: functions of each unit by itself, and the two softmaxes, which see a whole row.

At a kink the derivative is a choice: relu'(0) = 0 and leaky_relu'(0) = 1, as JAX has them, and |a|'(0) = 0, where
that of `jnp.abs` is 1.
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jax import nn

from funcnn.initializers import draw
from funcnn.layer import (
    Key,
    Layer,
    LayerError,
    Params,
    Shape,
    against,
    check_in_shape,
    check_no_params,
    check_params,
    magnitude,
)


@dataclasses.dataclass(frozen=True)
class Activation(Layer):
    """A layer without parameters that keeps the shape: `function` is all that a subclass states.

    Args of `apply`: params `()`, x of any shape (..., K). Returns y of x's shape.

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), sections 6.2 and 6.3.
    """

    @abc.abstractmethod
    def function(self, a: jax.Array) -> jax.Array:
        """y = f(a), in a's shape and dtype."""

    def init(self, key: Key, in_shape: Shape) -> Params:
        check_in_shape(in_shape)
        return ()

    def apply(self, params: Params, x: jax.Array, *, key: Key | None = None, train: bool = False) -> jax.Array:
        check_no_params(self, params)
        return self.function(x)

    def out_shape(self, in_shape: Shape) -> Shape:
        return check_in_shape(in_shape)


@dataclasses.dataclass(frozen=True)
class Identity(Activation):
    """y = a.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.Identity().apply((), jnp.array([-1.0, 2.0]))
        Array([-1.,  2.], dtype=float32)
    """

    def function(self, a: jax.Array) -> jax.Array:
        return a


@dataclasses.dataclass(frozen=True)
class Sigmoid(Activation):
    """y = 1 / (1 + exp(-a)).

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.Sigmoid().apply((), jnp.array([0.0]))
        Array([0.5], dtype=float32)
    """

    def function(self, a: jax.Array) -> jax.Array:
        return nn.sigmoid(a)


@dataclasses.dataclass(frozen=True)
class Tanh(Activation):
    """y = tanh(a).

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.Tanh().apply((), jnp.array([0.0]))
        Array([0.], dtype=float32)
    """

    def function(self, a: jax.Array) -> jax.Array:
        return jnp.tanh(a)


@dataclasses.dataclass(frozen=True)
class Relu(Activation):
    """y = max(a, 0); relu'(0) = 0.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.Relu().apply((), jnp.array([-1.0, 2.0]))
        Array([0., 2.], dtype=float32)
    """

    def function(self, a: jax.Array) -> jax.Array:
        return nn.relu(a)


@dataclasses.dataclass(frozen=True)
class LeakyRelu(Activation):
    """y = max(beta a, a), for beta < 1: the identity where a >= 0, the slope beta below; the derivative at 0 is 1.

    Args:
        beta: the slope of the negative side, below 1.

    Raises:
        LayerError: beta is 1 or more, where max(beta a, a) is no longer the identity on the positive side.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.LeakyRelu(0.5).apply((), jnp.array([-1.0, 2.0]))
        Array([-0.5,  2. ], dtype=float32)
    """

    beta: float = 0.01

    def __post_init__(self) -> None:
        if not self.beta < 1:
            raise LayerError(f"LeakyRelu's beta is the slope of the negative side and below 1, got {self.beta!r}")

    def function(self, a: jax.Array) -> jax.Array:
        return nn.leaky_relu(a, self.beta)


@dataclasses.dataclass(frozen=True)
class Prelu(Layer):
    """y = a where a >= 0, slope a below, with a slope that is learned; the derivative at 0 is 1.

    Args:
        slope: where the learned slope starts.
        shared: one slope for all units, `{"slope": ()}`, instead of one for each, `{"slope": in_shape}`.

    Raises:
        LayerError: `params` do not fit; the examples have the shape () and the slope is not shared.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> layer = fnn.Prelu(shared=True)
        >>> layer.apply(layer.init(jax.random.key(0), (2,)), jnp.array([[-1.0, 2.0]]))
        Array([[-0.25,  2.  ]], dtype=float32)

    Source: He et al., Delving Deep into Rectifiers (2015).
    """

    slope: float = 0.25
    shared: bool = False

    def init(self, key: Key, in_shape: Shape) -> Params:
        in_shape = check_in_shape(in_shape)
        if not (self.shared or in_shape):
            raise LayerError("Prelu has a slope for each unit, and an example of shape () has none: use shared=True")
        return {"slope": draw(self.slope, key, () if self.shared else in_shape)}

    def apply(self, params: Params, x: jax.Array, *, key: Key | None = None, train: bool = False) -> jax.Array:
        known = isinstance(params, dict) and "slope" in params
        rank = 0 if self.shared else max(jnp.ndim(params["slope"]) if known else 0, 1)
        check_params(self, params, {"slope": x.shape[x.ndim - rank :]})
        return jnp.where(x >= 0, x, against(params["slope"], x) * x)

    def out_shape(self, in_shape: Shape) -> Shape:
        return check_in_shape(in_shape)


@dataclasses.dataclass(frozen=True)
class Absolute(Activation):
    """y = |a|, the leaky relu of slope -1; |a|'(0) = 0.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.Absolute().apply((), jnp.array([-1.0, 2.0]))
        Array([1., 2.], dtype=float32)
    """

    def function(self, a: jax.Array) -> jax.Array:
        return magnitude(a)


@dataclasses.dataclass(frozen=True)
class Swish(Activation):
    """y = a sigmoid(beta a).

    Args:
        beta: 0 gives a / 2, large values approach relu.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.Swish(beta=0.0).apply((), jnp.array([3.0]))
        Array([1.5], dtype=float32)

    Source: Ramachandran, Zoph and Le, Searching for Activation Functions (2017).
    """

    beta: float = 1.0

    def function(self, a: jax.Array) -> jax.Array:
        return a * nn.sigmoid(self.beta * a)


@dataclasses.dataclass(frozen=True)
class Silu(Activation):
    """y = a sigmoid(a), the swish of beta 1.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.Silu().apply((), jnp.array([0.0]))
        Array([0.], dtype=float32)

    Source: Elfwing, Uchibe and Doya, Sigmoid-Weighted Linear Units (2017).
    """

    def function(self, a: jax.Array) -> jax.Array:
        return nn.silu(a)


@dataclasses.dataclass(frozen=True)
class HardSwish(Activation):
    """y = a min(max(a + 3, 0), 6) / 6; the derivative at a = -3 and at a = 3 is that of the side beyond.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.HardSwish().apply((), jnp.array([-4.0, 0.0, 4.0]))
        Array([-0.,  0.,  4.], dtype=float32)

    Source: Howard et al., Searching for MobileNetV3 (2019).
    """

    def function(self, a: jax.Array) -> jax.Array:
        return nn.hard_swish(a)


@dataclasses.dataclass(frozen=True)
class Gelu(Activation):
    """y = a Phi(a), Phi the standard normal distribution function.

    Args:
        approximate: the tanh form, a (1 + tanh(sqrt(2/pi) (a + 0.044715 a^3))) / 2, instead of the exact one.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.Gelu().apply((), jnp.array([0.0]))
        Array([0.], dtype=float32)

    Source: Hendrycks and Gimpel, Gaussian Error Linear Units (2016).
    """

    approximate: bool = False

    def function(self, a: jax.Array) -> jax.Array:
        return nn.gelu(a, approximate=self.approximate)


@dataclasses.dataclass(frozen=True)
class Softplus(Activation):
    """y = log(1 + exp(a)).

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.Softplus().apply((), jnp.array([100.0]))
        Array([100.], dtype=float32)
    """

    def function(self, a: jax.Array) -> jax.Array:
        return nn.softplus(a)


@dataclasses.dataclass(frozen=True)
class Elu(Activation):
    """y = a where a > 0, alpha (exp(a) - 1) elsewhere; the derivative at 0 is alpha.

    Args:
        alpha: minus the limit on the negative side, positive.

    Raises:
        LayerError: alpha is not positive.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.Elu().apply((), jnp.array([-100.0, 2.0]))
        Array([-1.,  2.], dtype=float32)

    Source: Clevert, Unterthiner and Hochreiter, Exponential Linear Units (2015).
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise LayerError(f"Elu's alpha is positive, got {self.alpha!r}")

    def function(self, a: jax.Array) -> jax.Array:
        return nn.elu(a, self.alpha)


@dataclasses.dataclass(frozen=True)
class Step(Activation):
    """y = 1 where a > 0, 0 elsewhere: the perceptron's unit. Its gradient is zero everywhere.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.Step().apply((), jnp.array([-1.0, 0.0, 2.0]))
        Array([0., 0., 1.], dtype=float32)

    Source: Rosenblatt, The Perceptron (1958).
    """

    def function(self, a: jax.Array) -> jax.Array:
        return (a > 0).astype(a.dtype)


@dataclasses.dataclass(frozen=True)
class Softmax(Activation):
    """y_k = exp(a_k) / sum_j exp(a_j), over the last axis; a_k = -inf masks class k.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.Softmax().apply((), jnp.array([[5.0, 5.0]]))
        Array([[0.5, 0.5]], dtype=float32)
    """

    def function(self, a: jax.Array) -> jax.Array:
        return nn.softmax(a, axis=-1)


@dataclasses.dataclass(frozen=True)
class LogSoftmax(Activation):
    """y_k = a_k - log sum_j exp(a_j), over the last axis.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> fnn.LogSoftmax().apply((), jnp.array([[1000.0, 0.0]]))
        Array([[    0., -1000.]], dtype=float32)
    """

    def function(self, a: jax.Array) -> jax.Array:
        return nn.log_softmax(a, axis=-1)
