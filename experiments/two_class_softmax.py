"""A softmax over two classes, each with its own weights, is logistic regression; its gradient is three deltas by hand.

The layered view, a step a layer: z1 = x w (two scores), z2 = exp z1, z3 = their sum, z4 = log(z2 of the right class /
z3). From delta4 = 1 back to delta1, every number is written out, and compared with the library, to which each step is a
layer with a rule, and with `jax.grad`.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcnn as fnn
from experiments.common.claims import Check, Experiment, Options
from experiments.common.figure import BLUE, GRAY, ORANGE, VERMILION, figure
from funcnn.backprop import RULES, LossRule, Rule

MARK = 1e-13  # float64, over the largest number
DATASET = "breast cancer"  # 569 patients, 30 measurements, two classes


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Compares the gradients by hand, by rule and by autodiff on real data of two classes."""

    steps: int = 200
    """Steps of gradient descent, by which softmax and logistic regression are compared."""
    learning_rate: float = 1.0
    """Of both."""


def layered(w: np.ndarray, x: np.ndarray, right: int) -> dict[str, Any]:
    """One example x (D,) with weights w (D, 2), forward and backward by hand; the log-likelihood is maximised.

    z4 = log z2_c - log z3, z3 = z2_0 + z2_1, z2 = exp z1, z1 = x w, with c the right class.
    """
    z1 = x @ w
    z2 = np.exp(z1)
    z3 = z2.sum()
    z4 = np.log(z2[right]) - np.log(z3)
    delta4 = 1.0
    delta3 = delta4 * (-1 / z3)
    direct = np.where(np.arange(2) == right, 1 / z2, 0.0)  # by which z2_c goes into z4, beside its way through z3
    delta2 = delta4 * direct + delta3 * 1.0
    delta1 = delta2 * z2  # 1 - p_c for the right class, -p for the other
    return {
        "z1": z1, "z2": z2, "z3": z3, "z4": z4,
        "delta4": delta4, "delta3": delta3, "delta2": delta2, "delta1": delta1,
        "p": z2 / z3, "dw": np.outer(x, delta1),
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Exp(fnn.Layer):
    """z2 = exp z1, (N, 2)."""

    def init(self, key: Any, in_shape: Any) -> Any:
        return ()

    def apply(self, params: Any, x: Any, *, key: Any = None, train: bool = False) -> Any:
        return jnp.exp(x)


@dataclasses.dataclass(frozen=True)
class WithSum(fnn.Layer):
    """z2 and, behind it, its sum z3: (N, 2) -> (N, 3)."""

    def init(self, key: Any, in_shape: Any) -> Any:
        return ()

    def apply(self, params: Any, x: Any, *, key: Any = None, train: bool = False) -> Any:
        return jnp.concatenate([x, x.sum(axis=1, keepdims=True)], axis=1)


def minus_z4(outputs: Any, right: Any) -> jax.Array:
    """log z3 - log z2_c, (N,): a loss is minimised."""
    return jnp.log(outputs[:, 2]) - jnp.log(outputs[jnp.arange(len(right)), right])


def slope_of_minus_z4(right: Any, outputs: Any) -> jax.Array:
    """(N, 3): -1 / z2_c for the right class, 0 for the other, and 1 / z3."""
    return jnp.concatenate([-jax.nn.one_hot(right, 2) / outputs[:, :2], 1 / outputs[:, 2:]], axis=1)


STEPS = (fnn.Dense(2, bias=False), Exp(), WithSum())
STEP_RULES = RULES | {
    Exp: Rule(lambda layer, params, x, ctx: (jnp.exp(x), jnp.exp(x)), lambda layer, params, y, dy, ctx: ((), dy * y)),
    WithSum: Rule(
        lambda layer, params, x, ctx: (layer.apply(params, x), ()),
        lambda layer, params, residuals, dy, ctx: ((), dy[:, :2] + dy[:, 2:]),
    ),
    minus_z4: LossRule(
        lambda loss, right, outputs, ctx: (loss(outputs, right), outputs),
        lambda loss, right, outputs, dv, ctx: (None, dv[:, None] * slope_of_minus_z4(right, outputs)),
    ),
}


def by_rule(w: Any, batch: Any) -> dict[str, Any]:
    """As `layered`, of all examples, (N, ...), but `dw` their mean: from the library's record of these steps."""
    objective = fnn.Objective(fnn.Serial(*STEPS), minus_z4)
    params = ({"w": w}, (), ())
    scores, powers, both = fnn.backprop.record(objective, rules=STEP_RULES)(params, batch).values()
    _, grads = fnn.backprop.value_and_grad(objective, rules=STEP_RULES)(params, batch)
    n = -len(batch[0])  # the loss is a mean of -z4
    return {
        "z1": scores.y, "z2": powers.y, "z3": both.y[:, 2], "z4": -minus_z4(both.y, batch[1]),
        "delta3": n * both.dy[:, 2], "delta2": n * powers.dy, "delta1": n * scores.dy, "dw": -grads[0]["w"],
    }  # fmt: skip


def by_autodiff(w: Any, batch: Any) -> dict[str, Any]:
    """The same by `jax.grad` of what follows each step."""
    x, right = batch
    z1 = x @ w
    z2 = jnp.exp(z1)
    both = WithSum().apply((), z2)

    def z4(outputs: Any) -> Any:
        return -minus_z4(outputs, right).sum()

    def from_z2(z2: Any) -> Any:
        return z4(WithSum().apply((), z2))

    def from_z1(z1: Any) -> Any:
        return from_z2(jnp.exp(z1))

    return {
        "z1": z1, "z2": z2, "z3": both[:, 2], "z4": -minus_z4(both, right),
        "delta3": jax.grad(z4)(both)[:, 2], "delta2": jax.grad(from_z2)(z2), "delta1": jax.grad(from_z1)(z1),
        "dw": jax.grad(lambda w: from_z1(x @ w))(w) / len(x),
    }  # fmt: skip


def data() -> tuple[np.ndarray, np.ndarray]:
    """Measurements of mean 0 and deviation 1 (N, 30), and classes (N,)."""
    from sklearn.datasets import load_breast_cancer  # noqa: PLC0415 - imports slowly

    x, y = load_breast_cancer(return_X_y=True)
    return (x - x.mean(0)) / x.std(0), y


def measure(config: Config) -> dict[str, Any]:
    """The steps of one example, and differences between gradients and between trainings, for each seed."""
    x, y = data()
    numbers: dict[str, Any] = {"rule": {}, "autodiff": {}, "library": [], "logistic": [], "trained": []}
    net = fnn.Dense(2, bias=False)
    softmax = fnn.Objective(net, fnn.losses.softmax_cross_entropy)
    logistic = fnn.Objective(fnn.Dense(1, bias=False), fnn.losses.bernoulli_nll)
    with jax.enable_x64(True):
        batch, bits = (jnp.asarray(x), jnp.asarray(y)), (jnp.asarray(x), jnp.asarray(y, float)[:, None])
        for seed in range(config.seeds):
            w = np.random.default_rng(seed).normal(size=(x.shape[1], 2)) * 0.3
            examples = [layered(w, *example) for example in zip(x, y, strict=True)]
            by_hand = {name: np.array([one[name] for one in examples]) for name in examples[0]}
            by_hand["dw"] = by_hand["dw"].mean(axis=0)
            for name, found in (("rule", by_rule), ("autodiff", by_autodiff)):
                for what, values in found(jnp.asarray(w), batch).items():
                    numbers[name].setdefault(what, []).append(apart(values, by_hand[what]))
            # The library's own loss has all steps behind the scores in one.
            _, whole = fnn.backprop.value_and_grad(softmax)({"w": jnp.asarray(w)}, batch)
            # Logistic regression has the difference of the two scores: its gradient is that of the second column.
            difference = {"w": jnp.asarray(w[:, 1:] - w[:, :1])}
            _, of_difference = fnn.backprop.value_and_grad(logistic)(difference, bits)
            numbers["library"].append(apart(-whole["w"], by_hand["dw"]))
            numbers["logistic"].append(apart(-of_difference["w"][:, 0], by_hand["dw"][:, 1]))
            numbers["trained"].append(trained(config, softmax, logistic, w, batch, bits))
    w = np.array([[0.5, -0.2], [0.1, 0.4]])
    numbers["example"] = {"x": [1.0, 2.0], "w": w, "right": 0, **layered(w, np.array([1.0, 2.0]), 0)}
    return numbers


def trained(config: Config, softmax: Any, logistic: Any, w: np.ndarray, batch: Any, bits: Any) -> float:
    """The largest difference of probabilities after so many steps of both; the difference moves twice as fast."""

    def descend(objective: Any, w: Any, batch: Any, rate: float) -> Any:
        gradient = fnn.backprop.value_and_grad(objective)
        return jax.lax.fori_loop(
            0, config.steps, lambda _, p: jax.tree.map(lambda a, g: a - rate * g, p, gradient(p, batch)[1]), {"w": w}
        )

    two = descend(softmax, jnp.asarray(w), batch, config.learning_rate)["w"]
    one = descend(logistic, jnp.asarray(w[:, 1:] - w[:, :1]), bits, 2 * config.learning_rate)["w"]
    return float(jnp.abs(jax.nn.softmax(batch[0] @ two)[:, 1] - jax.nn.sigmoid(bits[0] @ one)[:, 0]).max())


def apart(a: Any, b: Any) -> float:
    """The largest difference, over the largest number."""
    return float(np.abs(np.asarray(a) - b).max() / np.abs(b).max())


def judge(numbers: dict[str, Any]) -> list[Check]:
    """All gradients are one, and so are the two trainings."""
    furthest = {name: np.max([*numbers[name].values()]) for name in ("rule", "autodiff")}
    gradient, logistic, probability = (np.max(numbers[name]) for name in ("library", "logistic", "trained"))
    delta1, p, right = (np.array(numbers["example"][name]) for name in ("delta1", "p", "right"))
    closed = np.eye(2)[int(right)] - p
    return [
        Check(
            "By hand, by rule and by `jax.grad`, z1 to z4, delta3 to delta1 and the gradient are the same, each within "
            f"{MARK:g} of its largest number; so is the gradient by the library's cross-entropy, all steps in one",
            f"furthest {furthest['rule']:.1e} and {furthest['autodiff']:.1e}; {gradient:.1e}, of "
            f"{len(numbers['library'])} seeds",
            bool(max(furthest.values()) <= MARK and gradient <= MARK and np.isfinite([*furthest.values()]).all()),
        ),
        Check(
            "From delta4 = 1 back, delta1 is 1 - p for the right class and -p for the other",
            f"delta1 = ({delta1[0]:+.4f}, {delta1[1]:+.4f}), p = ({p[0]:.4f}, {p[1]:.4f})",
            bool(numbers["example"]["delta4"] == 1 and np.abs(delta1 - closed).max() < MARK * 10),
        ),
        Check(
            "The difference of the two weight vectors is that of logistic regression: the same gradient, and the same "
            "probabilities after training",
            f"furthest {logistic:.1e}, and {probability:.1e} of a probability",
            bool(logistic <= MARK and probability <= 1e-9),
        ),
    ]


def draw(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """The chain of one example with all its numbers, forward above and backward below."""
    e = numbers["example"]
    z1, z2, delta1, delta2, p = (np.array(e[name]) for name in ("z1", "z2", "delta1", "delta2", "p"))
    w, dw = np.array(e["w"]), np.array(e["dw"])
    boxes = [
        ("$x$", f"({e['x'][0]:g}, {e['x'][1]:g})", ""),
        ("$z_1 = x\\,w$", f"({z1[0]:.3f}, {z1[1]:.3f})", f"$\\delta_1$ = ({delta1[0]:+.3f}, {delta1[1]:+.3f})"),
        ("$z_2 = \\exp z_1$", f"({z2[0]:.3f}, {z2[1]:.3f})", f"$\\delta_2$ = ({delta2[0]:+.3f}, {delta2[1]:+.3f})"),
        ("$z_3 = \\Sigma\\, z_2$", f"{e['z3']:.3f}", f"$\\delta_3$ = {e['delta3']:+.3f}"),
        ("$z_4 = \\log\\, z_{2,c} / z_3$", f"{e['z4']:.3f}", f"$\\delta_4$ = {e['delta4']:g}"),
    ]
    with figure(path, 11, 3.9) as fig:
        axes = fig.subplots()
        axes.set(xlim=(-0.55, 4.6), ylim=(-1.75, 1.5))
        axes.axis("off")
        arrow = {"arrowstyle": "-|>", "linewidth": 1.4}
        for i, (name, forward, backward) in enumerate(boxes):
            axes.text(i, 0.95, name, ha="center", fontsize=12)
            axes.text(i, 0.45, forward, ha="center", va="center", color=BLUE)
            axes.text(i, -0.45, backward, ha="center", va="center", color=VERMILION)
            if i:
                axes.annotate("", (i - 0.38, 0.45), (i - 0.62, 0.45), arrowprops=arrow | {"color": BLUE})
            if i > 1:
                axes.annotate("", (i - 0.62, -0.45), (i - 0.38, -0.45), arrowprops=arrow | {"color": VERMILION})
        bend = arrow | {"color": ORANGE, "connectionstyle": "arc3,rad=-0.3"}
        axes.annotate("", (2.1, -0.62), (3.9, -0.62), arrowprops=bend)
        axes.text(3, -1.45, "the right class also goes into $z_4$ by itself", ha="center", color=ORANGE, fontsize=9)
        columns = [f"({column[0]:.1f}, {column[1]:.1f})" for column in w.T]
        gradients = [f"({column[0]:+.3f}, {column[1]:+.3f})" for column in dw.T]
        axes.text(-0.5, -1.15, f"two parameter vectors: {columns[0]} and {columns[1]}", fontsize=9, color=GRAY)
        axes.text(-0.5, -1.45, f"gradients $x\\,\\delta_1$: {gradients[0]} and {gradients[1]}", fontsize=9, color=GRAY)
        text = f"$p$ = ({p[0]:.3f}, {p[1]:.3f}), so that $\\delta_1$ = (1 - {p[0]:.3f}, -{p[1]:.3f})"
        axes.text(-0.5, -1.72, text, fontsize=9, color=GRAY)
        axes.set_title("Two-class softmax, layer by layer: values forward (blue), deltas backward (red)")


EXPERIMENT = Experiment(
    name="two_class_softmax",
    claim="A two-class softmax with two weight vectors is logistic regression, and its deltas can be written by hand.",
    source="Goodfellow, Bengio and Courville, Deep Learning (2016), sections 6.2.2.3 and 6.5",
    options=Config,
    measure=measure,
    judge=judge,
    draw=draw,
    smoke={"seeds": 1, "steps": 3},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return EXPERIMENT.run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
