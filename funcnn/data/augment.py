"""Random changes to a batch, drawn anew in each training step and on the device: `fit(..., augment=[...])`.

Each is a function `(key, batch) -> batch` of a batch `(x, y)` or `(x, y, weight)`; what it does not change passes as it
is, and what it changes keeps its shape and dtype. Every example gets random numbers of its own. Images are x (N, h, w),
(N, h, w, channels), or flattened, with the shape of one image given. All lengths are in pixels.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from funcnn.description import Description
from funcnn.layer import Key, Shape
from funcnn.objective import Batch

_SCALE = "scale pixels first: fit(..., prepare=Pixels(255))"


@dataclasses.dataclass(frozen=True)
class Shift(Description):
    """Moves each image by whole pixels; what comes in from outside is 0.

    x'[i, j] = x[i - a, j - b], with a and b uniform in {-pixels, ..., pixels}

    Args:
        pixels: the largest shift on each axis, not negative.
        shape: of one image, (h, w) or (h, w, channels), where x is flattened.

    Raises:
        ValueError: an argument or the shape of x is not one of these.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn.data.augment import Shift
        >>> x, y = Shift(1)(jax.random.key(0), (jnp.array([[[1, 2, 3], [4, 5, 6]]]), jnp.array([7])))
        >>> x
        Array([[[0, 1, 2],
                [0, 4, 5]]], dtype=int32)

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), section 7.4.
    """

    pixels: int
    shape: Shape | None = None

    def __post_init__(self) -> None:
        _check_count(self, "pixels", 0)
        _check_shape(self)

    def __call__(self, key: Key, batch: Batch) -> Batch:
        x, *rest = batch
        images, p = _images(self, x), self.pixels
        padded = jnp.pad(images, ((0, 0), (p, p), (p, p), (0, 0)))
        corners = jax.random.randint(key, (len(images), 2), 0, 2 * p + 1)  # p - a, p - b
        cut = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), images.shape[1:]))
        return (cut(padded, corners).reshape(x.shape), *rest)


@dataclasses.dataclass(frozen=True)
class Rotate(Description):
    """Turns each image about its centre, with bilinear interpolation; what comes in from outside is 0.

    x'(c + u) = x(c + R(t) u), with t uniform in [-degrees, degrees]; t > 0 turns the image counter-clockwise.

    Args:
        degrees: the largest angle, not negative.
        shape: of one image, (h, w) or (h, w, channels), where x is flattened.

    Raises:
        ValueError: an argument or the shape of x is not one of these.
        TypeError: x is not floating.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn.data.augment import Rotate
        >>> x, y = Rotate(15, shape=(3, 3))(jax.random.key(0), (jnp.ones((1, 9)), jnp.array([7])))
        >>> print(x.round(1).reshape(3, 3))
        [[0.8 1.  0.8]
         [1.  1.  1. ]
         [0.8 1.  0.8]]

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), section 7.4.
    """

    degrees: float
    shape: Shape | None = None

    def __post_init__(self) -> None:
        _check(self, "degrees", 0 <= self.degrees < math.inf, "an angle, finite and not negative")
        _check_shape(self)

    def __call__(self, key: Key, batch: Batch) -> Batch:
        x, *rest = batch
        _check_floating(self, "x", x, _SCALE)
        images, most = _images(self, x), math.radians(self.degrees)
        angles = jax.random.uniform(key, (len(images),), _coordinate_dtype(images), -most, most)
        return (_turned(images, angles).reshape(x.shape), *rest)


@dataclasses.dataclass(frozen=True)
class Elastic(Description):
    """Bends each image by a smooth random field, with bilinear interpolation; what comes in from outside is 0.

    x'(p) = x(p + alpha (G * u)(p)), with u(p) uniform in [-1, 1]^2 for each pixel p and G the Gaussian of std sigma.

    Away from the border the displacements have the standard deviation alpha / (2 sigma sqrt(3 pi)): 1.4 pixels for
    alpha = 34 and sigma = 4, which suit MNIST.

    Args:
        alpha: the scale of the displacements in pixels, not negative.
        sigma: the width of the smoothing in pixels, positive.
        shape: of one image, (h, w) or (h, w, channels), where x is flattened.

    Raises:
        ValueError: an argument or the shape of x is not one of these.
        TypeError: x is not floating.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn.data.augment import Elastic
        >>> x, y = Elastic(34, 4, shape=(28, 28))(jax.random.key(0), (jnp.ones((5, 784)), jnp.arange(5)))
        >>> x.shape
        (5, 784)

    Source: Simard, Steinkraus and Platt, Best Practices for Convolutional Neural Networks Applied to Visual Document
    Analysis (2003).
    """

    alpha: float
    sigma: float
    shape: Shape | None = None

    def __post_init__(self) -> None:
        _check(self, "alpha", 0 <= self.alpha < math.inf, "a length in pixels, finite and not negative")
        _check(self, "sigma", 0 < self.sigma < math.inf, "a length in pixels, finite and positive")
        _check_shape(self)

    def __call__(self, key: Key, batch: Batch) -> Batch:
        x, *rest = batch
        _check_floating(self, "x", x, _SCALE)
        images = _images(self, x)
        rows, columns = _grid(images)
        down, right = self.alpha * _smooth_field(key, images.shape[:3], self.sigma, rows.dtype)
        return (_sampled(images, rows + down, columns + right).reshape(x.shape), *rest)


@dataclasses.dataclass(frozen=True)
class Flip(Description):
    """Mirrors each image with probability 1/2, left to right, top to bottom, or each of the two.

    x'[i, j] = x[i, w - 1 - j] if m else x[i, j], m ~ Bernoulli(1/2); the same for the rows.

    It is for images that mean the same in the mirror: not for digits or letters.

    Args:
        horizontal: whether left and right may change places.
        vertical: whether top and bottom may.
        shape: of one image, (h, w) or (h, w, channels), where x is flattened.

    Raises:
        ValueError: an argument or the shape of x is not one of these.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn.data.augment import Flip
        >>> x, y = Flip()(jax.random.key(1), (jnp.array([[[1, 2, 3]], [[4, 5, 6]]]), jnp.array([7, 8])))
        >>> print(x[0], x[1])
        [[3 2 1]] [[4 5 6]]

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), section 7.4.
    """

    horizontal: bool = True
    vertical: bool = False
    shape: Shape | None = None

    def __post_init__(self) -> None:
        _check_shape(self)

    def __call__(self, key: Key, batch: Batch) -> Batch:
        x, *rest = batch
        images = _images(self, x)
        for wanted, axis, axis_key in zip((self.vertical, self.horizontal), (1, 2), jax.random.split(key), strict=True):
            if wanted:
                mirrored = jax.random.bernoulli(axis_key, 0.5, (len(images), 1, 1, 1))
                images = jnp.where(mirrored, jnp.flip(images, axis), images)
        return (images.reshape(x.shape), *rest)


@dataclasses.dataclass(frozen=True)
class _Noise(Description):
    """Noise of a standard deviation."""

    std: float

    def __post_init__(self) -> None:
        _check(self, "std", 0 <= self.std < math.inf, "a standard deviation, finite and not negative")
        if isinstance(self.std, np.generic):  # it would change the dtype of what it scales
            object.__setattr__(self, "std", float(self.std))


@dataclasses.dataclass(frozen=True)
class InputNoise(_Noise):
    """Adds normal noise to the inputs, of any shape.

    x' = x + std n, n ~ Normal(0, 1), of x's shape.

    Args:
        std: the standard deviation, in units of x, not negative.

    Raises:
        ValueError: `std` is negative or not finite.
        TypeError: x is not floating.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn.data.augment import InputNoise
        >>> x, y = InputNoise(0.5)(jax.random.key(0), (jnp.zeros((100, 100)), jnp.arange(100)))
        >>> print(f"{jnp.std(x):.1f}")
        0.5

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), section 7.5.
    """

    def __call__(self, key: Key, batch: Batch) -> Batch:
        x, *rest = batch
        return (_noisy(self, "x", x, key, _SCALE), *rest)


@dataclasses.dataclass(frozen=True)
class TargetNoise(_Noise):
    """Adds normal noise to the targets of a regression.

    y' = y + std n, n ~ Normal(0, 1), of y's shape.

    Args:
        std: the standard deviation, in units of y, not negative.

    Raises:
        ValueError: `std` is negative or not finite.
        TypeError: y is not floating.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn.data.augment import TargetNoise
        >>> x, y = TargetNoise(0.5)(jax.random.key(0), (jnp.zeros((10_000, 1)), jnp.ones((10_000, 1))))
        >>> print(f"{jnp.mean(y):.1f} {jnp.std(y):.1f}")
        1.0 0.5

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), section 7.5.1.
    """

    def __call__(self, key: Key, batch: Batch) -> Batch:
        x, y, *weight = batch
        return (x, _noisy(self, "y", y, key, "for labels of classes there is FlipLabels(rate, classes)"), *weight)


@dataclasses.dataclass(frozen=True)
class FlipLabels(Description):
    """Replaces each label, with probability `rate`, by one of the other classes, all of them alike.

    y' = (y + r) mod classes if m else y, m ~ Bernoulli(rate), r uniform in {1, ..., classes - 1}.

    Args:
        rate: the probability that a label is replaced, in [0, 1].
        classes: the number of classes, 2 or more.

    Raises:
        ValueError: an argument is not one of these.
        TypeError: y does not hold integers.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn.data.augment import FlipLabels
        >>> x, y = FlipLabels(1.0, classes=2)(jax.random.key(0), (jnp.ones((3, 1)), jnp.array([0, 1, 1])))
        >>> y
        Array([1, 0, 0], dtype=int32)

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), section 7.5.1.
    """

    rate: float
    classes: int

    def __post_init__(self) -> None:
        _check(self, "rate", 0 <= self.rate <= 1, "a probability, in [0, 1]")
        _check_count(self, "classes", 2)

    def __call__(self, key: Key, batch: Batch) -> Batch:
        x, y, *weight = batch
        if not jnp.issubdtype(y.dtype, jnp.integer):
            raise TypeError(
                f"{self!r} takes labels that are integers, got y {y.dtype}{list(y.shape)}; "
                "for floating targets there is TargetNoise(std)"
            )
        which, by = jax.random.split(key)
        step = jax.random.randint(by, y.shape, 1, self.classes)
        other = ((jnp.asarray(y, step.dtype) + step) % self.classes).astype(y.dtype)  # wide enough for the sum
        return (x, jnp.where(jax.random.bernoulli(which, self.rate, y.shape), other, y), *weight)


def _noisy(augment: Any, name: str, array: jax.Array, key: Key, way: str) -> jax.Array:
    """array + std n."""
    _check_floating(augment, name, array, way)
    return array + augment.std * jax.random.normal(key, array.shape, array.dtype)


def _smooth_field(key: Key, shape: Shape, sigma: float, dtype: Any) -> jax.Array:
    """G * u, of shape (2, N, h, w) for shape (N, h, w): its rows, then its columns."""
    u = jax.random.uniform(key, (2, *shape), dtype, -1, 1)
    down, across = (_gaussian(length, sigma, dtype) for length in shape[1:])
    return jnp.einsum("ip,knpq,qj->knij", down, u, across)


def _gaussian(length: int, sigma: float, dtype: Any) -> jax.Array:
    """G (length, length): its product with a vector is the convolution with a Gaussian of sum 1, zeros outside."""
    i, far = np.arange(length), np.arange(-math.ceil(8 * sigma), math.ceil(8 * sigma) + 1)
    total = np.exp(-((far / sigma) ** 2) / 2).sum()
    return jnp.asarray(np.exp(-(((i[:, None] - i) / sigma) ** 2) / 2) / total, dtype)


def _turned(images: jax.Array, angles: jax.Array) -> jax.Array:
    """Images (N, h, w, c) turned about their centres by angles (N,) in radians, counter-clockwise as `numpy.rot90`."""
    rows, columns = _grid(images)
    middle = (images.shape[1] - 1) / 2, (images.shape[2] - 1) / 2
    down, right = rows - middle[0], columns - middle[1]
    cos, sin = jnp.cos(angles)[:, None, None], jnp.sin(angles)[:, None, None]
    return _sampled(images, middle[0] + cos * down + sin * right, middle[1] - sin * down + cos * right)


def _sampled(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Images (N, h, w, c) at the fractional places rows, columns (N, h, w): bilinear, and 0 outside."""
    channels = jax.vmap(lambda plane, *at: map_coordinates(plane, at, order=1), (-1, None, None), -1)
    return jax.vmap(channels)(images.astype(rows.dtype), rows, columns).astype(images.dtype)


def _grid(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The row and the column of each pixel, of shapes (1, h, 1) and (1, 1, w)."""
    rows, columns = (jnp.arange(length, dtype=_coordinate_dtype(images)) for length in images.shape[1:3])
    return rows[None, :, None], columns[None, None, :]


def _coordinate_dtype(images: jax.Array) -> Any:
    return images.dtype if images.dtype == jnp.float64 else jnp.dtype(jnp.float32)  # bfloat16 has no 128.5


def _images(augment: Any, x: jax.Array) -> jax.Array:
    """x as (N, h, w, channels)."""
    shape = augment.shape
    if shape is None and x.ndim not in (3, 4):
        raise ValueError(
            f"{augment!r} takes images (N, h, w) or (N, h, w, channels), got x of shape {x.shape}; "
            f"flattened ones with their shape, as in {type(augment).__name__}(..., shape=(28, 28))"
        )
    if shape is not None and x.shape[1:] not in (shape, (math.prod(shape),)):
        whole = ", ".join(map(str, shape))
        raise ValueError(
            f"{augment!r} takes images (N, {whole}), or flattened (N, {math.prod(shape)}), got x of shape {x.shape}"
        )
    shape = shape or x.shape[1:]
    return jnp.asarray(x).reshape(len(x), *shape, *(1,) * (3 - len(shape)))


def _check_floating(augment: Any, name: str, array: jax.Array, way: str) -> None:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{augment!r} takes floating {name}, got {array.dtype}{list(array.shape)}; {way}")


def _check(augment: Any, name: str, good: bool, meaning: str) -> None:
    if not good:
        raise ValueError(f"{type(augment).__name__}'s {name} is {meaning}, got {getattr(augment, name)!r}")


def _check_count(augment: Any, name: str, least: int) -> None:
    """Raises unless the field `name` is an integer, `least` or more; one of NumPy becomes Python's."""
    count = getattr(augment, name)
    good = isinstance(count, int | np.integer) and not isinstance(count, bool) and bool(count >= least)
    _check(augment, name, good, f"an integer, {least} or more")
    object.__setattr__(augment, name, int(count))


def _check_shape(augment: Any) -> None:
    shape = augment.shape
    good = isinstance(shape, tuple | list) and len(shape) in (2, 3) and all(isinstance(d, int) and d > 0 for d in shape)
    _check(augment, "shape", shape is None or good, "that of one image, (h, w) or (h, w, channels), such as (28, 28)")
    object.__setattr__(augment, "shape", shape and tuple(shape))  # a list would not hash
