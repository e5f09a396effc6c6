"""A likelihood's gradient vanishes only where a unit is right; the squared error's also where it is surely wrong.

The gradient of each loss for the logit, of a sigmoid unit and of a softmax unit, from surely wrong to surely right.
Then a unit is trained from a start that is surely wrong, under each loss, with the same learning rate.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcnn as fnn
from experiments.common.claims import Check, Experiment, Options
from experiments.common.figure import BLUE, VERMILION, figure

MSE, NLL = "squared error", "negative log-likelihood"
SURE = 8.0  # a logit this far on one side is surely right or wrong
RIGHT = 0.9  # the probability of the right answer with which training has succeeded
SLOWER = 10  # times as many steps count as being stuck


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Gradients against the logit, and training from a start that is surely wrong."""

    classes: int = 5
    """Of the softmax unit."""
    start: float = 12.0
    """How far on the wrong side the logits begin."""
    steps: int = 500
    """Steps of gradient descent."""
    learning_rate: float = 1.0
    """Of gradient descent, for both losses. A rate large enough would get any single unit away from a saturated start;
    but all units of a network share one."""

    at_least: ClassVar = {"classes": 2}
    below: ClassVar = {"start": 1e6}  # where float32 rounds the starts' differences away


def pairs(classes: int) -> dict[str, tuple[fnn.Objective, fnn.Objective, int]]:
    """For each unit the objectives by squared error and by likelihood, and how many logits it has."""
    dense = {"sigmoid": fnn.Dense(1), "softmax": fnn.Dense(classes)}
    units = {"sigmoid": fnn.Sigmoid(), "softmax": fnn.Softmax()}
    losses = {"sigmoid": fnn.losses.bernoulli_nll, "softmax": fnn.losses.softmax_cross_entropy}
    return {
        name: (
            fnn.Objective(fnn.Serial(dense[name], units[name]), fnn.losses.squared_error),
            fnn.Objective(fnn.Serial(dense[name]), losses[name]),
            1 if name == "sigmoid" else classes,
        )
        for name in units
    }


def measure(config: Config) -> dict[str, Any]:
    """Gradients by logit; losses by step."""
    z = np.linspace(-20, 20, 201)
    numbers: dict[str, Any] = {"z": z, "gradient": {}, "trained": {}}
    for name, (mse, nll, outputs) in pairs(config.classes).items():
        for loss, objective in ((MSE, mse), (NLL, nll)):
            numbers["gradient"][f"{name}, {loss}"] = gradients(objective, outputs, z)
            numbers["trained"][f"{name}, {loss}"] = trained(config, objective, outputs)
    return numbers


def params_of(logits: Any) -> Any:
    """A dense layer whose outputs are these, for the input 0; with an activation behind it, or none."""
    return {"w": jnp.zeros((1, len(logits))), "b": jnp.asarray(logits)}


def gradients(objective: fnn.Objective, outputs: int, z: np.ndarray) -> np.ndarray:
    """The hand-written gradient for the right class's logit, where the others are 0 (P,)."""
    batch = jnp.zeros((1, 1)), target(objective, outputs)
    value_and_grad = fnn.backprop.value_and_grad(objective)

    def one(logit: jax.Array) -> jax.Array:
        first = params_of(jnp.zeros(outputs).at[0].set(logit))
        grads: Any = value_and_grad(wrapped(objective, first), batch)[1]
        return grads[0]["b"][0]

    return np.asarray(jax.vmap(one)(jnp.asarray(z, jnp.float32)))


def wrapped(objective: fnn.Objective, first: Any) -> Any:
    """The parameters of the whole network."""
    net: Any = objective.net
    return (first, *[() for _ in net.layers[1:]])


def target(objective: fnn.Objective, outputs: int) -> jax.Array:
    """The first class, or 1, in the form that the loss takes."""
    if objective.loss == fnn.losses.softmax_cross_entropy:
        return jnp.zeros(1, jnp.int32)
    return jnp.eye(1, outputs)


def trained(config: Config, objective: fnn.Objective, outputs: int) -> np.ndarray:
    """The probability of the right answer by step, for each seed."""

    def begin(key: jax.Array) -> Any:
        wrong = -config.start * jnp.eye(1, outputs)[0] if outputs == 1 else config.start * jnp.eye(1, outputs, k=1)[0]
        return wrapped(objective, params_of(wrong + jax.random.normal(key, (outputs,))))

    units: dict[Any, Any] = {fnn.losses.bernoulli_nll: jax.nn.sigmoid, fnn.losses.softmax_cross_entropy: jax.nn.softmax}
    unit = units.get(objective.loss, lambda made: made)  # the likelihoods have the unit in them

    many = fnn.train.fit_many(
        objective, optax.sgd(config.learning_rate), begin,
        (np.zeros((1, 1), np.float32), np.asarray(target(objective, outputs))), epochs=config.steps, batch_size=1,
        seeds=config.seeds, strategy="vmap", progress=None,
        metrics={"p": lambda made, batch: unit(made)[:, 0]},
    )  # fmt: skip
    return many["p"]  # (seeds, steps)


def steps_needed(p: Any) -> np.ndarray:
    """The first step after which p > 0.9 (...,), infinite where there is none."""
    there = np.array(p) > RIGHT
    return np.where(there.any(-1), there.argmax(-1) + 1.0, np.inf)


def judge(numbers: dict[str, Any]) -> list[Check]:
    """Where each gradient vanishes, and who gets away from a wrong start."""
    z = np.array(numbers["z"])
    wrong, right = z <= -SURE, z >= SURE
    size = {name: np.abs(np.array(values)) for name, values in numbers["gradient"].items()}
    mse = {name: v for name, v in size.items() if name.endswith(MSE)}
    nll = {name: v for name, v in size.items() if name.endswith(NLL)}
    p = {name: np.array(one, float) for name, one in numbers["trained"].items()}
    steps = {name: float(np.median(steps_needed(one))) for name, one in p.items()}
    most = next(iter(p.values())).shape[1]
    units = dict.fromkeys(name.partition(",")[0] for name in steps)
    return [
        Check(
            f"Of the likelihood the gradient is above 0.9 where the answer is surely wrong (logit at most {-SURE:g}), "
            "and below 0.01 where it is surely right",
            f"smallest {min(v[wrong].min() for v in nll.values()):.3f}, largest "
            f"{max(v[right].max() for v in nll.values()):.1e}",
            all(v[wrong].min() > 0.9 and v[right].max() < 0.01 for v in nll.values()),
        ),
        Check(
            "Of the squared error it is below 0.01 on both sides",
            f"largest {max(v[wrong].max() for v in mse.values()):.1e} and "
            f"{max(v[right].max() for v in mse.values()):.1e}",
            all(v[wrong].max() < 0.01 and v[right].max() < 0.01 for v in mse.values()),
        ),
        Check(
            f"From a surely wrong start the squared error needs at least {SLOWER} times the likelihood's steps until "
            f"the right answer has p > {RIGHT:g}, medians over the seeds",
            "; ".join(
                f"{unit}: {shown(steps[f'{unit}, {MSE}'], most)} against {shown(steps[f'{unit}, {NLL}'], most)}"
                for unit in units
            ),
            all(min(steps[f"{unit}, {MSE}"], most) >= SLOWER * steps[f"{unit}, {NLL}"] for unit in units)
            and all(np.isfinite(one).all() for one in p.values()),
        ),
    ]


def shown(steps: float, most: int) -> str:
    """As text, of so many at most."""
    return f"{steps:.0f} steps" if np.isfinite(steps) else f"not in {most} steps"


def draw(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """Left the gradients against the logit; right the probability of the right answer in training."""
    z = np.array(numbers["z"])
    with figure(path, 10, 6.5) as fig:
        panels = fig.subplots(2, 2)
        for row, unit in zip(panels, ("sigmoid", "softmax"), strict=True):
            for loss, color, style in ((NLL, BLUE, "-"), (MSE, VERMILION, "--")):
                name = f"{unit}, {loss}"
                row[0].plot(z, np.abs(numbers["gradient"][name]), style, color=color, label=loss)
                for i, p in enumerate(np.array(numbers["trained"][name], float)):
                    label = loss if i == 0 else None
                    row[1].plot(np.arange(1, len(p) + 1), p, style, color=color, alpha=0.8, label=label)
            row[0].set(title=f"A {unit} unit: the gradient for its logit", ylabel="size of the gradient")
            row[0].text(-19, 0.25, "surely wrong")
            row[0].text(19, 0.25, "surely right", ha="right")
            row[0].legend(loc="upper right")
            row[1].set(
                title="Training from a surely wrong start", ylabel="probability of the right answer", ylim=(-0.03, 1.03)
            )
            row[1].set_xscale("log")
            row[1].legend(loc="center right")
        panels[1, 0].set_xlabel("logit of the right answer")
        panels[1, 1].set_xlabel("step")


EXPERIMENT = Experiment(
    name="units_and_losses",
    claim="A likelihood saturates only where the unit is right; the squared error also where it is surely wrong.",
    source="Goodfellow, Bengio and Courville, Deep Learning (2016), sections 6.2.2.2 and 6.2.2.3",
    options=Config,
    measure=measure,
    judge=judge,
    draw=draw,
    smoke={"seeds": 2, "steps": 5},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return EXPERIMENT.run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
