"""Noise under `train=True`; without it these layers do nothing."""

import dataclasses

import jax
import jax.numpy as jnp

from funcnn.layer import (
    Key,
    Layer,
    LayerError,
    Params,
    Shape,
    check_in_shape,
    check_no_params,
    check_train,
    float_dtype,
    need_key,
)


@dataclasses.dataclass(frozen=True)
class Dropout(Layer):
    """Sets each number to zero with probability `rate` and scales the others, so that the mean is kept.

    Under train: y = m x / (1 - rate), m ~ Bernoulli(1 - rate), of x's shape. Else y = x.

    Args:
        rate: the probability to drop, in [0, 1).

    Raises:
        LayerError: `rate` is outside [0, 1); `train=True` without a key.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> fnn.Dropout(0.5).apply((), jnp.ones(4), key=jax.random.key(1), train=True)
        Array([2., 0., 2., 2.], dtype=float32)

    Source: Srivastava et al., Dropout (2014); "inverted", so that nothing is scaled at test time.
    """

    rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise LayerError(f"Dropout's rate is the probability to drop, in [0, 1), got {self.rate!r}")

    def init(self, key: Key, in_shape: Shape) -> Params:
        check_in_shape(in_shape)
        return ()

    def mask(self, key: Key | None, x: jax.Array) -> jax.Array:
        """Which numbers are kept: booleans of x's shape, the same for the same key."""
        return jax.random.bernoulli(need_key(key, self), 1 - self.rate, x.shape)

    def apply(self, params: Params, x: jax.Array, *, key: Key | None = None, train: bool = False) -> jax.Array:
        check_no_params(self, params)
        return jnp.where(self.mask(key, x), x / (1 - self.rate), 0) if check_train(train) and self.rate else x

    def out_shape(self, in_shape: Shape) -> Shape:
        return check_in_shape(in_shape)


@dataclasses.dataclass(frozen=True)
class GaussianNoise(Layer):
    """Adds normal noise, to inputs or to hidden units, wherever it stands in the network.

    Under train: y = x + std n, n ~ Normal(0, 1), of x's shape. Else y = x.

    Args:
        std: the standard deviation of the noise, in units of x, not negative.

    Raises:
        LayerError: `std` is negative; `train=True` without a key.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> x = jnp.zeros(10_000)
        >>> y = fnn.GaussianNoise(0.5).apply((), x, key=jax.random.key(0), train=True)
        >>> print(f"{jnp.std(y):.1f}")
        0.5

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), section 7.5.
    """

    std: float

    def __post_init__(self) -> None:
        if not self.std >= 0:
            raise LayerError(f"GaussianNoise's std is not negative, got {self.std!r}")

    def init(self, key: Key, in_shape: Shape) -> Params:
        check_in_shape(in_shape)
        return ()

    def apply(self, params: Params, x: jax.Array, *, key: Key | None = None, train: bool = False) -> jax.Array:
        check_no_params(self, params)
        if not (check_train(train) and self.std):
            return x
        return x + self.std * jax.random.normal(need_key(key, self), x.shape, float_dtype(x))

    def out_shape(self, in_shape: Shape) -> Shape:
        return check_in_shape(in_shape)
