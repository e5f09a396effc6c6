"""Shifted softmax and log-softmax never overflow; the formulas as they are written do, in every dtype.

Softmax, log-softmax and cross-entropy, with and without the largest logit subtracted, for logits from 1 to the largest
number of each dtype: where value or gradient is no longer finite, or no longer right.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

import funcnn as fnn
from experiments.common.claims import Check, Experiment, Options
from experiments.common.figure import BLUE, GRAY, VERMILION, figure

DTYPES = ("float16", "bfloat16", "float32", "float64")
LARGEST = 1e38
# Of the value 0 <= p <= 1, of log p over the largest logit, and of gradients: some roundings of the dtype.
ROUNDINGS = 8


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Evaluates both forms over the range of each dtype."""

    sizes: int = 153
    """How many sizes of logits, from 1 to 1e38."""
    classes: int = 5
    """Logits are a size times numbers drawn from -1 to 1."""


def naive_softmax(z: jax.Array) -> jax.Array:
    """exp z_k / sum_j exp z_j."""
    return jnp.exp(z) / jnp.sum(jnp.exp(z), axis=-1, keepdims=True)


def naive_log_softmax(z: jax.Array) -> jax.Array:
    """log (exp z_k / sum_j exp z_j)."""
    return jnp.log(naive_softmax(z))


def naive_cross_entropy(z: jax.Array) -> jax.Array:
    """-log p of the first class (N,)."""
    return -naive_log_softmax(z)[:, 0]


def cross_entropy(z: jax.Array) -> jax.Array:
    """The loss of the library, of the first class (N,)."""
    return fnn.losses.softmax_cross_entropy(z, jnp.zeros(len(z), jnp.int32))


FORMS: dict[str, dict[str, Callable[[jax.Array], jax.Array]]] = {
    "softmax": {"naive": naive_softmax, "shifted": lambda z: fnn.Softmax().apply((), z)},
    "log-softmax": {"naive": naive_log_softmax, "shifted": lambda z: fnn.LogSoftmax().apply((), z)},
    "cross-entropy": {"naive": naive_cross_entropy, "shifted": cross_entropy},
}


def measure(config: Config) -> dict[str, Any]:
    """For each function, form and dtype, the smallest size (a seed each) at which value or gradient is wrong."""
    sizes = np.logspace(0, np.log10(LARGEST), config.sizes)
    numbers: dict[str, Any] = {"sizes": sizes, "first wrong": {}, "largest": {}}
    with jax.enable_x64(True):
        for dtype in DTYPES:
            most = float(jnp.finfo(dtype).max)
            known = sizes[sizes <= most]
            numbers["largest"][dtype] = known[-1]
            for name, forms in FORMS.items():
                for form, function in forms.items():
                    found = [first_wrong(config, function, name, dtype, known, seed) for seed in range(config.seeds)]
                    values, gradients = zip(*found, strict=True)
                    numbers["first wrong"][f"{name}, {form}, {dtype}"] = {"value": values, "gradient": gradients}
    return numbers


def first_wrong(
    config: Config, function: Any, name: str, dtype: str, sizes: np.ndarray, seed: int
) -> tuple[float | None, float | None]:
    """The smallest size whose value, and whose gradient, is not right; None where all are."""
    units = np.random.default_rng(seed).uniform(-1, 1, config.classes)
    units[np.random.default_rng(seed).integers(config.classes)] = 1.0  # the largest, not always the right class's
    z = jnp.asarray(np.outer(sizes, units)).astype(dtype)
    value, gradient = np.asarray(function(z), np.float64), np.asarray(slope(function, z), np.float64)
    # What the dtype has no number for, as log p below its smallest one, is infinite when it is right.
    want, want_gradient = (
        np.asarray(jnp.asarray(a).astype(dtype), np.float64) for a in reference(name, np.asarray(z, np.float64))
    )
    eps = float(jnp.finfo(dtype).eps)
    scale = np.ones(len(sizes)) if name == "softmax" else np.maximum(sizes, 1)
    return (
        smallest(sizes, difference(value, want) / scale, eps),
        smallest(sizes, difference(gradient, want_gradient), eps * config.classes),
    )


def reference(name: str, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value by SciPy in float64, and the gradient of its first output in closed form, where no gradient was taken."""
    p, log_p = special.softmax(z, axis=-1), special.log_softmax(z, axis=-1)
    first = np.eye(z.shape[-1])[0]
    if name == "softmax":
        return p, p[:, :1] * (first - p)
    if name == "log-softmax":
        return log_p, first - p
    return -log_p[:, 0], p - first


def slope(function: Any, z: jax.Array) -> jax.Array:
    """The gradient for z of the first output of each row (N, K)."""
    return jax.grad(lambda z: jnp.sum(function(z).reshape(len(z), -1)[:, 0]))(z)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The largest in each row; equal infinities do not differ."""
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0, np.abs(a - b)).reshape(len(a), -1).max(1)


def smallest(sizes: np.ndarray, errors: np.ndarray, eps: float) -> float | None:
    """The smallest size whose error is more than rounding; NaN is."""
    wrong = ~(errors <= ROUNDINGS * eps)
    return float(sizes[np.argmax(wrong)]) if wrong.any() else None


def judge(numbers: dict[str, Any]) -> list[Check]:
    """All naive forms go wrong in each dtype, none of the shifted ones does."""
    found = numbers["first wrong"]
    firsts = {key: [*one["value"], *one["gradient"]] for key, one in found.items()}
    shifted = [key for key in firsts if ", shifted, " in key]
    bad = [key for key in shifted if any(value is not None for value in firsts[key])]
    naive = {dtype: [key for key in firsts if ", naive, " in key and key.endswith(f" {dtype}")] for dtype in DTYPES}
    fine = [key for keys in naive.values() for key in keys if all(value is None for value in firsts[key])]
    first = {
        dtype: min((v for key in keys for v in firsts[key] if v is not None), default=None)
        for dtype, keys in naive.items()
    }
    return [
        Check(
            f"Shifted values and gradients are right to {ROUNDINGS} roundings up to 1e38 or the dtype's largest number",
            f"all {len(shifted)} are" if not bad else f"not {', '.join(bad)}",
            not bad,
        ),
        Check(
            "Each naive form goes wrong somewhere in each dtype",
            ", ".join(f"{dtype} from {size:.3g}" for dtype, size in first.items() if size is not None)
            + (f"; not {', '.join(fine)}" if fine else ""),
            not fine,
        ),
    ]


def draw(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """A bar for each function, form and dtype: up to which size of logits it is right."""
    with figure(path, 10, 5.5) as fig:
        panels = fig.subplots(1, 2, sharey=True)
        names = [f"{name}, {form}" for name, forms in FORMS.items() for form in forms]
        for axes, what in zip(panels, ("value", "gradient"), strict=True):
            for row, name in enumerate(names):
                for k, dtype in enumerate(DTYPES):
                    y = row + 0.2 * (k - 1.5)
                    end = numbers["largest"][dtype]
                    wrong = [v for v in numbers["first wrong"][f"{name}, {dtype}"][what] if v is not None]
                    right = min(wrong, default=end)
                    color = VERMILION if "naive" in name else BLUE
                    axes.plot([1, end], [y, y], color=GRAY, linewidth=1, alpha=0.5)
                    axes.plot([1, right], [y, y], color=color, linewidth=5, solid_capstyle="butt")
                    if what == "gradient":
                        axes.text(2e38, y, dtype, fontsize=7, va="center")
            axes.set(xscale="log", xlim=(1, 1e38), title=f"{what} is right", xlabel="size of the logits")
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
        title = "Up to which logits softmax and its logarithm are right (grey: the range of the dtype, up to 1e38)"
        fig.suptitle(title, x=0.01, ha="left")


EXPERIMENT = Experiment(
    name="stable_softmax",
    claim="Softmax and cross-entropy are right for all logits if the largest is subtracted first, and else overflow.",
    source="Goodfellow, Bengio and Courville, Deep Learning (2016), sections 4.1 and 6.2.2.3",
    options=Config,
    measure=measure,
    judge=judge,
    draw=draw,
    smoke={"seeds": 2, "sizes": 39},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return EXPERIMENT.run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
