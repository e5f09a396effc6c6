"""How a measured quantity grows with a size: the exponent of a power, and how straight a line is."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def upper(sizes: Sequence[float]) -> int:
    """Where the upper half of the sizes begins, at least two: below it, what a step costs at any size is in the way."""
    return min(len(sizes) // 2, len(sizes) - 2)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log(values) over log(sizes) by least squares, over the upper half of the sizes."""
    if len(sizes) < 2:
        raise ValueError(f"a slope takes at least two sizes, got {sizes}")
    first = upper(sizes)
    return float(np.polyfit(np.log(sizes[first:]), np.log(values[first:]), 1)[0])


class Line(NamedTuple):
    """A straight line, and the share of the values' variance that it explains."""

    fixed: float
    each: float
    r2: float


def line(sizes: Sequence[float], values: Sequence[float]) -> Line:
    """values = fixed + each * sizes by least squares, over all sizes."""
    x, y = np.asarray(sizes, float), np.asarray(values, float)
    each, fixed = np.polyfit(x, y, 1)
    scatter = np.sum((y - y.mean()) ** 2)
    return Line(float(fixed), float(each), float(1 - np.sum((y - fixed - each * x) ** 2) / scatter) if scatter else 1.0)
