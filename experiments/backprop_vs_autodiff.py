"""The hand-written backward pass and `jax.value_and_grad` train one network to the same weights, at the same cost.

From one start, with the same batches in the same order, a network is trained on real data by both, in jitted steps
with optax. A third training, the control, has autodiff's gradient too but starts one rounding away: how far it drifts
is how far rounding alone takes two trainings apart, and the measure of the difference between the first two.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.progress import track

import funcnn as fnn
from experiments.common import measure, networks, record
from experiments.common.comparison import AUTODIFF, BACKPROP, CONTROL, compare_curves, draw, side_by_side, verdict
from experiments.common.training import stepper, train_together
from funcnn.data import DataError, Dataset, load_digits, load_mnist

GRADIENTS = {AUTODIFF: "autodiff", BACKPROP: "backprop"}


def _hint(default: str) -> str:
    return f"(default: {default})"


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a network twice from one start, by autodiff and by the hand-written backward pass, and compares.

    Prints the network, the gradient checker's table, and both trainings side by side; writes a figure and a JSON
    record. The exit code is 0 if the gradients and the trainings agree, 1 if they do not, and 2 if the options or the
    data files are wrong.
    """

    data: Literal["digits", "mnist"] = "digits"
    """Scikit-learn's 1,797 digits with a quarter held out, or MNIST, whose files you have."""
    data_dir: Annotated[pathlib.Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint=_hint("$FUNCNN_DATA"))] = (
        None
    )
    """Where the MNIST files are."""
    net: Literal["mlp", "maxout", "residual", "graph"] = "mlp"
    """The kind of network: dense layers; maxout layers of 5 pieces; residual blocks; a graph with fan-out."""
    hidden: tuple[int, ...] = (512, 512)
    """Units of each hidden layer."""
    activation: Literal["relu", "tanh", "silu", "sigmoid", "gelu", "elu", "softplus"] = "relu"
    """The activation of the hidden layers (maxout has its own)."""
    dropout: float = 0.0
    """The probability to drop a hidden unit."""
    loss: Literal["softmax_cross_entropy", "mse", "bernoulli_nll"] = "softmax_cross_entropy"
    """The loss; the last two see one-hot targets."""
    l2: float = 0.0
    """Weight decay l: l / 2 times the sum of the squared weights is added to the loss."""
    optimizer: Literal["sgd", "momentum", "adam"] = "adam"
    """The optimizer; its learning rate decays to zero along a cosine."""
    learning_rate: Annotated[
        float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint=_hint("sgd 0.1, momentum 0.02, adam 0.001"))
    ] = None
    """The learning rate at the start."""
    epochs: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=_hint("30 for the digits, 10 for MNIST"))
    ] = None
    """Passes over the training examples."""
    batch_size: int = 128
    """Examples a step."""
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    """Precision; bfloat16 computes on float32 weights."""
    seed: int = 0
    """Draws the start, the order of the examples, and the dropout."""
    out: pathlib.Path = pathlib.Path("out")
    """Directory for the figure and the record; made if it is missing."""
    smoke: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Run a small network for a few steps, only to see that everything works."""

    def check(self) -> None:
        """Raises UsageError for values that no run can have."""
        counts = {"hidden": min(self.hidden, default=0), "epochs": self.epochs or 1, "batch-size": self.batch_size}
        for name, value in counts.items():
            if value < 1 or (name == "epochs" and self.epochs == 0):
                raise record.UsageError(f"--{name} takes positive integers")
        if not 0 <= self.dropout < 1:
            raise record.UsageError(f"--dropout is a probability in [0, 1), got {self.dropout}")
        if not 0 <= self.l2 < np.inf:
            raise record.UsageError(f"--l2 is not negative, got {self.l2}")
        if self.learning_rate is not None and not 0 < self.learning_rate < np.inf:
            raise record.UsageError(f"--learning-rate is positive, got {self.learning_rate}")
        if not 0 <= self.seed < 2**31:
            raise record.UsageError(f"--seed is in 0 .. 2^31 - 1, got {self.seed}")

    def settled(self, data: Dataset) -> "Config":
        """With everything filled in that depends on the rest."""
        rates = {"sgd": 0.1, "momentum": 0.02, "adam": 0.001}
        filled = dataclasses.replace(
            self,
            epochs=self.epochs or {"digits": 30, "mnist": 10}[self.data],
            learning_rate=self.learning_rate or rates[self.optimizer],
            batch_size=min(self.batch_size, len(data.x_train)),
        )
        return dataclasses.replace(filled, hidden=(32, 32), epochs=3) if self.smoke else filled

    def objective(self, classes: int) -> fnn.Objective:
        """Network, loss and penalty."""
        activation = networks.ACTIVATIONS[self.activation]
        net: fnn.Layer = {
            "mlp": lambda: networks.mlp(self.hidden, activation, classes, self.dropout),
            "maxout": lambda: networks.maxout(self.hidden, 5, classes, self.dropout),
            "residual": lambda: networks.residual(self.hidden, activation, classes, self.dropout),
            "graph": lambda: networks.fan_out(self.hidden, activation, classes, self.dropout),
        }[self.net]()
        return fnn.Objective(net, getattr(fnn.losses, self.loss), fnn.penalties.l2(self.l2) if self.l2 else None)

    def update_rule(self, steps: int) -> optax.GradientTransformation:
        """The optimizer, for a training of so many steps."""
        rate = optax.cosine_decay_schedule(self.learning_rate or 0, steps)
        return {
            "sgd": lambda: optax.sgd(rate),
            "momentum": lambda: optax.sgd(rate, momentum=0.9, nesterov=True),
            "adam": lambda: optax.adam(rate),
        }[self.optimizer]()

    def order(self, n: int) -> Iterator[np.ndarray]:
        """Which examples make each batch. Each epoch has a new order, and leaves out the few that fill no batch."""
        rng = np.random.default_rng(self.seed)
        for _ in range(self.epochs or 0):
            yield from rng.permutation(n)[: n - n % self.batch_size].reshape(-1, self.batch_size)


def run(config: Config, data: Dataset, console: Console) -> dict[str, Any]:
    """The experiment itself: prints as it goes, and returns all numbers."""
    (x, labels), (x_test, labels_test) = data.arrays("float64" if config.dtype == "float64" else "float32")
    y = labels if config.loss == "softmax_cross_entropy" else np.eye(data.classes, dtype=x.dtype)[labels]
    objective = config.objective(data.classes)
    if config.dtype == "bfloat16":
        objective = objective.replace(net=fnn.Cast(objective.net, config.dtype))
    params = objective.net.init(jax.random.key(config.seed), x.shape[1:])
    probe = x[: config.batch_size], y[: config.batch_size]

    def check(params: Any) -> fnn.gradcheck.Report:
        return fnn.gradcheck.compare(objective, params, probe, seed=config.seed)

    console.print(f"{data!r}\n{objective!r}\n", highlight=False, soft_wrap=True)
    console.print(fnn.summary(objective.net, x.shape[1:]))

    console.print("\n[bold]The gradients before training[/bold], against jax.grad and against finite differences:\n")
    before = check(params)
    console.print(before)

    order = list(config.order(len(x)))
    optimizer = config.update_rule(len(order))
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    console.print(
        f"\n[bold]Training[/bold] from one start, {len(order)} steps of {config.batch_size} examples in "
        f"{config.dtype}: by jax.grad, by hand, and as a control by jax.grad from a start one rounding away.",
        highlight=False,
    )
    programs = {
        name: measure.compiled(
            fnn.train.step(objective, optimizer, gradient), fnn.train.start(optimizer, params, key), probe
        )
        for name, gradient in GRADIENTS.items()
    }
    starts = {name: fnn.train.start(optimizer, params, key) for name in GRADIENTS}
    starts[CONTROL] = fnn.train.start(optimizer, one_rounding_away(params, config.dtype, config.seed), key)
    states, curves = train_together(
        {name: programs[name if name in programs else AUTODIFF].run for name in starts},
        starts,
        ((x[chosen], y[chosen]) for chosen in track(order, "training", console=console, transient=True)),
        reference=AUTODIFF,
    )
    agreement = compare_curves(curves, config.dtype)
    after = check(states[BACKPROP].params)
    predict, observe = jax.jit(objective.net.apply), jax.jit(fnn.backprop.record(objective))
    outputs = {name: np.asarray(predict(states[name].params, x_test)) for name in GRADIENTS}
    correct = {name: int(np.sum(np.argmax(scores, axis=-1) == labels_test)) for name, scores in outputs.items()}
    seconds = measure.interleave(
        {
            name: stepper(program.run, fnn.train.start(optimizer, params, key), probe)
            for name, program in programs.items()
        },
        rounds=3 if config.smoke else 21,
        block_s=0.01 if config.smoke else 0.05,
    )
    cost = {name: {"step_s": measure.quartiles(seconds[name]), **programs[name].numbers()} for name in GRADIENTS}
    kept = np.unique(np.linspace(0, len(order) - 1, 300).astype(int))
    for what in ("loss", "params"):
        agreement[f"{what}_bound"] = agreement[f"{what}_bound"][kept]
    result = {
        "config": {k: v for k, v in dataclasses.asdict(config).items() if k not in ("data_dir", "out")},
        "data": {"name": data.name, "training": len(x), "test": len(x_test)},
        "objective": repr(objective),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "agree": before.passed and after.passed and agreement["agree"],
        "agreement": agreement,
        "test_correct": correct,
        "test_accuracy": {name: count / len(x_test) for name, count in correct.items()},
        "cost": cost,
        "step_ratio": measure.quartiles(seconds[BACKPROP] / seconds[AUTODIFF]),
        "steps": len(order),
        "curves": {"step": kept + 1}
        | {name: {k: v[kept] for k, v in c._asdict().items()} for name, c in curves.items()},
        "delta": {
            "before": mean_delta(observe(params, probe)),
            "after": mean_delta(observe(states[BACKPROP].params, probe)),
        },
        "checker": {"before": json.loads(before.to_json()), "after": json.loads(after.to_json())},
    }
    console.print(side_by_side(result))
    console.print(verdict(result), highlight=False)
    return result


def one_rounding_away(params: Any, dtype: str, seed: int) -> Any:
    """The parameters, each a rounding of `dtype` larger or smaller."""
    rng, eps = np.random.default_rng(seed), float(jnp.finfo(dtype).eps)
    return jax.tree.map(lambda p: p * (1 + eps * rng.choice([-1, 1], p.shape).astype(p.dtype)), jax.device_get(params))


def mean_delta(entries: dict[str, fnn.backprop.LayerRecord]) -> dict[str, float]:
    """The mean |delta| of each layer, delta being the gradient of the objective for the layer's output."""
    return {
        f"{path} {type(entry.layer).__name__}": float(np.mean(np.abs(np.asarray(entry.dy, np.float64))))
        for path, entry in entries.items()
        if entry.dy is not None
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit code."""
    config = tyro.cli(Config, args=argv, prog="python -m experiments.backprop_vs_autodiff")
    with record.one_line_errors(DataError, ImportError, OSError):
        config.check()
        data = load_digits() if config.data == "digits" else load_mnist(config.data_dir)
        config.out.mkdir(parents=True, exist_ok=True)
    config = config.settled(data)
    with jax.enable_x64(config.dtype == "float64"), jax.default_matmul_precision("highest"):
        result = run(config, data, record.console())
    path = config.out / f"backprop_vs_autodiff-{config.data}"
    again = record.command("experiments.backprop_vs_autodiff", argv)
    record.write(path.with_suffix(".json"), {"command": again, **record.environment(), **result})
    draw(path.with_suffix(".png"), result)
    print(f"Figure and record: {path}.png, {path}.json")
    return 0 if result["agree"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
