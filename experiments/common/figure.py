"""The look of every figure: colours that colour-blind readers tell apart, few lines, and small files."""

import contextlib
import io
import pathlib
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image  # matplotlib's own dependency

# Okabe and Ito (2008).
BLUE, ORANGE, GREEN, VERMILION, SKY, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#666666"

_STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.size": 10,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@contextlib.contextmanager
def figure(path: pathlib.Path, width: float, height: float) -> Iterator[Figure]:
    """A figure that is written to `path` as PNG at the end. It never opens a window."""
    settings: dict[Any, Any] = _STYLE
    with mpl.rc_context(settings):
        made = Figure(figsize=(width, height), layout="constrained")
        yield made
        drawn = io.BytesIO()
        made.savefig(drawn, dpi=110)
        # A palette of 256 colours is a third of the bytes, and looks the same.
        Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, "PNG", optimize=True)
