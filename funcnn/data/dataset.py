"""The one value every loader returns, and the one place where pixels are scaled."""

import dataclasses

import numpy as np
import numpy.typing as npt

Examples = tuple[np.ndarray, np.ndarray]  # x (N, D) scaled, y (N,) int32


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images as they were stored, with integer labels, split into training and test examples.

    Attributes:
        name: what the data are called, for titles and records.
        x_train: unsigned integers 0..x_max, shape (N, height, width).
        y_train: labels 0..classes-1, int32, shape (N,).
        x_test: the held-out images, shape (M, height, width).
        y_test: their labels, int32, shape (M,).
        x_max: the largest value a pixel can take (255 for MNIST, 16 for the scikit-learn digits).
        classes: the number of classes.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    x_max: int
    classes: int

    def arrays(self, dtype: npt.DTypeLike = np.float32) -> tuple[Examples, Examples]:
        """The examples as a network takes them: flattened, and scaled to [0, 1] by x / x_max.

        Args:
            dtype: floating type of the images; bfloat16 (`jnp.bfloat16`) as well as NumPy's own.

        Returns:
            `(x, y), (x_test, y_test)`: images (N, D) and (M, D) with D = height * width, labels int32 (N,) and (M,).

        Raises:
            ValueError: dtype is not a floating type, so that all but the brightest pixels would become 0.

        Example:
            >>> from funcnn.data import load_digits
            >>> (x, y), (x_test, y_test) = load_digits().arrays()
            >>> x.shape, x.dtype.name, float(x.min()), float(x.max())
            ((1347, 64), 'float32', 0.0, 1.0)
            >>> y.shape, y.dtype.name
            ((1347,), 'int32')
        """
        dtype = np.dtype(dtype)
        if dtype.kind not in "fV":  # V: bfloat16 and its like, which NumPy knows as extension types
            raise ValueError(f"images scaled to [0, 1] need a floating dtype such as float32, not {dtype.name}")
        # One rounding per gray level, looked up per pixel: exact in every dtype, and no float64 copy of the images.
        scaled = (np.arange(self.x_max + 1) / self.x_max).astype(dtype)
        return (
            (scaled[self.x_train.reshape(len(self.x_train), -1)], self.y_train),
            (scaled[self.x_test.reshape(len(self.x_test), -1)], self.y_test),
        )

    def __repr__(self) -> str:
        height, width = self.x_train.shape[1:]
        return (
            f"<Dataset {self.name}: {len(self.x_train)} training and {len(self.x_test)} test images of "
            f"{height}x{width}, {self.classes} classes>"
        )
