"""Zero weights never break the symmetry, and the scale of the start decides whether a deep relu network learns.

A deep relu network is trained on digits from He's weights times a factor: 0, too small, 1 / sqrt(2) (Glorot's between
layers of one width), 1, too large; each with biases that start at 0 and at 0.1, and with a tuned learning rate. What is
looked at: the loss, whether the units of a layer stay equal, which are alive, that is active for some training example.
"""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcnn as fnn
from experiments.common.claims import Check, Experiment, Options, deviation, more, spread
from experiments.common.figure import BLUE, GRAY, GREEN, ORANGE, VERMILION, figure

GLOROT = round(math.sqrt(0.5), 4)  # sqrt(2 / (64 + 64)) over He's sqrt(2 / 64)
FACTORS = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, GLOROT, 1.0, 2.0, 4.0, 8.0, 16.0)
BIASES = (0.0, 0.1)
BATCH = 64
SMALL, LARGE = 1 / 16, 16.0  # from here on a start is too small, or too large
WORSE = 10.0  # percentage points of test accuracy that such a start costs
EQUAL = 1e-4  # of a layer's largest weight, which is how far float32 may take equal units apart
GOOD = 90.0  # percent of the test examples
LITTLE = 1.0  # percentage points of test accuracy


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Trains a deep relu network on scikit-learn's digits from starts of many scales."""

    depth: int = 5
    """Hidden layers."""
    width: int = 64
    """Units in each of them."""
    epochs: int = 25
    """Times to go through the training examples."""
    learning_rates: tuple[float, ...] = (
        1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0
    )  # fmt: skip
    """Of stochastic gradient descent, falling to 0 by a cosine; each start has that with the best test accuracy."""


def measure(config: Config) -> dict[str, Any]:
    """By bias and factor, each (seeds,): loss by epoch, test accuracy, how unequal units are, how many are alive."""
    train, test = fnn.data.load_digits().arrays()
    net = fnn.Serial(*[fnn.Dense(config.width), fnn.Relu()] * config.depth, fnn.Dense(10))

    def begin(key: jax.Array, factor: jax.Array, bias: jax.Array) -> Any:
        layers = net.init(key, train[0].shape[1:])
        return tuple({"w": factor * one["w"], "b": jnp.full_like(one["b"], bias)} if one else () for one in layers)

    steps = config.epochs * -(-len(train[0]) // BATCH)
    many = fnn.train.fit_many(
        fnn.Objective(net, fnn.losses.softmax_cross_entropy),
        lambda learning_rate: optax.sgd(optax.cosine_decay_schedule(learning_rate, steps)), begin, train,
        epochs=config.epochs, batch_size=BATCH, seeds=config.seeds, valid=test, valid_every=config.epochs,
        strategy="map", progress=None,  # "vmap" would make of these small products slower ones
        metrics={"accuracy": fnn.train.accuracy},
        grid={"bias": BIASES, "factor": FACTORS, "learning_rate": config.learning_rates},
    )  # fmt: skip
    # By accuracy, for a network that has come to guess may have a lower loss than one with large outputs, mostly right.
    accuracy = 100 * many["valid accuracy"][..., -1]  # (biases, factors, rates, seeds)
    best = np.argmax(accuracy.mean(axis=-1), axis=-1)
    counts = np.bincount(train[1])
    shares = counts / counts.sum()
    numbers: dict[str, Any] = {
        "factors": [f"{factor:g}" for factor in FACTORS],
        "learning rates": config.learning_rates,
        "loss of the label frequencies": -float(shares @ np.log(shares)),
    }
    # The keys that `fit_many` gives to `begin`.
    keys = jnp.stack([jax.random.split(jax.random.key(seed))[0] for seed in range(config.seeds)])
    starts = jax.jit(jax.vmap(begin, in_axes=(0, None, None)))
    looks = jax.jit(jax.vmap(lambda params: look(net, params, jnp.asarray(train[0]))))
    for i, bias in enumerate(BIASES):
        numbers[f"bias {bias:g}"] = found = {}
        for j, factor in enumerate(FACTORS):
            rate = int(best[i, j])
            trained = jax.tree.map(lambda leaf, at=(i, j, rate): np.asarray(leaf)[at], many.state.params)
            alive, _ = map(np.asarray, looks(starts(keys, factor, bias)))
            alive_after, unequal = map(np.asarray, looks(trained))
            found[f"{factor:g}"] = {
                "learning rate": config.learning_rates[rate],
                "loss": many["loss"][i, j, rate],
                "lowest loss": many["loss"][i, j].min(axis=(0, -1)),
                "accuracy": accuracy[i, j, rate],
                "unequal": unequal,
                "alive": alive,
                "alive after": alive_after,
            }
    return numbers


def look(net: fnn.Serial, params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The percentage of hidden units alive, and the largest difference of a layer's units over its largest weight."""
    alive, unequal = [], []
    for layer, one in zip(net.layers[:-1], params[:-1], strict=True):
        x = layer.apply(one, x)
        if one:
            incoming = jnp.concatenate([one["w"], one["b"][None]])
            apart = jnp.max(jnp.abs(incoming - incoming[:, :1]))
            unequal.append(apart / jnp.maximum(jnp.max(jnp.abs(incoming)), jnp.finfo(x.dtype).tiny))
        else:
            alive.append(jnp.mean(jnp.any(x > 0, axis=0)))
    return 100 * jnp.mean(jnp.stack(alive)), jnp.max(jnp.stack(unequal))


def judge(numbers: dict[str, Any]) -> list[Check]:
    """Equal units stay equal, only a middling scale learns, and biases of 0.1 keep units alive."""
    zero, tenth = (numbers[f"bias {bias:g}"] for bias in BIASES)
    unequal = np.array([one["0"]["unequal"] for one in (zero, tenth)], float)
    he = np.array(zero["1"]["unequal"], float)
    stuck = np.array(zero["0"]["lowest loss"], float)
    accuracy = {float(name): np.array(one["accuracy"], float) for name, one in zero.items()}
    right = {factor: values for factor, values in accuracy.items() if factor in (GLOROT, 1.0)}
    wrong = {factor: values for factor, values in accuracy.items() if 0 < factor <= SMALL or factor >= LARGE}
    best = max(wrong, key=lambda factor: wrong[factor].mean())
    costs = {factor: accuracy[1.0] - values for factor, values in wrong.items()}
    before, after = ([np.array(one["1"][name], float) for one in (zero, tenth)] for name in ("alive", "alive after"))
    gain = np.array(tenth["1"]["accuracy"], float) - accuracy[1.0]
    rates = {float(name): one["learning rate"] for name, one in zero.items()}
    ends = min(numbers["learning rates"]), max(numbers["learning rates"])
    return [
        Check(
            f"From zero weights the units of a layer stay equal, to {EQUAL:g} of its largest weight, with either bias; "
            f"from He's they differ",
            f"apart by at most {unequal[0].max():.1e} (bias 0), {unequal[1].max():.1e} (bias 0.1); He {he.min():.2g}",
            bool(unequal.max() <= EQUAL and he.min() > EQUAL),
        ),
        Check(
            "From zero weights and biases the loss never falls below that of the labels' frequencies (by 0.01), "
            "at none of the rates",
            f"{spread(stuck)}, where the frequencies have {numbers['loss of the label frequencies']:.3f}",
            bool(np.all(stuck >= numbers["loss of the label frequencies"] - 0.01)),
        ),
        Check(
            f"From Glorot's and He's scale the mean test accuracy is at least {GOOD:g} %, at rates within those tried",
            f"Glorot {spread(right[GLOROT])} %, He {spread(right[1.0])} %, at the rate {rates[1.0]:g}",
            bool(min(values.mean() for values in right.values()) >= GOOD)
            and all(ends[0] < rates[factor] < ends[1] for factor in right),
        ),
        Check(
            f"At most {SMALL:g} or at least {LARGE:g} times He's scale, it is at least {WORSE:g} points less than from "
            "He's, by more than three standard errors, at rates that are not the last ones tried to that side",
            f"the best: {best:g} times He's, {spread(wrong[best])} % at the rate {rates[best]:g}",
            all(cost.mean() >= WORSE and more(cost, [0.0]) for cost in costs.values())
            and all(rates[factor] < ends[1] if factor < 1 else rates[factor] > ends[0] for factor in wrong),
        ),
        Check(
            "From He's weights more units are alive at the start with bias 0.1 than with 0 (by three standard errors)",
            f"{spread(before[1])} % and {spread(before[0])} %; after training {spread(after[1])} % and "
            f"{spread(after[0])} %",
            more(before[1], before[0]),
        ),
        Check(
            f"Yet the bias matters little: mean test accuracy from He's weights changes by less than {LITTLE:g} point",
            f"{spread(gain, 2)} points with 0.1 instead of 0",
            bool(abs(gain.mean()) < LITTLE),
        ),
    ]


def draw(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """Loss curves, accuracy against scale, units alive."""
    zero, tenth = (numbers[f"bias {bias:g}"] for bias in BIASES)
    shown = {  # with marks at every fourth epoch from this one on, since some curves lie on one another
        "4": ("4 times He", VERMILION, "^", 1), "0": ("zero", "black", "x", 0),
        "0.0625": ("He / 16", ORANGE, "v", 2), f"{GLOROT:g}": ("Glorot", GREEN, "s", 0), "1": ("He", BLUE, "o", 2),
    }  # fmt: skip
    with figure(path, 12, 4.2) as fig:
        curves, scales, alive = fig.subplots(1, 3, width_ratios=(1.15, 1, 1))
        for factor, (label, color, marker, first) in shown.items():
            loss = np.array(zero[factor]["loss"], float).mean(axis=0)
            epochs = np.arange(1, len(loss) + 1)
            curves.plot(epochs, loss, f"{marker}-", color=color, label=label, markevery=(first, 4))
            curves.plot(epochs, np.array(tenth[factor]["loss"], float).mean(axis=0), ":", color=color)
        curves.plot([], [], ":", color=GRAY, label="dotted: bias 0.1")
        curves.set(yscale="log", ylim=(0.004, 30), xlabel="epoch", ylabel="training loss", title="Loss")
        curves.legend(fontsize=8, title="start of the weights")
        factors = [factor for factor in numbers["factors"] if factor != "0"]
        x = [float(factor) for factor in factors]
        for one, bias, color, style in ((zero, 0, BLUE, "o-"), (tenth, 0.1, ORANGE, "s--")):
            values = np.array([one[factor]["accuracy"] for factor in factors], float)
            scales.errorbar(x, values.mean(axis=1), deviation(values), fmt=style, color=color, label=f"bias {bias:g}")
            for name, fill, text in (("alive", "none", "at the start"), ("alive after", "full", "trained")):
                values = np.array([one[factor][name] for factor in factors], float)
                alive.plot(x, values.mean(axis=1), style, color=color, fillstyle=fill, label=f"bias {bias:g}, {text}")
        for axes in (scales, alive):
            axes.set_xscale("log", base=2)
            axes.set(xlabel="standard deviation of weights, over He's", ylim=(0, 103))
            axes.axvline(1, color=GRAY, linewidth=0.8)
        scales.set(title="Test accuracy", ylabel="percent")
        scales.legend(fontsize=8)
        alive.set(title="Hidden units alive", ylabel="percent")
        alive.legend(fontsize=8)


EXPERIMENT = Experiment(
    name="initialization",
    claim="Zero weights never break the symmetry, and the scale of the start decides whether a deep relu network "
    "learns; biases of 0.1 keep more units alive, which matters little.",
    source="Goodfellow et al. (2016), sections 6.3.1 and 8.4; Glorot and Bengio (2010); He et al. (2015)",
    options=Config,
    measure=measure,
    judge=judge,
    draw=draw,
    smoke={"seeds": 1, "depth": 2, "width": 8, "epochs": 1, "learning_rates": (0.1,)},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return EXPERIMENT.run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
