"""Runs a network's rules: forward once, then backward once, from the loss to the first layer that learns."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnn.backprop.rule import (
    AUTODIFF,
    AUTODIFF_LOSS,
    AUTODIFF_PENALTY,
    Context,
    LossRule,
    Rule,
    RuleError,
    Rules,
    as_rules,
    is_leaf,
)
from funcnn.backprop.rules import RULES
from funcnn.backprop.rules.lazy_logits import LAZY_DENSE
from funcnn.compose import Combinator, Part
from funcnn.layer import Key, Layer, Params, describe_params
from funcnn.layers import Dense
from funcnn.lazy_logits import LazyDense, LazyLogits, last_layer, with_lazy_logits
from funcnn.objective import Batch, Objective, check_losses, check_penalty, mean_weights, unpack, weighted_mean
from funcnn.repeat import Repeat


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerRecord:
    """What passed through one layer.

    Attributes:
        x: its input (N, ...).
        y: its output (N, ...).
        dy: delta, the gradient of the objective for y, of y's shape.
        dx: the gradient for x, of x's shape; None for the first layer where x holds integers.
        grads: the gradients for its parameters, of their structure (penalties not included).
        layer: the layer.
        autodiff: whether autodiff stood in for a missing rule.
    """

    x: jax.Array
    y: jax.Array
    dy: Any
    dx: Any
    grads: Params
    layer: Layer = dataclasses.field(metadata={"static": True})
    autodiff: bool = dataclasses.field(default=False, metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class _Pullback:
    """The static half of what `vjp` returns: all but the arrays, so that the whole is a pytree that jit can return."""

    net: Layer
    rules: Rules
    train: bool
    need_dx: bool
    check: bool
    like: jax.ShapeDtypeStruct  # the output

    def __call__(self, params: Params, residuals: Any, x: Any, key: Any, extras: Any, dy: jax.Array) -> Any:
        if jnp.shape(dy) != self.like.shape or jnp.result_type(dy) != self.like.dtype:
            raise ValueError(
                f"the pullback takes the gradient for the output, of shape {self.like.shape} and dtype "
                f"{self.like.dtype}, got {jnp.shape(dy)} and {jnp.result_type(dy)}"
            )
        dy = jnp.asarray(dy)
        ctx = Context(self.rules, key=key, train=self.train, delta=dy, extras=extras or {}, check=self.check)
        dparams, dx = ctx.bwd(Part(None, None, self.net, params), residuals, dy, self.need_dx)
        return dparams, dx if self.need_dx else x


def vjp(
    net: Layer,
    params: Params,
    x: jax.Array,
    *,
    key: Key | None = None,
    train: bool = False,
    rules: Rules = RULES,
    extras: Mapping[str, Any] | None = None,
    check: bool = True,
) -> tuple[jax.Array, Callable[[jax.Array], tuple[Params, Any]]]:
    """Output and pullback of a network, by its rules, in the form of `jax.vjp`.

    y = net(params, x);  pullback(dy) = ((dy/dparams)^T dy, (dy/dx)^T dy)

    Args:
        net: any layer.
        params: its parameters.
        x: examples (N, ...).
        key: random key, needed where `train` draws random numbers.
        train: whether noise is on.
        rules: the backward pass.
        extras: a pytree for each path whose rule asks for one (`ctx.extra`).
        check: raise where a rule's gradients are not of the parameters' structure.

    Returns:
        y (N, ...), and a function from dy, of y's shape, to (dparams, dx), of params' structure and x's shape; for an x
        of integers dx is the float0 zeros of `jax.vjp`. The function is a pytree: it passes through jit and vmap.

    Raises:
        RuleError: a layer has no rule, or a rule gave gradients of another structure.
        LayerError: x or params do not fit the network.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> net, x = fnn.Dense(2), jnp.ones((4, 3))
        >>> y, pullback = fnn.backprop.vjp(net, net.init(jax.random.key(0), (3,)), x)
        >>> dparams, dx = pullback(jnp.ones_like(y))
        >>> dparams["b"]
        Array([4., 4.], dtype=float32)

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), section 6.5.
    """
    if not isinstance(net, Layer):
        raise TypeError(f"vjp takes a layer, got {net!r}; for an objective use value_and_grad")
    x, rules = jnp.asarray(x), as_rules(rules)
    ctx = Context(rules, key=key, train=train, extras=extras or {})
    check_floating(params)
    check_paths(ctx, Part(None, None, net, params))
    y, residuals = ctx.fwd(Part(None, None, net, params), x)
    like = jax.ShapeDtypeStruct(y.shape, y.dtype)
    need_dx = jnp.issubdtype(x.dtype, jnp.floating)
    no_dx = None if need_dx else np.zeros(x.shape, jax.dtypes.float0)
    return y, jax.tree_util.Partial(
        _Pullback(net, rules, train, need_dx, check, like), params, residuals, no_dx, key, extras
    )


def value_and_grad(
    objective: Objective,
    *,
    has_aux: bool = False,
    rules: Rules = RULES,
    extras: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """The objective's value and its gradient for the parameters, by the rules: swaps with `jax.value_and_grad`.

    Args:
        objective: net + loss + penalty.
        has_aux: the objective has an `aux` and returns (value, aux).
        rules: the backward pass.
        extras: a pytree for each path whose rule asks for one (`ctx.extra`).

    Returns:
        A function `(params, batch, *, key=None, train=False) -> (value, grads)`, or `((value, aux), grads)`, with
        grads of the structure, shapes and dtypes of params.

    Raises:
        TypeError: `objective` is not an `Objective`, or `has_aux` does not fit it.
        RuleError: the net, loss or penalty has no rule.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> objective = fnn.Objective(fnn.Dense(1, w_init="zeros"), fnn.losses.squared_error)
        >>> params = objective.net.init(jax.random.key(0), (1,))
        >>> value, grads = fnn.backprop.value_and_grad(objective)(params, (jnp.ones((1, 1)), jnp.ones((1, 1))))
        >>> print(value, grads["w"])
        1.0 [[-2.]]

    Source: Goodfellow, Bengio and Courville, Deep Learning (2016), algorithms 6.3 and 6.4.
    """
    check_objective(objective)
    if has_aux != (objective.aux is not None):
        raise TypeError(
            f"has_aux={has_aux}, but the objective "
            + ("has no aux: Objective(..., aux=function)" if has_aux else "has an aux: pass has_aux=True")
        )

    def function(params: Params, batch: Batch, *, key: Key | None = None, train: bool = False) -> Any:
        root = Context(as_rules(rules), key=key, train=train, need_dx=False, extras=extras or {})
        done = run(*without_logits(objective, params, batch, root))
        aux = None if objective.aux is None else objective.aux(done.outputs, batch)
        return (done.value if objective.aux is None else (done.value, aux)), done.grads

    return function


def record(
    objective: Objective, *, rules: Rules = RULES, extras: Mapping[str, Any] | None = None
) -> Callable[..., dict[str, LayerRecord]]:
    """Everything that passes through each layer, forward and backward.

    Args:
        objective: net + loss + penalty.
        rules: the backward pass.
        extras: a pytree for each path whose rule asks for one.

    Returns:
        A function `(params, batch, *, key=None, train=False) -> {path: LayerRecord}`, in forward order, an entry for
        each layer that is not made of others; the path of a network that is one layer is "". Works under jit.

    Raises:
        RuleError: the net, loss or penalty has no rule.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> objective = fnn.Objective(fnn.Serial(fnn.Dense(4), fnn.Tanh(), fnn.Dense(2)), fnn.losses.mse)
        >>> params = objective.net.init(jax.random.key(0), (3,))
        >>> record = fnn.backprop.record(objective)(params, (jnp.ones((5, 3)), jnp.ones((5, 2))))
        >>> {path: entry.dy.shape for path, entry in record.items()}
        {'0': (5, 4), '1': (5, 4), '2': (5, 2)}
    """
    check_objective(objective)

    def function(
        params: Params, batch: Batch, *, key: Key | None = None, train: bool = False
    ) -> dict[str, LayerRecord]:
        seen: dict[str, dict[str, Any]] = {}

        def observe(ctx: Context, part: Part, rule: Rule, **values: Any) -> None:
            if is_leaf(part, rule):
                entry = seen.setdefault("/".join(ctx.path), {"layer": part.layer, "autodiff": rule is AUTODIFF})
                entry |= {name: value for name, value in values.items() if name != "kept"}

        root = Context(as_rules(rules), key=key, train=train, need_dx=True, extras=extras or {}, observe=observe)
        run(objective, params, batch, root)
        entries = (
            (path, LayerRecord(**({"dy": None, "dx": None, "grads": ()} | entry))) for path, entry in seen.items()
        )
        return collections.OrderedDict(entries)  # whose order jit keeps, where it sorts a dict by name

    return function


def gradients(
    objective: Objective,
    params: Params,
    batch: Batch,
    *,
    key: Key | None,
    train: bool,
    rules: Rules,
    extras: Mapping[str, Any],
) -> tuple[Params, Any]:
    """The objective's gradients for params and x as the rules give them, unchecked: what `gradcheck` looks at."""
    root = Context(as_rules(rules), key=key, train=train, need_dx=True, extras=extras, check=False)
    done = run(*without_logits(objective, params, batch, root))
    return done.grads, done.dx


class Run(NamedTuple):
    """An objective forward, then backward."""

    value: jax.Array
    grads: Params
    mean: Params  # the gradient without the penalty's
    dx: Any
    outputs: jax.Array
    root: Context  # of the network's backward pass
    net: Part
    residuals: Any
    shares: jax.Array  # what each example counts in the mean (N,)
    penalty_residuals: Any  # None without a penalty


def run(objective: Objective, params: Params, batch: Batch, root: Context) -> Run:
    """Forward, then backward, by the rules of `root`."""
    x, targets, weight = unpack(batch)
    net = Part(None, None, objective.net, params)
    check_floating(params)
    check_paths(root, net)
    root = dataclasses.replace(root, need_dx=root.need_dx and jnp.issubdtype(x.dtype, jnp.floating))
    outputs, residuals = root.fwd(net, x)
    loss_rule: Any = root.rules.find(objective.loss) or AUTODIFF_LOSS

    # C = sum_n m_n v_n, so that dC/dv_n = m_n: this is the one place where 1/N enters.
    if isinstance(outputs, LazyLogits):
        shares = jnp.broadcast_to(mean_weights(outputs, weight), outputs.shape[:1])
        values, delta = loss_rule.at_once(objective.loss, targets, outputs, shares)
        root = dataclasses.replace(root, delta=_NoDelta(objective.loss))
    else:
        values, loss_residuals = loss_rule.fwd(objective.loss, targets, outputs, root)
        check_losses(objective.loss, values, outputs)
        shares = jnp.broadcast_to(mean_weights(values, weight), values.shape)
        _, delta = loss_rule.bwd(objective.loss, targets, loss_residuals, shares, root)
        root = dataclasses.replace(root, delta=delta)
    value = weighted_mean(values, weight)
    grads, dx = root.bwd(net, residuals, delta, root.need_dx)

    mean, penalty_residuals = grads, None
    if objective.penalty is not None:
        rule = root.rules.find(objective.penalty) or AUTODIFF_PENALTY
        penalty, penalty_residuals = rule.fwd(objective.penalty, (), params, root)
        check_penalty(objective.penalty, penalty)
        value = value + jnp.asarray(penalty, value.dtype)
        _, dpenalty = rule.bwd(objective.penalty, (), penalty_residuals, jnp.ones_like(penalty), root)
        grads = jax.tree.map(jnp.add, grads, dpenalty)
    return Run(value, grads, mean, dx, outputs, root, net, residuals, shares, penalty_residuals)


def without_logits(
    objective: Objective, params: Params, batch: Batch, root: Context
) -> tuple[Objective, Params, Batch, Context]:
    """The arguments of `run`, such that the network leaves its last product to a loss that does it, if nobody looks.

    Those who look are `aux`, and a rule other than funcnn's own for the last layer or for the loss.
    """
    loss_rule = root.rules.find(objective.loss)
    if objective.aux is None and isinstance(loss_rule, LossRule) and loss_rule.at_once is not None:
        path, last = last_layer(objective.net)
        unsaved = Rules(
            dict(root.rules), missing=root.rules.missing
        )  # a policy keeps nothing of a layer that has nothing
        if unsaved.find(last, "/".join(path)) is RULES[Dense]:
            objective = objective.replace(net=with_lazy_logits(objective.net))
            root = dataclasses.replace(root, rules=root.rules | {LazyDense: LAZY_DENSE})
    return objective, params, batch, root


@dataclasses.dataclass(frozen=True)
class _NoDelta:
    """In the place of the delta at the outputs, where a loss does not keep it."""

    loss: Any

    def __getattr__(self, name: str) -> Any:
        raise RuleError(
            f"a rule asks for the delta at the network's outputs, which {self.loss!r} does not keep; "
            "use softmax_cross_entropy"
        )


def check_floating(params: Params) -> None:
    """Raises where a parameter is of integers, which have no gradient."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} is of {jnp.result_type(leaf)}, and only floating parameters have "
                "a gradient: jnp.asarray(..., float)"
            )


def check_like(what: str, params: Params, tree: Any) -> None:
    """Raises unless a tree has the structure, shapes and dtypes of params."""
    shapes, wanted = (jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a)), one) for one in (tree, params))
    if shapes != wanted:
        raise ValueError(
            f"{what} has the structure, shapes and dtypes of params, {describe_params(params)}, got "
            f"{describe_params(tree)}; such as jax.tree.map(jnp.ones_like, params)"
        )


def check_paths(ctx: Context, net: Part) -> None:
    """Raises where a rule or an extra is for a path that the network does not have."""
    asked = {key for key in (*ctx.rules, *ctx.rules.saved) if isinstance(key, str)} | set(ctx.extras)
    if not asked:
        return

    def walk(part: Part, path: tuple[str, ...]) -> Iterator[str]:
        path = path if part.name is None else (*path, part.name)
        yield "/".join(path)
        if isinstance(part.layer, Combinator):
            for inner in part.layer.parts(part.params):
                yield from walk(inner, path)
        elif isinstance(part.layer, Repeat):
            yield from walk(part.layer.part(jax.tree.map(lambda leaf: leaf[0], part.params)), path)

    known = list(dict.fromkeys(walk(net, ())))
    if unknown := sorted(asked - set(known)):
        raise RuleError(f"rules or extras are given for {unknown}; the network's paths are {known}")


def check_objective(objective: Any) -> None:
    """Raises unless it is an `Objective`."""
    if not isinstance(objective, Objective):
        raise TypeError(
            f"the rules run an fnn.Objective(net, loss), whose layers they can see, got {objective!r}; "
            "for any other function use jax.value_and_grad, for a net alone fnn.backprop.vjp"
        )
