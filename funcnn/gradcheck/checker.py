"""Compares hand-written gradients with everything else that knows them, and judges."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnn.backprop.rule import Rules, as_rules
from funcnn.backprop.rules import RULES
from funcnn.gradcheck.measure import (
    DIRECTIONS,
    INNER,
    INNER_RULES,
    TAYLOR_STEPS,
    Measured,
    both,
    by_rules,
    has_kink,
    measure,
    nudged,
    paths,
    per_array,
    to_float64,
    without_casts,
)
from funcnn.gradcheck.report import (
    ADJOINT_TOLERANCE,
    DIFFERENCE_TOLERANCE,
    ROUNDING_FACTOR,
    SLOPE_LIMIT,
    TOLERANCES,
    LeafCheck,
    Report,
)
from funcnn.layer import Key, Layer, Params
from funcnn.objective import Batch, Objective, unpack


def compare(
    objective: Objective | Layer,
    params: Params,
    batch: Batch,
    *,
    rules: Rules = RULES,
    seed: int = 0,
    key: Key | None = None,
    train: bool = False,
    extras: Mapping[str, Any] | None = None,
) -> Report:
    """Checks the hand-written gradients of an objective, or of a network alone, at one point.

    Args:
        objective: net + loss + penalty; or a layer, whose outputs then get a random cotangent.
        params: the parameters, in the dtype that is to be checked.
        batch: `(x, y)` or `(x, y, weight)` with x (N, ...); for a layer x alone. Small is enough.
        rules: the backward pass that is checked: yours or ours.
        seed: of the random directions and cotangents.
        key: random key of the network, where `train` draws random numbers.
        train: whether noise is on.
        extras: a pytree for each path whose rule asks for one.

    Returns:
        A `Report`: `.passed`, `.leaves`, `.to_json()`; print it. Matrix products run at the highest precision.

    Raises:
        RuleError: a layer has no rule. Whatever a rule itself raises, with the layer's path.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> net = fnn.Serial(fnn.Dense(4), fnn.Tanh(), fnn.Dense(2))
        >>> params = net.init(jax.random.key(0), (3,))
        >>> fnn.gradcheck.compare(net, params, jax.random.normal(jax.random.key(1), (5, 3))).passed
        True

    Source: Griewank and Walther, Evaluating Derivatives (2008), for the adjoint law and the Taylor remainder.
    """
    extras, rules = dict(extras or {}), as_rules(rules)
    if isinstance(objective, Layer):
        batch = (jnp.asarray(batch), None)
        objective, subject, rules = Objective(objective, INNER), repr(objective), rules | INNER_RULES
    elif isinstance(objective, Objective):
        objective, subject = objective.replace(aux=None), repr(objective)
    else:
        raise TypeError(f"compare checks an fnn.Objective or a layer, got {objective!r}")
    rng = np.random.default_rng(seed)
    with jax.default_matmul_precision("highest"):
        batch, c = _with_random_cotangents(objective, params, batch, rng)
        point = (params, batch, key, extras)
        problems, own = _check_structure(objective, rules, train, point)
        program = (objective, rules, train, frozenset(problems))
        g, a = both(program, point)
        directions = rng.standard_normal((DIRECTIONS, sum(array.size for array in own.values())))
        with jax.enable_x64(True):
            point64, own64 = to_float64(point), to_float64((g, a))
            exact = (without_casts(objective), *program[1:])
            here = near = per_array(measure(exact, point64, own64, directions, c))
            if any(map(has_kink, here)):
                near = per_array(measure(exact, nudged(point64, rng), own64, directions, c))
    leaves = [
        judge(path, array.shape, array.dtype.name, problems.get(path, "ok"), *measured)
        for (path, array), *measured in zip(own.items(), here, near, strict=True)
    ]
    return Report(subject, tuple(leaves), seed)


def _with_random_cotangents(
    objective: Objective, params: Params, batch: Batch, rng: np.random.Generator
) -> tuple[Batch, np.ndarray]:
    """The batch with random example weights, and a random cotangent of the network's output.

    For a network without a loss that cotangent is also its targets.
    """
    x = jnp.asarray(batch[0])
    f = jax.eval_shape(objective.net.apply, params, x)
    c = rng.standard_normal(f.shape)
    x, y, weight = unpack((x, c) if objective.loss is INNER else batch)
    random = jnp.asarray(rng.uniform(0.5, 1.5, x.shape[:1]), jnp.float32)
    return (x, y, random if weight is None else random * weight.astype(jnp.float32)), c


def _check_structure(objective: Objective, rules: Rules, train: bool, point: Any) -> tuple[dict[str, str], Any]:
    """What is wrong with the gradients' structure, by path, and the arrays that they are for."""
    own = paths(point[0], point[1][0])
    got = jax.eval_shape(functools.partial(by_rules, (objective, rules, train, frozenset())), point)
    problems = {}
    for path, leaf in own.items():
        if path not in got:
            problems[path] = "missing"
        elif got[path].shape != leaf.shape:
            problems[path] = f"shape {got[path].shape}"
        elif got[path].dtype != leaf.dtype:
            problems[path] = f"dtype {got[path].dtype.name}"
    if extra := [path for path in got if path not in own]:
        problems[next(iter(own))] = f"unknown {', '.join(extra)}"
    return problems, own


def judge(path: str, shape: tuple[int, ...], dtype: str, structure: str, here: Measured, near: Measured) -> LeafCheck:
    """The verdict on what was measured of one array `here`; and `near`, where differences are taken if here is a kink.

    Every comparison is written so that NaN fails it.
    """
    failures = [] if structure == "ok" else ["structure"]
    scale = float(here.scale)
    tolerance = TOLERANCES[dtype]
    if not float(here.error) <= max(tolerance * scale, ROUNDING_FACTOR * float(here.own_rounding)):
        failures.append("error")
    # An array whose gradient cancels to nothing has rounding of the size of the others' left in it.
    if not float(here.error64) <= TOLERANCES["float64"] * max(scale, 1e-4 * float(here.largest)):
        failures.append("error64")
    if not np.all(here.adjoint <= ADJOINT_TOLERANCE * here.adjoint_scale):
        failures.append("adjoint")

    kink = has_kink(here)
    m = near if kink else here
    judged = not (kink and has_kink(near))
    bar = DIFFERENCE_TOLERANCE * m.norm + 8 * np.max(m.difference_error) + np.max(m.noise)
    off, off_autodiff = np.abs(m.along - m.difference), np.abs(m.along_autodiff - m.difference)
    if judged and not (np.all(off <= bar) and np.all(off_autodiff <= bar)):
        failures.append("difference")
    slope = _slope(m) if judged else None
    if slope is not None and not slope >= SLOPE_LIMIT:
        failures.append("slope")

    eps = float(jnp.finfo(dtype).eps)
    ulp = eps * 2.0 ** math.floor(math.log2(scale)) if 0 < scale < math.inf else eps
    return LeafCheck(
        path=path,
        shape=shape,
        dtype=dtype,
        structure=structure,
        error=_relative(here.error, scale),
        ulps=float(here.error) / ulp,
        error64=_relative(here.error64, scale),
        difference=_relative(off, m.norm),
        difference_autodiff=_relative(off_autodiff, m.norm),
        difference_bar=_relative(bar, m.norm),
        slope=slope,
        adjoint=_relative(here.adjoint, here.adjoint_scale),
        kink=kink,
        failures=tuple(failures),
    )


def _relative(errors: Any, units: Any) -> float:
    """The largest error in its unit; 0 for no error, even where the unit is 0; NaN stays NaN."""
    errors, units = np.broadcast_arrays(np.asarray(errors, float), np.asarray(units, float))
    with np.errstate(invalid="ignore"):  # infinity over infinity is NaN, and shows as that
        ratios = np.divide(errors, units, out=np.full(errors.shape, math.inf), where=units != 0)
    return float(np.max(np.where(errors == 0, 0.0, ratios)))


def _slope(m: Measured) -> float | None:
    """The slope of the Taylor remainder, over all directions, at the smallest steps where it is above rounding.

    None where it is all rounding, as for a linear function.
    """
    remainder, rounding = np.sqrt(np.mean(np.square(m.remainder), axis=0)), np.max(m.rounding)
    if not np.isfinite(remainder).all():
        return math.nan
    above = np.nonzero(remainder[:-1] > 100 * rounding)[0]
    if not above.size:
        return None
    i = above[-1]
    fall = math.log(remainder[i] / max(remainder[i + 1], rounding))
    return fall / math.log(TAYLOR_STEPS[i] / TAYLOR_STEPS[i + 1])
