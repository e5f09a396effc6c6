"""`fit` and `fit_many` on a network of the benchmarks: time for a step, compilation apart, and an ensemble's memory."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcnn as fnn
from experiments.benchmarks.networks import LEARNING_RATE, Network
from experiments.benchmarks.workers import epochs_for, take_turns
from experiments.common import networks
from funcnn.layer import Key, Params
from funcnn.train import Ensemble, History, loop, many
from funcnn.train.steps import Recipe

# Single values: a compiled program is found again by the optimizer's identity.
OPTIMIZERS = {"adam": optax.adam(LEARNING_RATE), "sgd": optax.sgd(LEARNING_RATE)}


class Seconds(NamedTuple):
    """What a training took, without compilation."""

    all: float
    step: float


@dataclasses.dataclass(frozen=True)
class Training:
    """What is trained, and how."""

    network: Network
    gradient: str = "autodiff"
    compute_dtype: str | None = None
    optimizer: str = "adam"

    @functools.cached_property
    def objective(self) -> fnn.Objective:
        """The network with its loss."""
        *hidden, outputs = self.network.sizes[1:]
        loss = fnn.losses.mse if self.network.regression else fnn.losses.softmax_cross_entropy
        return fnn.Objective(networks.mlp(hidden, fnn.Relu(), outputs), loss)

    @property
    def data(self) -> tuple[jax.Array, jax.Array]:
        """The network's examples."""
        return _examples(self.network)

    def init(self, key: Key) -> Params:
        """Parameters to begin with."""
        return self.objective.net.init(key, self.network.sizes[:1])

    @property
    def params(self) -> Params:
        """Weights that every training may begin with; drawn by NumPy, as `init` compiles for every shape."""
        return _params(self.network)

    def fit(self, epochs: int, params: Params | Callable[[Key], Params], seed: int = 0) -> History:
        """The run of a seed: with a function as `params` it is that of `fit_many`."""
        return fnn.train.fit(params=params, key=jax.random.key(seed), **self._arguments(epochs))[1]

    def fit_many(
        self, epochs: int, params: Callable[[Key], Params], runs: int, strategy: str | int = "auto"
    ) -> Ensemble:
        """The runs of the seeds 0, 1, ..."""
        return fnn.train.fit_many(params=params, seeds=runs, strategy=strategy, **self._arguments(epochs))

    def varied(self, key: Key) -> Params:
        """`params`, a little changed: `fit_many` compiles its `params` in each call, and `init` takes seconds."""
        return jax.tree.map(lambda array: array * jax.random.uniform(key, minval=0.9, maxval=1.1), self.params)

    def seconds(self, epochs: int) -> Seconds:
        """Of one run."""
        return seconds_of(self.fit(epochs, self.params))

    def ensemble_seconds(self, runs: int, strategy: str | int, epochs: int) -> Seconds:
        """Of so many runs: a step is one step of all of them."""
        ensemble = self.fit_many(epochs, self.varied, runs, strategy)
        return Seconds(ensemble.seconds, ensemble.seconds / (epochs * self.network.steps))

    def _arguments(self, epochs: int) -> dict[str, Any]:
        return {
            "objective": self.objective,
            "optimizer": OPTIMIZERS[self.optimizer],
            "data": self.data,
            "epochs": epochs,
            "batch_size": self.network.batch,
            "gradient": self.gradient,
            "compute_dtype": self.compute_dtype,
            "progress": None,
        }


@functools.cache
def _examples(network: Network) -> tuple[jax.Array, jax.Array]:
    features, outputs = network.sizes[0], network.sizes[-1]
    if features * outputs < 2**20:
        x, y = network.examples()
        return jnp.asarray(x), jnp.asarray(y)
    # On the device, without a teacher, whose products take NumPy a minute.
    n, keys = network.batch * network.steps, jax.random.split(jax.random.key(0))
    return jax.random.uniform(keys[0], (n, features)), jax.random.normal(keys[1], (n, outputs))


@functools.cache
def _params(network: Network) -> Params:
    training, rng = Training(network), np.random.default_rng(0)
    shapes = jax.eval_shape(training.init, jax.random.key(0))
    with jax.ensure_compile_time_eval():  # arrays, also where `varied` is traced
        return jax.tree.map(
            lambda s: jnp.asarray(rng.standard_normal(s.shape, s.dtype) * np.float32((2 / s.shape[0]) ** 0.5)), shapes
        )


def seconds_of(history: History) -> Seconds:
    """All of a run; and a step's, from the end of the first epoch on, as `fit` begins with short pieces."""
    seconds, steps = history["seconds"], history["step"]
    if len(steps) == 1:
        return Seconds(float(seconds[0]), float(seconds[0] / steps[0]))
    return Seconds(float(seconds[-1]), float((seconds[-1] - seconds[0]) / (steps[-1] - steps[0])))


def step_seconds(runs: Mapping[Any, Callable[[int], Seconds]], rounds: int, block_s: float) -> dict[Any, list[float]]:
    """Seconds for a step of each, a number for each round: trainings of about `block_s`, which take turns."""
    turns = {}
    for name, train in runs.items():
        train(1)  # compiles
        epochs = epochs_for(lambda epochs, train=train: train(epochs).all, train(1).all, block_s)
        turns[name] = functools.partial(train, epochs)
    return {name: [found.step for found in answers] for name, answers in take_turns(turns, rounds).items()}


def ensemble_bytes(training: Training, runs: int) -> dict[str, int]:
    """What the compiled program of `fit_many` plans for so many runs, all side by side; by kind, and in all.

    On a CPU each core has a group of the runs, with a program of its own; the examples are there once.
    """
    plan = loop.Plan(
        recipe=Recipe.of(training.objective, OPTIMIZERS[training.optimizer], training.gradient, None, (), None),
        batch_size=training.network.batch,
        valid_batch_size=training.network.batch,
        shuffle=True,
        valid_every=1,
        monitor=None,
        maximize=False,
        patience=1,
        min_delta=0.0,
        record_steps=False,
    )
    groups = many.Groups(runs)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), groups.size))
    group = jax.eval_shape(jax.vmap(lambda key: many._begin(plan, training.init, key, {})), keys)
    number = jnp.asarray(0)
    lowered = many._advance.lower(plan, groups.size, group, training.data, None, {}, number, number, number)
    memory = lowered.compile().memory_analysis()
    assert memory is not None, "the backend does not say"
    data = sum(array.nbytes for array in training.data)
    found = {
        "data": data,
        "arguments": groups.count * (memory.argument_size_in_bytes - data),
        "results": groups.count * memory.output_size_in_bytes,
        "temporaries": groups.count * memory.temp_size_in_bytes,
    }
    return found | {"all": sum(found.values())}
