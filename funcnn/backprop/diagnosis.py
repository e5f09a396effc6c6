"""A network at one batch, layer by layer: what its outputs and deltas look like, and what theory says of them."""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import table
from funcnn.backprop import per_example, quantities
from funcnn.backprop.engine import check_like, check_objective, run
from funcnn.backprop.outer import at_least_float32, is_outer, squared_norms_of
from funcnn.backprop.passes import layer_rows, slope_of
from funcnn.backprop.rule import Context, Rule, Rules, as_rules, is_leaf
from funcnn.backprop.rules import RULES
from funcnn.compose import Combinator, Part
from funcnn.initializers import draw
from funcnn.layer import Key, Layer, Params
from funcnn.layers import Activation, Dense
from funcnn.objective import Batch, Objective, unpack

FLAT = 0.01  # a unit whose slope is below this in every example is saturated
POWER_STEPS, POWER_EXAMPLES = 12, 16  # of the power iteration for the norm of a layer's Jacobian
NODES = 64  # of the quadrature for expectations over a normal distribution: more change no digit that is shown


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerDiagnosis:
    """One layer at one batch. All are scalars; None where a quantity is not defined for the layer.

    Examples of weight 0 count nothing.

    Attributes:
        layer: the layer.
        y_norm, y_mean_square, y_zeros: of its output: the norm, the mean of the squares, the fraction of zeros.
        dy_norm, dy_mean_square, dy_zeros: of its delta, likewise.
        dead: the fraction of its units that are 0 in every example.
        saturated: the fraction of its units whose slope is below 0.01 in every example; of activations only.
        jacobian_norm: the largest singular value of the Jacobian for its input, the mean over 16 examples at most.
        noise_scale: the gradient noise scale of its parameters, tr(covariance) / |gradient|^2, in examples.
        update_ratio: |update| / |parameters|; of the gradient where no updates were given.
        chi: of an affine layer behind an activation, by how much the delta's mean square grows from the layer's output
            to the activation's input, for equal widths: mean square before / behind, times D / K.
        chi_predicted: what mean-field theory says of it, sigma_w^2 E f'(sqrt(q) z)^2 with z ~ Normal(0, 1), for the
            variance sigma_w^2 / D that the layer's initialiser gives to its weights and the activation's measured mean
            square input q.
    """

    layer: Layer = dataclasses.field(metadata={"static": True})
    y_norm: Any
    y_mean_square: Any
    y_zeros: Any
    dy_norm: Any
    dy_mean_square: Any
    dy_zeros: Any
    dead: Any
    saturated: Any
    jacobian_norm: Any
    noise_scale: Any
    update_ratio: Any
    chi: Any
    chi_predicted: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found: `print` shows a table, `plot` draws it.

    Attributes:
        layers: a `LayerDiagnosis` by path, in forward order.
        noise_scale: that of the whole gradient, in examples; None for a network without parameters.
        loss: the objective's value.
    """

    layers: Mapping[str, LayerDiagnosis]
    noise_scale: Any
    loss: Any

    def to_dict(self) -> dict[str, float]:
        """All numbers by name, such as "layers/2/dy_norm", for a log."""
        return {name: float(value) for name, value in by_name(self).items()}

    def _table(self) -> table.Table:
        columns = {
            "path": None, "layer": None, "|y|": "y_norm", "mean y^2": "y_mean_square", "y = 0": "y_zeros",
            "|dy|": "dy_norm", "mean dy^2": "dy_mean_square", "dy = 0": "dy_zeros", "dead": "dead",
            "saturated": "saturated", "|J|": "jacobian_norm", "noise": "noise_scale", "update": "update_ratio",
            "chi": "chi", "theory": "chi_predicted",
        }  # fmt: skip
        rows, wrong = [], set()
        for i, (path, one) in enumerate(self.layers.items()):
            values = [None if name is None else vars(one)[name] for name in columns.values()]
            shown = [_shown(c, v) for c, v in zip(columns, values, strict=True)]
            rows.append((path, repr(one.layer), *shown[2:]))
            wrong |= {
                (i, j) for j, (c, v) in enumerate(zip(columns, values, strict=True))
                if v is not None and c != "noise" and not np.isfinite(v)
            }  # fmt: skip
        return table.Table(
            f"Layer by layer, at loss {float(self.loss):.4g}", tuple(columns), tuple(rows), frozenset(wrong),
            f"noise: gradient noise scale in examples, {_shown('noise', self.noise_scale)} for all parameters; update: "
            "|update| / |parameters|; chi: growth of mean dy^2 through a layer, at equal widths",
        )  # fmt: skip

    def plot(self) -> Any:
        """A figure of the layers one after another: sizes of outputs and deltas, units at rest, noise and updates, chi.

        Returns:
            A matplotlib figure: `figure.savefig("layers.png")`.
        """
        from matplotlib.figure import Figure  # noqa: PLC0415 - in the `experiments` extra

        panels = {
            "mean square": {"output": "y_mean_square", "delta": "dy_mean_square"},
            "fraction of units": {"0 in every example": "dead", "saturated": "saturated"},
            "ratio": {"gradient noise scale (examples)": "noise_scale", "|update| / |parameters|": "update_ratio"},
            "growth of the delta's mean square": {"chi, measured": "chi", "chi, mean-field theory": "chi_predicted"},
        }
        figure = Figure(figsize=(11, 7), layout="constrained")
        for axes, (label, lines) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
            for name, attribute in lines.items():
                values = [vars(one)[attribute] for one in self.layers.values()]
                at = [i for i, value in enumerate(values) if value is not None]
                style: Any = {"linestyle": "--", "fillstyle": "none"} if "theory" in name else {}
                axes.plot(at, [float(values[i]) for i in at], label=name, marker="o", **style)
            if label != "fraction of units":
                axes.set_yscale("log")
            axes.set_ylabel(label)
            names = [f"{path} {type(one.layer).__name__}" for path, one in self.layers.items()]
            axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize="small")
            axes.legend()
        figure.suptitle(f"Layer by layer, at loss {float(self.loss):.4g}")
        return figure

    def __str__(self) -> str:
        return self._table().text()

    def __rich__(self) -> Any:
        return self._table().rich()


def by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their paths, such as "layers/2/dy_norm"."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def _shown(column: str, value: Any) -> str:
    if value is None:
        return ""
    value = float(value)
    if column in ("y = 0", "dy = 0", "dead", "saturated"):
        return f"{100 * value:.0f} %"
    return f"{value:.3g}"


def diagnose(
    objective: Objective,
    params: Params,
    batch: Batch,
    *,
    key: Key | None = None,
    train: bool = False,
    rules: Rules = RULES,
    extras: Mapping[str, Any] | None = None,
    updates: Params | None = None,
) -> Diagnosis:
    """How a network is at one batch, layer by layer: sizes of outputs and deltas, units at rest, Jacobians, noise.

    Args:
        objective: net + loss + penalty.
        params: its parameters.
        batch: (x, y) or (x, y, weight), the more examples the better.
        key: random key, needed where `train` draws random numbers.
        train: whether noise is on.
        rules: the backward pass.
        extras: a pytree for each path whose rule asks for one.
        updates: what the optimizer is going to add to the parameters; their gradient unless given.

    Returns:
        A `Diagnosis`, with a `LayerDiagnosis` for each layer. It is compiled, and works under jit too.

    Raises:
        RuleError: the net, loss or penalty has no rule.
        ValueError: updates have not the structure and shapes of params.

    Example:
        >>> import jax, funcnn as fnn
        >>> (x, y), _ = fnn.data.load_digits().arrays()
        >>> net = fnn.Serial(fnn.Dense(64), fnn.Relu(), fnn.Dense(10))
        >>> objective = fnn.Objective(net, fnn.losses.softmax_cross_entropy)
        >>> found = fnn.backprop.diagnose(objective, net.init(jax.random.key(0), (64,)), (x, y))
        >>> one = found.layers["2"]
        >>> print(f"chi {one.chi:.2f}, in theory {one.chi_predicted:.2f}")
        chi 0.95, in theory 0.96

    Source: Schoenholz et al., Deep Information Propagation (2017), for chi; McCandlish et al., An Empirical Model of
    Large-Batch Training (2018), for the noise scale.
    """
    check_objective(objective)
    if updates is not None:
        check_like("updates", params, updates)
    return _diagnose(objective, as_rules(rules), train, params, batch, key, extras, updates)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _diagnose(
    objective: Objective,
    rules: Rules,
    train: bool,
    params: Params,
    batch: Batch,
    key: Key | None,
    extras: Mapping[str, Any] | None,
    updates: Params | None,
) -> Diagnosis:
    seen: dict[str, dict[str, Any]] = {}

    def observe(ctx: Context, part: Part, rule: Rule, **values: Any) -> None:
        if is_leaf(part, rule) and "y" in values:
            seen["/".join(ctx.path)] = {"part": part, "rule": rule, "ctx": ctx, **values}

    def leaf(ctx: Context, part: Part, rule: Rule, residuals: Any, dy: jax.Array) -> tuple[Params, Any]:
        dparams, dx = rule.bwd(part.layer, part.params, residuals, dy, ctx)
        seen["/".join(ctx.path)] |= {"dy": dy, "dx": dx, "dparams": dparams, "kept": residuals}
        return dparams, dx

    root = Context(rules, key=key, train=train, need_dx=False, extras=extras or {}, observe=observe, leaf=leaf)
    done = run(objective, params, batch, root)
    moved = {} if updates is None else dict(_leaves(Part(None, None, objective.net, updates), ()))
    makers: dict[int, dict[str, Any]] = {}
    for entry in seen.values():
        known = makers.get(id(entry["y"]))  # an identity hands on the array of the layer before it
        if known is None or not isinstance(known["part"].layer, Activation):
            makers[id(entry["y"])] = entry
    real = None if unpack(batch)[2] is None else done.shares > 0
    layers = collections.OrderedDict(
        (path, _layer(entry, makers.get(id(entry["x"])), moved.get(path), done.shares, real))
        for path, entry in seen.items()
    )
    rows = per_example.rows(objective, rules=rules, extras=extras)(params, batch, key=key, train=train)
    whole = None
    if rows.outers():
        shares = at_least_float32(rows.shares)
        whole = _noise_scale(quantities.squared_norms(rows) * jnp.square(shares), rows.mean, shares)
    return Diagnosis(layers, whole, done.value)


def _leaves(part: Part, path: tuple[str, ...]) -> Iterator[tuple[str, Params]]:
    """The parameters of each layer that is not made of others, by path."""
    path = path if part.name is None else (*path, part.name)
    if isinstance(part.layer, Combinator):
        for inner in part.layer.parts(part.params):
            yield from _leaves(inner, path)
    else:
        yield "/".join(path), part.params


def _layer(
    entry: dict[str, Any], before: dict[str, Any] | None, moved: Any, shares: jax.Array, real: jax.Array | None
) -> LayerDiagnosis:
    part, rule, y = entry["part"], entry["rule"], at_least_float32(entry["y"])
    dy = entry.get("dy")
    has_params = bool(jax.tree.leaves(part.params))
    slope = _slope(entry, entry["x"]) if isinstance(part.layer, Activation) and rule.elementwise else None
    noise = update = None
    if has_params and dy is not None:
        rows = layer_rows(entry["ctx"], part, rule, entry["kept"], dy)
        squares = [squared_norms_of(o, o.delta[None])[0] for o in jax.tree.leaves(rows, is_leaf=is_outer)]
        noise = _noise_scale(sum(squares[1:], start=squares[0]), entry["dparams"], at_least_float32(shares))
        update = jnp.sqrt(_square(entry["dparams"] if moved is None else moved) / _square(part.params))
    chi, predicted = _chi(entry, before, real)
    square, rest = _mean(jnp.square(y), real), _always(y == 0, real)
    delta_square = None if dy is None else _mean(jnp.square(at_least_float32(dy)), real)
    return LayerDiagnosis(
        layer=part.layer,
        y_norm=jnp.sqrt(square * _count(y, real)),
        y_mean_square=square,
        y_zeros=_mean(y == 0, real),
        dy_norm=None if dy is None else jnp.sqrt(delta_square * _count(dy, real)),
        dy_mean_square=delta_square,
        dy_zeros=None if dy is None else _mean(dy == 0, real),
        dead=rest,
        saturated=None if slope is None else _always(jnp.abs(slope) < FLAT, real),
        jacobian_norm=_jacobian_norm(entry, real),
        noise_scale=noise,
        update_ratio=update,
        chi=chi,
        chi_predicted=predicted,
    )


def _count(values: jax.Array, real: jax.Array | None) -> Any:
    """How many numbers the real examples have; None: all are."""
    return values.size if real is None else jnp.sum(real).astype(values.dtype) * (values.size // len(values))


def _mean(values: jax.Array, real: jax.Array | None) -> jax.Array:
    """The mean over the numbers of the real examples."""
    if values.dtype == bool:
        values = values.astype(jnp.result_type(float))
    if real is None:
        return jnp.mean(values)
    return jnp.sum(jnp.where(_along(real, values), values, 0)) / _count(values, real)


def _always(at: jax.Array, real: jax.Array | None) -> jax.Array:
    """The fraction of units (N, ...) that are so in every real example."""
    return jnp.mean(jnp.all(at if real is None else at | ~_along(real, at), axis=0).astype(jnp.result_type(float)))


def _along(examples: jax.Array, like: jax.Array) -> jax.Array:
    return examples.reshape(-1, *(1,) * (like.ndim - 1))


def _square(tree: Any) -> jax.Array:
    """The sum of the squares of all numbers."""
    squares = [jnp.sum(jnp.square(at_least_float32(leaf))) for leaf in jax.tree.leaves(tree)]
    return sum(squares[1:], start=squares[0])


def _noise_scale(squares: jax.Array, mean: Params, shares: jax.Array) -> jax.Array:
    """tr(covariance) / |gradient|^2, both without the bias of a finite batch; inf where it is too small to tell.

    squares: |m_n g_n|^2 (N,). With n = 1 / sum_n m_n^2 examples (N of equal weight), E |mean|^2 = |G|^2 + tr / n.
    """
    each = jnp.sum(jnp.where(shares > 0, squares / jnp.where(shares > 0, shares, 1), 0))  # sum_n m_n |g_n|^2
    inverse = jnp.sum(jnp.square(shares))
    of_mean = _square(mean)
    size = of_mean - inverse * each  # both times 1 - 1/n, which is 0 for one example
    defined = (size > 0) & (inverse < 1)
    return jnp.where(
        defined, (each - of_mean) / jnp.where(defined, size, 1), jnp.where(jnp.isnan(size), jnp.nan, jnp.inf)
    )


def _slope(entry: dict[str, Any], a: jax.Array) -> jax.Array:
    """f'(a) for each number (N, ...)."""
    return slope_of(entry["rule"], entry["part"], a, entry["ctx"])


def _jacobian_norm(entry: dict[str, Any], real: jax.Array | None) -> jax.Array | None:
    """The mean over some examples of the largest singular value: by power iteration with J and its transpose."""
    part, rule = entry["part"], entry["rule"]
    x = entry["x"]
    if rule.affine:  # which has one Jacobian for all examples
        x, real = x[:1], None
    elif real is not None:
        first = jnp.argsort(~real, stable=True)[:POWER_EXAMPLES]
        x, real = x[first], real[first]
    else:
        x = x[:POWER_EXAMPLES]
    if rule.tangent is None or not jnp.issubdtype(x.dtype, jnp.floating):
        return None
    ctx = dataclasses.replace(entry["ctx"], need_dx=True)
    y, kept = rule.fwd(part.layer, part.params, x, ctx)

    def back(u: jax.Array) -> jax.Array:
        return rule.bwd(part.layer, part.params, kept, u, ctx)[1]

    if rule.elementwise:
        return _mean(jnp.max(jnp.abs(back(jnp.ones_like(y))).reshape(len(x), -1), axis=1), real)

    def again(_: int, v: jax.Array) -> jax.Array:
        return back(rule.tangent(part.layer, part.params, kept, None, _unit(v), ctx))

    v = jax.lax.fori_loop(0, POWER_STEPS, again, jax.random.normal(jax.random.key(0), x.shape, x.dtype))
    u = rule.tangent(part.layer, part.params, kept, None, _unit(v), ctx)
    return _mean(jnp.linalg.norm(u.reshape(len(x), -1), axis=1), real)


def _unit(v: jax.Array) -> jax.Array:
    """Each example's v, of length 1."""
    size = jnp.linalg.norm(v.reshape(len(v), -1), axis=1)
    return v / _along(jnp.where(size > 0, size, 1), v)


def _chi(entry: dict[str, Any], before: dict[str, Any] | None, real: jax.Array | None) -> tuple[Any, Any]:
    """chi of a dense layer behind an activation without parameters, measured and predicted."""
    layer = entry["part"].layer
    if before is None or not isinstance(layer, Dense) or entry.get("dx") is None:
        return None, None
    activation, rule = before["part"].layer, before["rule"]
    if not (isinstance(activation, Activation) and rule.elementwise):
        return None, None
    d, k = entry["x"].shape[-1], layer.features
    # By this layer's own dx: the activation's delta is a sum, where others use its output too.
    delta = entry["dx"] * _slope(before, before["x"])
    measured = jnp.mean(jnp.square(delta)) / jnp.mean(jnp.square(entry["dy"])) * (d / k)
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    q = _mean(jnp.square(before["x"]), real)
    z = jnp.sqrt(q) * jnp.asarray(nodes, q.dtype)[:, None]
    slope = _slope(before, z)[:, 0]
    predicted = jnp.sum(jnp.asarray(weights / weights.sum(), q.dtype) * jnp.square(slope)) * _variance(layer, d) * d
    return measured, predicted


def _variance(layer: Dense, d: int) -> float:
    """That of the weights which the layer's initialiser draws; drawn when the program is made, and not in it."""
    with jax.ensure_compile_time_eval():
        return float(jnp.mean(jnp.square(draw(layer.w_init, jax.random.key(0), (d, layer.features)))))
