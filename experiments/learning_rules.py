"""Most rules other than backpropagation train a network nearly as well; random feedback turns towards the gradient.

A tanh network is trained by each rule of `funcnn.backprop.learning`, from one start and on the same batches, and so is
the logistic network of Lillicrap et al. (2016). After each epoch: the test error, and for each layer the angle between
the gradient of its weights as the rule gives it and as backpropagation does. The marks: test errors on MNIST at most
0.3 percentage points above the published ones, and after training no angle of 90 degrees or more.
"""

import dataclasses
import functools
import json
import logging
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import funcnn as fnn
from experiments.common import record
from experiments.common.learning import as_table, draw, judge, verdict
from experiments.common.training import without_test_examples
from funcnn.backprop import RULES, Rules, learning

PROBE_BATCHES = 10  # whose angles are averaged
# At the start, one for each family of rules; chosen by `--tune 0.3 1 3 --epochs 6`, which looks at no test example, and
# that of step units in all epochs: their error comes down and, where the rate is too large, goes up again.
RATES = {
    "gradient": 0.1,
    "random feedback": 0.1,
    "signs": 0.1,
    "clipped": 1.0,
    "normalized": 0.03,
    "step": 0.009,
    "logistic": 0.01,
}
DECAY = 3e-4  # Kolen and Pollack's, of the weights and of the feedback weights alike


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a network by each learning rule, and compares test errors and updates.

    Prints a table, and writes a figure and a JSON record, anew after every training. The exit code is 0 if all marks
    are reached, 1 if one is missed, and 2 if the options or the data files are wrong.
    """

    data: Literal["digits", "mnist"] = "digits"
    """scikit-learn's digits, or MNIST from --data-dir."""
    data_dir: pathlib.Path | None = None
    """Directory with MNIST's four files; the environment variable FUNCNN_DATA unless given."""
    only: tuple[str, ...] = ()
    """Rules to train by, named as in the table; all unless given."""
    hidden: tuple[int, ...] = (800, 800)
    """Widths of the hidden layers of the tanh network."""
    logistic: int = 1000
    """Width of the hidden layer of the logistic network."""
    epochs: int = 25
    """Times to go through the training examples."""
    batch_size: int = 128
    """Examples a step."""
    tune: tuple[float, ...] = ()
    """Factors of the learning rates, to compare on the last sixth of the training examples instead of the test's."""
    seed: int = 0
    """Draws the start, the feedback weights, the order of the examples, and the rounding."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Keep the trainings of the record in --out, and add those that are missing."""
    out: pathlib.Path = pathlib.Path("out")
    """Directory for the figure and the record; made if it is missing."""
    smoke: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Small networks for a moment, only to see that everything works."""

    def check(self) -> None:
        """Raises UsageError for values that no run can have."""
        numbers = (self.epochs, self.batch_size, self.logistic, *self.hidden, *self.tune)
        if not self.hidden or not all(0 < number < np.inf for number in numbers):
            raise record.UsageError("--epochs, --batch-size, --logistic, --hidden and --tune are positive")
        if unknown := [name for name in self.only if name not in LEARNERS]:
            raise record.UsageError(f"--only takes names of {', '.join(map(repr, LEARNERS))}, got {unknown[0]!r}")


@dataclasses.dataclass(frozen=True)
class Learner:
    """A network, and the rules that it learns by."""

    family: str  # of rules that share a learning rate
    panels: tuple[str, ...]  # of the figure
    net: fnn.Serial
    rules: Rules = RULES
    decay: float = 0.0
    published: float | None = None  # test error on MNIST, in percent
    rate: float = 0.0  # the learning rate at the start

    def about(self) -> dict[str, Any]:
        """What is not the network and the rules."""
        return {name: getattr(self, name) for name in ("family", "panels", "rate", "decay", "published")}


def network(
    hidden: Sequence[int], activation: fnn.Layer, dense: Callable[[int], fnn.Layer], classes: int
) -> fnn.Serial:
    """Dense layers; the first is always `Dense`, since no delta goes back through it."""
    layers = [layer for width in hidden[1:] for layer in (dense(width), activation)]
    return fnn.Serial(fnn.Dense(hidden[0]), activation, *layers, dense(classes))


def learners(config: Config, classes: int) -> dict[str, Learner]:
    """All of them by name. The published errors: Noekland (2016) for 2 x 800 tanh units; Lillicrap et al. (2016)."""

    def tanh(dense: Callable[[int], fnn.Layer]) -> fnn.Serial:
        return network(config.hidden, fnn.Tanh(), dense, classes)

    def direct(width: int) -> fnn.Layer:
        return fnn.FeedbackDense(width, outputs=classes)

    def on_deltas(transform: learning.Transform) -> Rules:
        return RULES | {fnn.Dense: learning.on_delta(RULES[fnn.Dense], transform)}

    unit = 1 / config.batch_size  # of a delta: the objective is a mean over the batch
    # Of the hidden layers alone: of ten outputs the one largest delta is nearly always that of the right class.
    top = {str(2 * i): learning.on_delta(RULES[fnn.Dense], learning.TopK(0.1)) for i in range(len(config.hidden))}
    plain, feedback = tanh(fnn.Dense), tanh(fnn.FeedbackDense)
    steps = network(config.hidden, fnn.Step(), fnn.Dense, classes)
    alignment, direct_alignment = RULES | learning.FEEDBACK_ALIGNMENT, RULES | learning.DIRECT_FEEDBACK_ALIGNMENT
    logistic = network([config.logistic], fnn.Sigmoid(), fnn.FeedbackDense, classes)
    both, feed, delta, other = ("feedback", "delta"), ("feedback",), ("delta",), ("logistic",)
    return {
        "backprop": Learner("gradient", both, plain, published=1.60),
        "feedback alignment": Learner("random feedback", feed, feedback, alignment, published=1.64),
        "direct feedback": Learner("random feedback", feed, tanh(direct), direct_alignment, published=1.74),
        "Kolen-Pollack": Learner("random feedback", feed, feedback, RULES | learning.KOLEN_POLLACK, decay=DECAY),
        "sign-symmetric": Learner("signs", feed, plain, RULES | learning.SIGN_SYMMETRIC),
        "clipped": Learner("clipped", delta, plain, on_deltas(learning.Clip(0.1 * unit))),
        "normalized": Learner("normalized", delta, plain, on_deltas(learning.Normalize(0.1 * unit))),
        "bfloat16": Learner("gradient", delta, plain, on_deltas(learning.LowPrecision("bfloat16"))),
        "4 bits": Learner("gradient", delta, plain, on_deltas(learning.StochasticRounding(4))),
        "top 10 %": Learner("gradient", delta, plain, RULES | top),
        "step units": Learner("step", delta, steps, RULES | learning.STRAIGHT_THROUGH),
        "logistic: backprop": Learner("logistic", other, logistic, published=2.4),
        "logistic: feedback alignment": Learner("logistic", other, logistic, alignment, published=2.1),
    }


LEARNERS = tuple(learners(Config(), 10))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns that a directory is read and not written
    config = tyro.cli(Config, args=argv, prog="python -m experiments.learning_rules")
    if config.smoke:
        config = dataclasses.replace(config, data="digits", hidden=(32, 16), logistic=32, epochs=2)
        config = dataclasses.replace(config, only=config.only or ("direct feedback", "4 bits"))
    path = config.out / f"learning_rules-{config.data}{'-tuning' if config.tune else ''}.json"
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("data_dir", "out", "resume")}
    with record.one_line_errors(OSError, fnn.data.DataError):
        config.check()
        config.out.mkdir(parents=True, exist_ok=True)
        data = fnn.data.load_mnist(config.data_dir) if config.data == "mnist" else fnn.data.load_digits()
        runs = recorded(path, settings) if config.resume else []
    if config.tune:
        data = without_test_examples(data)
    command = record.command("experiments.learning_rules", argv)
    about = {"command": command, **record.environment(), "config": settings}
    console = record.console()
    published = config.data == "mnist" and not config.tune
    for name, learner in trainings(config, data.classes):
        if any((run["name"], run["rate"]) == (name, learner.rate) for run in runs):
            continue
        try:
            found = train(config, learner, data)
        except fnn.train.NonFiniteError as error:
            if not config.tune:
                raise
            console.print(f"{name}, learning rate {learner.rate:g}: {error}", highlight=False)
            continue
        runs.append({"name": name, **learner.about(), **found})
        runs.sort(key=lambda run: LEARNERS.index(run["name"]))  # what was trained later, after --resume, has its place
        console.print(f"{name}, learning rate {learner.rate:g}: error {found['error'][-1]:.2f} %", highlight=False)
        record.write(path, {**about, "marks": judge(runs, published), "runs": runs})
        if not config.tune:
            draw(path.with_suffix(".png"), runs, data.name, published)
    console.print(as_table(runs, published))
    if config.tune:
        return 0
    marks = judge(runs, published)
    console.print(verdict(marks), highlight=False)
    print(f"Figure and record: {path.with_suffix('.png')}, {path}")
    return 0 if all(mark["reached"] for mark in marks.values()) else 1


def recorded(path: pathlib.Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The trainings of an earlier record with the same settings."""
    if not path.exists():
        return []
    earlier = json.loads(path.read_text(encoding="utf-8"))
    if earlier["config"] != json.loads(json.dumps(settings)):
        raise record.UsageError(f"{path} is of other settings, and --resume goes on with the same only")
    return earlier["runs"]


def trainings(config: Config, classes: int) -> Iterator[tuple[str, Learner]]:
    """What is to be trained: each rule once; or, to tune, the first of each family with each learning rate."""
    everyone = learners(config, classes)
    families: dict[str, str] = {}
    for name, learner in everyone.items():
        families.setdefault(learner.family, name)
    for name in config.only or (families.values() if config.tune else everyone):
        for factor in config.tune or (1.0,):
            rate = float(f"{factor * RATES[everyone[name].family]:.6g}")  # as a record has it
            yield name, dataclasses.replace(everyone[name], rate=rate)


def train(config: Config, learner: Learner, data: fnn.data.Dataset) -> dict[str, Any]:
    """One training: error and angles after each epoch."""
    objective = fnn.Objective(learner.net, fnn.losses.softmax_cross_entropy)
    init_key, key, probe_key = jax.random.split(jax.random.key(config.seed), 3)
    params = learner.net.init(init_key, (data.x_train[0].size,))
    prepare = fnn.data.Pixels(data.x_max)
    train_batch, test_batch = (data.x_train, data.y_train), (data.x_test, data.y_test)
    steps = config.epochs * -(-len(data.x_train) // config.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        _, history = fnn.train.fit(
            objective,
            optimizer(learner, steps),
            params,
            train_batch,
            epochs=config.epochs,
            batch_size=config.batch_size,
            key=key,
            valid=test_batch,
            valid_batch_size=1000,
            gradient=functools.partial(fnn.backprop.value_and_grad, rules=learner.rules),
            metrics={"accuracy": fnn.train.accuracy},
            prepare=prepare,
            checkpoints=fnn.train.Checkpoints(folder, keep=config.epochs, best=None),
        )
        by_epoch = (fnn.train.load_checkpoint(folder, int(step))[1] for step in history["step"])
        angles = probe(objective, learner.rules, prepare)
        probes = batches(train_batch, config.batch_size)
        angle = np.array([angles(epoch, probes, probe_key) for epoch in (params, *by_epoch)])  # (epochs + 1, layers)
    error = 100 * (1 - history["valid accuracy"])
    return {"error": error, "loss": history["loss"], "angle": angle.T, "seconds": history["seconds"][-1]}


def optimizer(learner: Learner, steps: int) -> optax.GradientTransformation:
    """Gradient descent with Nesterov's momentum; the learning rate falls to 0 by a cosine.

    Adam for the logistic network, which momentum trains much slower: outputs of logistic units are far from mean 0.
    """
    rate = optax.cosine_decay_schedule(learner.rate, steps)
    descent = optax.adam(rate) if learner.family == "logistic" else optax.sgd(rate, momentum=0.9, nesterov=True)
    decay = optax.add_decayed_weights(learner.decay, mask=lambda params: jax.tree.map(lambda p: p.ndim == 2, params))
    return optax.chain(decay, descent) if learner.decay else descent


def batches(examples: Any, size: int) -> Any:
    """The first batches of the training examples, one behind another."""
    count = min(PROBE_BATCHES, len(examples[0]) // size)
    return tuple(array[: count * size].reshape(count, size, *array.shape[1:]) for array in examples)


def probe(objective: fnn.Objective, rules: Rules, prepare: Any) -> Callable[..., jax.Array]:
    """A function `(params, batches, key) -> degrees` (layers,): between two gradients of each w, means over batches."""
    both = [fnn.backprop.value_and_grad(objective, rules=each) for each in (rules, RULES)]

    @jax.jit
    def angles(params: Any, batches: Any, key: jax.Array) -> jax.Array:
        def of(batch: Any) -> jax.Array:
            pair = (gradient(params, prepare(batch), key=key, train=True)[1] for gradient in both)
            return jnp.stack([degrees(a["w"], b["w"]) for a, b in zip(*pair, strict=True) if a])

        return jnp.mean(jax.lax.map(of, batches), axis=0)

    return angles


def degrees(a: jax.Array, b: jax.Array) -> jax.Array:
    """The angle between two arrays, NaN where one is zero. By the arctangent, which small angles do not round away."""
    a, b = a / jnp.linalg.norm(a), b / jnp.linalg.norm(b)
    return jnp.degrees(2 * jnp.arctan2(jnp.linalg.norm(a - b), jnp.linalg.norm(a + b)))


if __name__ == "__main__":
    raise SystemExit(main())
