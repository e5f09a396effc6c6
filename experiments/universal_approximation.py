"""One hidden layer can approximate any function on an interval, the better the wider it is.

By construction: two shifted sigmoids are a bump, and a row of bumps is any function, which needs no training. And by
training: networks of several widths fit a smooth, a stepped and a wiggly target.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcnn as fnn
from experiments.common.claims import Check, Experiment, Options
from experiments.common.figure import BLUE, GRAY, GREEN, ORANGE, VERMILION, figure

TARGETS = {
    "smooth": lambda x: np.sin(2 * np.pi * x),
    "stepped": lambda x: np.where(x < 0.3, -0.5, np.where(x < 0.7, 1.0, 0.2)),
    "wiggly": lambda x: np.sin(2 * np.pi * x) + 0.5 * np.sin(9 * np.pi * x),
}
ACTIVATIONS: dict[str, fnn.Layer] = {"relu": fnn.Relu(), "sigmoid": fnn.Sigmoid()}
POINTS = 512
# By how much the widest network has to be better than the narrowest. A step is not continuous: at any width the error
# at its edge stays as high as the step is, and only gets narrower. Of bumps of equal width its mean square falls as 1 /
# width; a trained network could have steeper units, but is not sure to find them.
SMALLER = {"smooth": 5, "stepped": 2, "wiggly": 5}


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Builds networks of bumps, and trains networks of several widths."""

    seeds: int = 3
    """Random starts; of each width the best training counts: the claim is of what there is, not of what is found."""
    widths: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    """Hidden units of the trained networks."""
    steps: int = 6000
    """Steps of Adam, on all points."""
    learning_rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    """Adam's, falling to 0 by a cosine; of each width the best counts."""
    bumps: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    """In the networks that are built, of two units each."""

    several: ClassVar = {"widths": 2, "bumps": 2}


def built(target: Any, bumps: int) -> Any:
    """Parameters for 2 units a bump: sigmoid(k (x - left)) - sigmoid(k (x - right)), times the target in its middle."""
    edges = np.linspace(0, 1, bumps + 1)
    steepness = 40.0 * bumps
    heights = target((edges[:-1] + edges[1:]) / 2)
    starts, ends = edges[:-1].copy(), edges[1:].copy()
    starts[0], ends[-1] = -1, 2  # the ends of the interval are no edges
    w = np.full((1, 2 * bumps), steepness)
    b = -steepness * np.concatenate([starts, ends])
    out = np.concatenate([heights, -heights])[:, None]
    return as_params(w, b), (), as_params(out, np.zeros(1))


def as_params(w: np.ndarray, b: np.ndarray) -> dict[str, jax.Array]:
    """Of a dense layer."""
    return {"w": jnp.asarray(w, jnp.float32), "b": jnp.asarray(b, jnp.float32)}


def network(width: int, activation: fnn.Layer) -> fnn.Serial:
    """One hidden layer."""
    return fnn.Serial(fnn.Dense(width), activation, fnn.Dense(1))


def measure(config: Config) -> dict[str, Any]:
    """Root mean square errors by target, activation and width, trained and built, and some curves."""
    x = ((np.arange(POINTS) + 0.5) / POINTS).astype(np.float32)[:, None]
    numbers: dict[str, Any] = {"x": x.ravel(), "widths": config.widths, "bumps": config.bumps}
    numbers |= {"built": {}, "trained": {}, "curves": {}, "seeds": {}}
    for name, target in TARGETS.items():
        y = target(x).astype(np.float32)
        made = [network(2 * n, fnn.Sigmoid()).apply(built(target, n), jnp.asarray(x)) for n in config.bumps]
        numbers["built"][name] = [rms(np.asarray(one) - y) for one in made]
        numbers["curves"][name] = {"target": y.ravel(), "built": np.asarray(made[len(made) // 2]).ravel()}
        for form, activation in ACTIVATIONS.items():
            runs = [train(config, width, activation, x, y) for width in config.widths]
            numbers["trained"][f"{name}, {form}"] = [min(errors) for errors, _ in runs]
            numbers["seeds"][f"{name}, {form}"] = [errors for errors, _ in runs]
            if form == "relu":
                numbers["curves"][name] |= {"narrow": runs[min(2, len(runs) - 1)][1], "wide": runs[-1][1]}
    one = built(TARGETS["smooth"], 8)
    w, b, out = (np.asarray(a, float) for a in (one[0]["w"][0], one[0]["b"], one[2]["w"][:, 0]))
    units = 1 / (1 + np.exp(-(x * w[None] + b[None]).clip(-500, 500)))
    numbers["bump"] = {
        "rises": units[:, 2],
        "falls": -units[:, 10],
        "bump": units[:, 2] - units[:, 10],
        "height": out[2],
    }
    return numbers


def train(config: Config, width: int, activation: fnn.Layer, x: Any, y: Any) -> tuple[list[float], np.ndarray]:
    """The error of each seed with the best learning rate, and the best network's outputs."""
    net = network(width, activation)

    def begin(key: jax.Array) -> Any:
        """Kinks and slopes all over the interval, since a unit that has none there learns nothing."""
        slope_key, place_key, out_key = jax.random.split(key, 3)
        slopes = 4 * jax.random.normal(slope_key, (width,)) * (1 if isinstance(activation, fnn.Relu) else 4)
        places = jax.random.uniform(place_key, (width,))
        out = jax.random.normal(out_key, (width, 1)) * width**-0.5
        return {"w": slopes[None], "b": -slopes * places}, (), {"w": out, "b": jnp.zeros(1)}

    many = fnn.train.fit_many(
        fnn.Objective(net, fnn.losses.squared_error),
        lambda learning_rate: optax.adam(optax.cosine_decay_schedule(learning_rate, config.steps)), begin, (x, y),
        epochs=config.steps, batch_size=POINTS, seeds=config.seeds, grid={"learning_rate": config.learning_rates},
        shuffle=False, strategy="vmap", progress=None,
    )  # fmt: skip
    outputs = jax.vmap(jax.vmap(lambda p: net.apply(p, jnp.asarray(x))))(many.state.params)
    errors = np.sqrt(np.mean(np.square(np.asarray(outputs) - y), axis=(2, 3)))  # (rates, seeds)
    best = np.unravel_index(int(np.argmin(errors)), errors.shape)
    return errors.min(0).tolist(), np.asarray(outputs[best]).ravel()


def rms(values: np.ndarray) -> float:
    """The root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def judge(numbers: dict[str, Any]) -> list[Check]:
    """Errors get smaller, built and trained."""
    made, trained = numbers["built"], numbers["trained"]
    falls = {name: all(b < a for a, b in itertools.pairwise(errors)) for name, errors in made.items()}
    marks = "5 times better for the continuous targets, twice for the stepped one"
    return [
        Check(
            f"Built of bumps, without training, {numbers['bumps'][-1]} of them are at least so much better than "
            f"{numbers['bumps'][0]}: {marks}",
            ", ".join(f"{name} {errors[0]:.3f} to {errors[-1]:.3f}" for name, errors in made.items()),
            all(errors[0] / errors[-1] >= SMALLER[name] for name, errors in made.items()),
        ),
        Check(
            "For the continuous targets each doubling of the bumps makes the error smaller",
            ", ".join(f"{name}: {'yes' if falls[name] else 'no'}" for name in ("smooth", "wiggly")),
            falls["smooth"] and falls["wiggly"],
        ),
        Check(
            f"Trained, {numbers['widths'][-1]} hidden units are at least so much better than {numbers['widths'][0]}: "
            f"{marks}",
            ", ".join(f"{name} {errors[0]:.3f} to {errors[-1]:.3f}" for name, errors in trained.items()),
            all(errors[0] / errors[-1] >= SMALLER[name.partition(",")[0]] for name, errors in trained.items()),
        ),
    ]


def draw(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """Above the fits; below a bump, and errors against width."""
    x = np.array(numbers["x"])
    with figure(path, 12, 7) as fig:
        panels = fig.subplots(2, 3)
        narrow = numbers["widths"][min(2, len(numbers["widths"]) - 1)]
        for axes, (name, curve) in zip(panels[0], numbers["curves"].items(), strict=True):
            axes.plot(x, curve["target"], color="black", linewidth=2.5, alpha=0.35, label="target")
            axes.plot(x, curve["narrow"], "--", color=VERMILION, label=f"relu, {narrow} units, trained")
            axes.plot(x, curve["wide"], color=BLUE, label=f"relu, {numbers['widths'][-1]} units, trained")
            axes.set(title=f"{name} target", xlabel="x", ylim=(-1.7, 2.4))
            axes.legend(fontsize=8, loc="upper right")
        bump = numbers["bump"]
        for name, color, style in (("rises", GREEN, "--"), ("falls", ORANGE, ":"), ("bump", "black", "-")):
            label = {"rises": "a sigmoid", "falls": "minus a shifted one", "bump": "their sum: a bump"}[name]
            panels[1, 0].plot(x, bump[name], style, color=color, label=label)
        panels[1, 0].set(title="Two sigmoids make a bump", xlabel="x")
        panels[1, 0].legend(fontsize=8, loc=(0.45, 0.58))
        for name, marker in zip(TARGETS, ("o", "s", "^"), strict=True):
            units = [2 * n for n in numbers["bumps"]]
            panels[1, 1].plot(units, numbers["built"][name], f"{marker}-", color=GRAY, fillstyle="none", label=name)
            for form, color in (("relu", BLUE), ("sigmoid", VERMILION)):
                style = f"{marker}{'-' if form == 'relu' else '--'}"
                panels[1, 2].plot(numbers["widths"], numbers["trained"][f"{name}, {form}"], style, color=color,
                                  label=f"{name}, {form}")  # fmt: skip
        for axes, title in zip(panels[1, 1:], ("Built of bumps", "Trained, the best of the seeds"), strict=True):
            axes.set(xscale="log", yscale="log", title=title, xlabel="hidden units", ylabel="root mean square error")
            axes.set_xscale("log", base=2)
        panels[1, 1].legend(fontsize=8)
        panels[1, 2].set_ylim(5e-5, 1.2)
        panels[1, 2].legend(fontsize=8, ncols=2, loc="lower left")


EXPERIMENT = Experiment(
    name="universal_approximation",
    claim="One hidden layer approximates any continuous function on an interval, the better the wider it is.",
    source="Cybenko (1989); Hornik, Stinchcombe and White (1989); Goodfellow et al. (2016), section 6.4.1",
    options=Config,
    measure=measure,
    judge=judge,
    draw=draw,
    smoke={"seeds": 1, "widths": (1, 4), "steps": 5, "learning_rates": (1e-2,), "bumps": (4, 8)},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    return EXPERIMENT.run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
