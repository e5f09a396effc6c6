"""What is done with every batch before it is trained on or evaluated, on the device: `fit(..., prepare=...)`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from funcnn.description import Description
from funcnn.objective import Batch


@dataclasses.dataclass(frozen=True)
class Pixels(Description):
    """Scales the bytes of images to [0, 1], so that a data set lies on the device in a quarter of the memory.

    x' = x / x_max, to the bit what `Dataset.arrays` gives; targets and weights pass as they are.

    Args:
        x_max: the largest value that a pixel can take, 1 to 65535 (255 for MNIST, 16 for the scikit-learn digits).
        flatten: whether an image becomes one row: x (N, h, w) -> (N, D) with D = h w.

    Call: `pixels(batch)`; batch is `(x, y)` or `(x, y, weight)` with x (N, ...) of unsigned integers. The x returned is
    of JAX's default floating dtype; it is NaN where a pixel was larger than `x_max`.

    Raises:
        ValueError: `x_max` is not one of these integers.
        TypeError: x does not hold unsigned integers; it may be scaled already.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn.data.prepare import Pixels
        >>> x, y = Pixels(255)((jnp.array([[[0, 51], [102, 255]]], jnp.uint8), jnp.array([7])))
        >>> x
        Array([[0. , 0.2, 0.4, 1. ]], dtype=float32)
    """

    x_max: int = 255
    flatten: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.x_max, bool) or not isinstance(self.x_max, int | np.integer) or not 0 < self.x_max < 2**16:
            raise ValueError(
                f"Pixels' x_max is the largest value of a pixel, an integer 1 to 65535, got {self.x_max!r}"
            )
        object.__setattr__(self, "x_max", int(self.x_max))

    def __call__(self, batch: Batch) -> Batch:
        x, *rest = batch
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.unsignedinteger):
            floating = jnp.issubdtype(x.dtype, jnp.floating)
            way = "if they are scaled already, leave Pixels out" if floating else "give them as np.uint8"
            raise TypeError(f"{self!r} scales unsigned integers, got x {x.dtype}{list(x.shape)}; {way}")
        # Looked up, not divided: XLA divides by a constant as a product with its inverse, which is off by one rounding.
        scaled = jnp.asarray(np.arange(self.x_max + 1) / self.x_max, jnp.result_type(float))
        x = scaled.at[x].get(mode="fill", out_sharding=jax.typeof(x).sharding)
        return (x.reshape(len(x), -1) if self.flatten else x, *rest)
