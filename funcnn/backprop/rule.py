"""What a hand-written backward pass is made of: `Rule`, the `fwd`/`bwd` pair of one type of layer; `Rules`, the mapping
from layers to rules that is the whole backward pass as a value; `Context`, what a rule is told of its place.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnn.backprop import autodiff
from funcnn.compose import Combinator, Part
from funcnn.layer import Key, Layer, Params, at, describe_params, fold


class RuleError(ValueError):
    """A backward rule is missing, or gave gradients that do not belong to the parameters."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """The hand-written backward pass of one type of layer: two pure functions::

        fwd: (layer, params, x, ctx) -> (y, residuals)
             y = f(params, x)
        bwd: (layer, params, residuals, dy, ctx) -> (dparams, dx)
             dparams = (dy/dparams)^T dy,  dx = (dy/dx)^T dy

    `residuals` is a pytree of arrays: what `bwd` needs of the forward pass, and no parameters, which it gets anyway.
    dparams has the structure, shapes and dtypes of params, dx those of x; dx may be None where not `ctx.need_dx`.

    Three more functions are optional::

        rows:    (layer, params, residuals, dy, ctx) -> tree of Outer
                 dparams before it is summed over the examples, an `Outer` in the place of each array, each number of
                 whose delta depends on one number of dy, unless it has blocks; without it bwd is run for each example
                 alone
        tangent: (layer, params, residuals, vparams, vx, ctx) -> vy
                 vy = (dy/dparams) vparams + (dy/dx) vx, the transpose of bwd; None stands for a direction of zeros
        second:  (layer, params, residuals, dy, vparams, vx, ctx) -> (dparams', dx')
                 the derivative of bwd's result along (vparams, vx) with dy held fixed; None stands for a direction of
                 zeros, and may be given for a result of zeros

    Products with curvature matrices need the last two. `elementwise` says that each number of y depends on one number
    of x alone, the one at its place, so that the Jacobian for x is diagonal; `affine` that dy/dx is the same for all
    examples and that the deltas of `rows` are dy itself.

    A loss has a rule of the same form, with (loss, targets, outputs) in the place of (layer, params, x) and None for
    the gradient of the targets; a penalty too, with (penalty, (), params).

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> from funcnn.backprop import RULES, Rule
        >>> def fwd(layer, params, x, ctx):
        ...     return layer.apply(params, x), x > 0
        >>> def bwd(layer, params, positive, dy, ctx):
        ...     return (), jnp.where(positive, dy, 0)
        >>> mine = RULES | {fnn.Relu: Rule(fwd, bwd)}
    """

    fwd: Callable[..., tuple[Any, Any]]
    bwd: Callable[..., tuple[Any, Any]]
    rows: Callable[..., Any] | None = None
    tangent: Callable[..., jax.Array] | None = None
    second: Callable[..., tuple[Any, Any]] | None = None
    elementwise: bool = False
    affine: bool = False


@dataclasses.dataclass(frozen=True)
class LossRule(Rule):
    """The rule of a loss, and what curvature needs of it. With f the outputs (N, ...) and H_n = d^2 loss_n / df_n^2::

        hessian: (loss, targets, f, u) -> H_n u_n  (N, ...)
        root:    (loss, targets, f) -> columns s_c (C, N, ...) with sum_c s_c s_c^T = H_n; None where H_n is not
                 positive semi-definite
        score:   (loss, targets, f, key) -> -d log p(t_n | f_n) / df_n  (N, ...)

    t_n is drawn from the distribution p(. | f_n) of which the loss is the negative log-likelihood.

    A loss that makes the logits itself has fwd and bwd in one for them; see `lazy_logits.py`::

        at_once: (loss, targets, lazy logits, dv) -> (v (N,), their gradient)
    """

    hessian: Callable[..., jax.Array] | None = None
    root: Callable[..., jax.Array | None] | None = None
    score: Callable[..., jax.Array] | None = None
    at_once: Callable[..., tuple[jax.Array, Any]] | None = None


AUTODIFF = Rule(autodiff.layer_fwd, autodiff.bwd)  # these stand in for a missing rule where Rules allow it
AUTODIFF_LOSS = Rule(autodiff.loss_fwd, autodiff.bwd)
AUTODIFF_PENALTY = Rule(autodiff.penalty_fwd, autodiff.bwd)

RuleKey = Any  # a type; a path such as "0/1"; or one layer or loss itself, by value


class Rules(Mapping[RuleKey, Rule]):
    """An immutable mapping from layers to rules: the whole backward pass as a plain value.

    A key is a type of layer, loss or penalty; or the path of one layer, such as "2/body"; or a layer or a loss function
    itself. A path comes before a value, and a value before a type. A subclass does not inherit its base's rule,
    since its `apply` may differ.

    Args:
        rules: what is known.
        missing: what to do for a layer without a rule: "error", or "autodiff" (the record marks these).

    Raises:
        RuleError: a key or a value is of the wrong kind.

    Example:
        >>> import funcnn as fnn
        >>> rules = fnn.backprop.RULES | {fnn.Step: fnn.backprop.RULES[fnn.Identity]}  # straight-through
        >>> rules = fnn.backprop.Rules(rules, missing="autodiff")
    """

    saved: Mapping[RuleKey, Callable[[Rule], Rule]]  # the saving policies, by the same kinds of keys

    def __init__(self, rules: Mapping[RuleKey, Rule], *, missing: str = "error"):
        if missing not in ("error", "autodiff"):
            raise RuleError(f"missing is 'error' or 'autodiff', got {missing!r}")
        for key, rule in rules.items():
            if not isinstance(rule, Rule):
                raise RuleError(f"a rule is a Rule(fwd, bwd), got {rule!r} for {key!r}")
            _check_key("a rule", key)
        self._rules = dict(rules)
        self.missing = missing
        self.saved = rules.saved if isinstance(rules, Rules) else {}

    def __getitem__(self, key: RuleKey) -> Rule:
        return self._rules[key]

    def __iter__(self) -> Iterator[RuleKey]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def __or__(self, other: Mapping[RuleKey, Rule]) -> "Rules":
        saved = other.saved if isinstance(other, Rules) else {}
        return Rules({**self._rules, **other}, missing=self.missing).saving({**self.saved, **saved})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rules) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((frozenset(self._rules.items()), self.missing, frozenset(self.saved.items())))

    def _fields(self) -> Any:
        return self._rules, self.missing, self.saved

    def saving(self, policies: Mapping[RuleKey, Callable[[Rule], Rule]]) -> "Rules":
        """The same rules, with other things kept for the backward pass.

        Args:
            policies: functions from rule to rule, such as those of `backprop.saving`, by type of layer, path or layer;
                hashable, as functions are.

        Returns:
            Rules in which each policy is applied to the rule that is found for its layer.

        Raises:
            RuleError: a key or a policy is of the wrong kind.

        Example:
            >>> import funcnn as fnn
            >>> from funcnn.backprop import RULES, saving
            >>> rules = RULES.saving({fnn.Relu: saving.one_bit, fnn.Dense: saving.bfloat16})
        """
        if not isinstance(policies, Mapping):
            raise RuleError(
                f"saving takes a mapping from layers to policies, as {{fnn.Relu: saving.one_bit}}, got {policies!r}"
            )
        for key, policy in policies.items():
            _check_key("a saving policy", key)
            if not callable(policy) or isinstance(policy, Rule | type):
                raise RuleError(
                    "a saving policy is a function from rule to rule, such as saving.recompute or saving.FewBits(4), "
                    f"got {policy!r}"
                )
        new = Rules(self)
        new.missing, new.saved = self.missing, {**self.saved, **policies}
        return new

    def __repr__(self) -> str:
        names = sorted(key.__name__ if isinstance(key, type) else repr(key) for key in self._rules)
        names = names if len(names) <= 8 else [f"... {len(names)} keys"]
        return f"Rules({{{', '.join(names)}}}, missing={self.missing!r})"

    def find(self, what: Any, path: str | None = None) -> Rule | None:
        """The rule for a layer (at `path`), loss or penalty; None where there is none and `missing` allows it.

        Raises:
            RuleError: there is none; the message names the layer, its path and the ways out.
        """
        keys = [key for key in (path, _hashable(what), type(what)) if key is not None]
        policy = next((self.saved[key] for key in keys if key in self.saved), None)
        for key in keys:
            if key in self._rules:
                return self._rules[key] if policy is None else _by_policy(policy, self._rules[key])
        if self.missing == "autodiff":
            return None
        name = type(what).__name__
        inherited = next((base.__name__ for base in type(what).__mro__[1:] if base in self._rules), None)
        raise RuleError(
            f"no backward rule for {what!r}"
            + (f" at {path!r}" if path else "")
            + (f" (that of {inherited} is not inherited, since apply may differ)" if inherited else "")
            + f"; add one by rules=RULES | {{{name}: Rule(fwd, bwd)}}, "
            "or let autodiff fill in by rules=Rules(RULES, missing='autodiff')"
        )


@functools.cache
def _by_policy(policy: Callable[[Rule], Rule], rule: Rule) -> Rule:
    """One and the same rule each time, by which others may know it."""
    return policy(rule)


def _check_key(what: str, key: RuleKey) -> None:
    if not (isinstance(key, type | str | Layer) or callable(key)):
        raise RuleError(f"{what} is for a type, a path, a layer or a function, got {key!r}")


def as_rules(rules: Mapping[RuleKey, Rule]) -> Rules:
    """`rules` as a `Rules`: a plain mapping will do."""
    if not isinstance(rules, Mapping):
        raise RuleError(
            f"rules are a mapping from layers to rules, such as RULES | {{Layer: Rule(fwd, bwd)}}, got {rules!r}"
        )
    return rules if isinstance(rules, Rules) else Rules(rules)


def _hashable(what: Any) -> Any:
    try:
        hash(what)
    except TypeError:
        return None
    return what


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Static:
    """A value without arrays among the residuals, such as the shape that a reshape undoes."""

    value: Any = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Context:
    """What a rule is told of its place: how the network runs, and what surrounds the layer.

    Attributes:
        rules: the rules in use.
        path: the names that lead to this layer.
        key: this layer's own random key, the same in fwd and bwd; None without one.
        train: whether noise is on.
        need_dx: whether anyone needs the gradient for the input; where not, bwd may give None for it.
        delta: the gradient at the whole network's output (None in the forward pass): what direct feedback needs.
        extras: pytrees by path, handed in by the caller: what rules with state of their own need.
        observe: called with each layer's forward and backward values; see `record`.
        check: whether gradients of another structure than the parameters' are an error at once.
        leaf: called as (ctx, part, rule, residuals, dy) -> (dparams, dx) for each layer that is not made of others, in
            the place of rule.bwd; what it gives may be of another form, on its way to the network's gradient.
    """

    rules: Rules
    path: tuple[str, ...] = ()
    key: Key | None = None
    train: bool = False
    need_dx: bool = True
    delta: jax.Array | None = None
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    observe: Callable[..., None] | None = None
    check: bool = True
    leaf: Callable[..., tuple[Any, Any]] | None = None

    @property
    def extra(self) -> Any:
        """The pytree that the caller handed in for this layer's path; None without one."""
        return self.extras.get("/".join(self.path))

    def find(self, what: Any) -> Rule:
        """The rule for what runs here."""
        return self.rules.find(what, "/".join(self.path)) or AUTODIFF

    def fwd(self, part: Part, x: jax.Array) -> tuple[jax.Array, Any]:
        """Runs the forward rule of a part of this layer: (y, residuals)."""
        ctx = self._inside(part, need_dx=True)
        rule = ctx.find(part.layer)
        with at(part.name, part.layer):
            y, residuals = rule.fwd(part.layer, part.params, x, ctx)
        if self.observe is not None:
            self.observe(ctx, part, rule, x=x, y=y, kept=residuals)
        return y, (residuals, Static(((x.shape, x.dtype), (y.shape, y.dtype))))

    def bwd(self, part: Part, residuals: Any, dy: Any, need_dx: bool) -> tuple[Params, Any]:
        """Runs the backward rule of a part of this layer: (dparams, dx), dx None where not `need_dx`."""
        if not (need_dx or has_params(part)):
            return part.params, None  # nothing is asked of it; a tree without leaves is its own gradient
        ctx = self._inside(part, need_dx)
        rule = ctx.find(part.layer)
        kept, likes = residuals
        with at(part.name, part.layer):
            if self.leaf is not None and is_leaf(part, rule):
                dparams, dx = self.leaf(ctx, part, rule, kept, dy)
            else:
                dparams, dx = rule.bwd(part.layer, part.params, kept, dy, ctx)
        if self.check and self.leaf is None:
            _check_gradient(part, dparams, "/".join(ctx.path))
        if (
            need_dx and self.leaf is None and (self.check or ctx.path)
        ):  # unchecked, the whole network's is the caller's to look at
            _check_input_gradient(part, dx, likes.value[0], "/".join(ctx.path))
        if self.observe is not None:
            self.observe(ctx, part, rule, dy=dy, dx=dx, grads=dparams)
        return dparams, dx if need_dx else None

    def tangent(self, part: Part, residuals: Any, vparams: Params, vx: Any) -> Any:
        """How a part's output changes as its parameters and input do: vy; None where neither of them does."""
        if vx is None and not has_params(part):
            return None
        ctx = self._inside(part, need_dx=True)
        rule = ctx.find(part.layer)
        kept, _ = residuals
        if rule.tangent is None:
            raise RuleError(
                f"the rule for {part.layer!r} at {'/'.join(ctx.path)!r} has no tangent, which products with curvature "
                "matrices need; give one by Rule(fwd, bwd, tangent=..., second=...)"
            )
        with at(part.name, part.layer):
            vy = rule.tangent(part.layer, part.params, kept, vparams, vx, ctx)
        if self.observe is not None:
            self.observe(ctx, part, rule, vparams=vparams, vx=vx)
        return vy

    def _inside(self, part: Part, need_dx: bool) -> "Context":
        path = self.path if part.name is None else (*self.path, part.name)
        return dataclasses.replace(self, path=path, key=fold(self.key, part.number), need_dx=need_dx)


def need_second(rule: Rule, what: Any, path: str | None = None) -> Callable[..., tuple[Any, Any]]:
    """A rule's second derivative, or the error that says that it has none."""
    if rule.second is None:
        where = f" at {path!r}" if path else ""
        raise RuleError(
            f"the rule for {what!r}{where} has no second derivative, which products with the Hessian need; give one by "
            "Rule(fwd, bwd, tangent=..., second=...)"
        )
    return rule.second


def is_leaf(part: Part, rule: Rule) -> bool:
    """Whether a part's rule sees no parts inside it: it is not made of layers, or autodiff stands in for the whole."""
    return not isinstance(part.layer, Combinator) or rule is AUTODIFF


def has_params(part: Part) -> bool:
    """Whether there is anything to learn in it."""
    return bool(jax.tree.leaves(part.params))


def _check_gradient(part: Part, dparams: Params, path: str) -> None:
    same = jax.tree.structure(dparams) == jax.tree.structure(part.params)
    if not same or any(
        np.shape(g) != np.shape(p) or jnp.result_type(g) != jnp.result_type(p)
        for g, p in zip(jax.tree.leaves(dparams), jax.tree.leaves(part.params), strict=True)
    ):
        raise RuleError(
            f"the rule for {part.layer!r} at {path!r} gave gradients {describe_params(dparams)}, which must have the "
            f"structure, shapes and dtypes of the parameters {describe_params(part.params)}"
        )


def _check_input_gradient(part: Part, dx: Any, like_x: tuple[tuple[int, ...], Any], path: str) -> None:
    shape, dtype = like_x
    if dx is None or jnp.shape(dx) != shape or jnp.result_type(dx) != dtype:
        got = "None" if dx is None else describe_params(dx)
        raise RuleError(
            f"the rule for {part.layer!r} at {path!r} gave the input gradient {got}, which must have the shape and "
            f"dtype of its input, {dtype}{list(shape)}; it is needed where ctx.need_dx"
        )
