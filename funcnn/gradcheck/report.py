"""What the checker finds: a verdict for each array, and how it prints."""

import dataclasses
import json
import math
import textwrap
from typing import Any

from funcnn import table

# Largest |g - a| / max|a| that rounding explains. The two are the same sums in another order: some tens of roundings of
# the largest entry. A gradient that is off by 0.05 % is 25 times (float32) beyond it; in narrower dtypes, only the
# comparison in float64 sees that little.
TOLERANCES = {"float64": 1e-10, "float32": 2e-5, "bfloat16": 1e-1, "float16": 2e-2}
# Where sums cancel, both lose digits, and by luck one loses more: g may be off by this many times the rounding of a
# itself. In one of 1,000 ill-conditioned draws it was over 10 times. What such luck may hide, float64 shows.
ROUNDING_FACTOR = 100
DIFFERENCE_TOLERANCE = 1e-6  # of |g|: a central difference extrapolated once from h and h / 2 is good to about h^4
ADJOINT_TOLERANCE = 1e-10  # of the absolute sums of the two products, in float64
SLOPE_LIMIT = 1.5  # half-way between 2, a gradient's, and 1


@dataclasses.dataclass(frozen=True)
class LeafCheck:
    """The verdict on one array: a parameter, or the input.

    Attributes:
        path: where it is, such as "0/w"; "input" for x.
        shape: its shape.
        dtype: its dtype.
        structure: "ok", or what is wrong with the gradient's structure, shape or dtype.
        error: max|g - a| / max|a| of hand-written g against `jax.grad`'s a, in this dtype.
        ulps: the same in units in the last place of max|a|.
        error64: as `error`, in float64.
        difference: hand-written against the central difference, over |a|.
        difference_autodiff: `jax.grad` against the central difference, over |a|.
        difference_bar: the error bar of the central difference, over |a|.
        slope: the slope of the Taylor remainder; None where the remainder is rounding only.
        adjoint: |<J t, c> - <t, J^T c>|, relative.
        kink: whether there is a kink at the point; the differences and the slope are then those of a point nearby, and
            are not judged where that is a kink too.
        failures: the columns that failed.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    structure: str
    error: float
    ulps: float
    error64: float
    difference: float
    difference_autodiff: float
    difference_bar: float
    slope: float | None
    adjoint: float
    kink: bool
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether no column failed."""
        return not self.failures


@dataclasses.dataclass(frozen=True)
class Report:
    """What `compare` found. `print(report)` shows a table, a line for each array; `rich.print` colours it.

    Attributes:
        subject: what was checked.
        leaves: a `LeafCheck` for each array of parameters, in order, and for the input.
        seed: the seed of the random directions and cotangents.
    """

    subject: str
    leaves: tuple[LeafCheck, ...]
    seed: int

    @property
    def passed(self) -> bool:
        """Whether every array passed."""
        return all(leaf.passed for leaf in self.leaves)

    @property
    def failed(self) -> tuple[LeafCheck, ...]:
        """The arrays that did not pass."""
        return tuple(leaf for leaf in self.leaves if not leaf.passed)

    def to_json(self) -> str:
        """The report as JSON text: subject, seed, passed, tolerances, and the leaves. NaN and infinity are strings."""
        leaves = [dataclasses.asdict(leaf) | {"passed": leaf.passed} for leaf in self.leaves]
        for leaf in leaves:
            leaf |= {k: str(v) for k, v in leaf.items() if isinstance(v, float) and not math.isfinite(v)}
        tolerances = {"error": TOLERANCES, "difference": DIFFERENCE_TOLERANCE, "adjoint": ADJOINT_TOLERANCE}
        return json.dumps(
            {
                "subject": self.subject,
                "seed": self.seed,
                "passed": self.passed,
                "tolerances": tolerances,
                "leaves": leaves,
            }
        )

    def _table(self) -> table.Table:
        # What is judged, by column; a failed one is marked.
        columns = {
            "array": "structure",
            "shape": None,
            "g - jax.grad": "error",
            "ULPs": None,
            "in float64": "error64",
            "differences": "difference",
            "slope": "slope",
            "adjoint": "adjoint",
            "verdict": None,
        }
        rows, wrong = [], set()
        for i, leaf in enumerate(self.leaves):
            cells = (
                leaf.path,
                "x".join(map(str, leaf.shape)) or "scalar",
                _number(leaf.error),
                f"{leaf.ulps:.1f}" if leaf.ulps < 1000 else _number(leaf.ulps),
                _number(leaf.error64),
                _number(leaf.difference),
                "exact" if leaf.slope is None else f"{leaf.slope:.2f}",
                _number(leaf.adjoint),
                ("FAIL" if leaf.failures else "ok") + (", kink" if leaf.kink else ""),
            )
            rows.append(cells)
            wrong |= {(i, j) for j, judged in enumerate(columns.values()) if judged in leaf.failures}
            wrong |= {(i, 0), (i, len(cells) - 1)} if leaf.failures else set()
        dtypes = sorted({leaf.dtype for leaf in self.leaves})
        errors = " or ".join(f"{TOLERANCES[dtype]:.0e}" for dtype in dtypes)
        limits = (errors, "", f"{TOLERANCES['float64']:.0e}", f"{DIFFERENCE_TOLERANCE:.0e} + bar", f">= {SLOPE_LIMIT}")
        rows.append(("limit", "", *limits, f"{ADJOINT_TOLERANCE:.0e}", ""))
        reasons = [f"{leaf.path}: {leaf.structure}" for leaf in self.leaves if leaf.structure != "ok"]
        bad = "; ".join([f"{leaf.path} ({', '.join(leaf.failures)})" for leaf in self.failed] + reasons)
        return table.Table(
            title=textwrap.shorten(
                f"Gradients g by hand, {' and '.join(dtypes)}, of {self.subject}", 120, placeholder=" ..."
            ),
            columns=tuple(columns),
            rows=tuple(rows),
            wrong=frozenset(wrong),
            caption=f"FAILED: {bad}" if bad else f"passed: all {len(self.leaves)} arrays",
        )

    def __str__(self) -> str:
        return self._table().text()

    def __rich__(self) -> Any:
        return self._table().rich()


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"
