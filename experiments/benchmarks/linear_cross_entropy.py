"""A last layer of many classes with `linear_cross_entropy`: a twelfth of the temporary memory, in no more time.

Value and gradients of a network that ends in 16,384 classes, for 4,096 examples of 256 features, jitted, in one process
where all programs take turns. The marks are at most 1/12 of the temporary memory, and 1.0 times the time, of
`jax.value_and_grad` with `softmax_cross_entropy`, and with optax's loss of whole logits too.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.table import Table

import funcnn as fnn
from experiments.benchmarks.blocks import Blocks, options
from experiments.common import measure, record

MEMORY_MARK, TIME_MARK = 1 / 12, 1.0
BASELINES = ("softmax_cross_entropy", "optax")
PROGRAMS = {
    "softmax_cross_entropy": "jax.value_and_grad of Dense and losses.softmax_cross_entropy",
    "optax": "jax.value_and_grad of Dense and optax.softmax_cross_entropy_with_integer_labels",
    "by autodiff": "jax.value_and_grad of Dense and losses.linear_cross_entropy",
    "by hand": "backprop.value_and_grad of the same",
    "one by one": "jax.value_and_grad of the mean of losses.linear_cross_entropy((x, w, b), y)",
}


@dataclasses.dataclass(frozen=True)
class Config(Blocks):
    """Measures memory and time of `linear_cross_entropy`, against the same loss of whole logits."""

    examples: int = 4096
    """N, in one batch."""
    features: int = 256
    """D, the inputs of the last layer."""
    classes: int = 16384
    """K."""
    chunks: tuple[int, ...] = (32, 64, 256, 512)
    """Other chunks than the one that is chosen by size, each a program by hand."""
    rounds: int = 15
    """Blocks of calls of each program; all take turns."""

    def check(self) -> None:
        super().check()
        if min(self.examples, self.features, self.classes, *self.chunks) < 1:
            raise record.UsageError("--examples, --features, --classes and --chunks are positive")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    config = options(Config, "experiments.benchmarks.linear_cross_entropy", argv)
    if config.smoke:
        config = dataclasses.replace(config, examples=64, features=8, classes=256, chunks=(4,), rounds=2, block_s=0.01)
    console = record.console()
    results = []
    for hidden in (True,) if config.smoke else (False, True):
        with console.status("with a hidden layer" if hidden else "the last layer alone"):
            results.append(compare(hidden, config))
        console.print(as_table(results[-1]))
    console.print(verdict(results), highlight=False)
    path = config.out / "linear_cross_entropy.json"
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k != "out"}
    about = {"command": record.command("experiments.benchmarks.linear_cross_entropy", argv), **record.environment()}
    marks = {"memory": MEMORY_MARK, "time": TIME_MARK}
    record.write(path, {**about, "config": settings, "marks": marks, "programs": PROGRAMS, "results": results})
    print(f"Record: {path}")
    return 0


def compare(hidden: bool, config: Config) -> dict[str, Any]:
    """All programs of one network: compiled apart, and then timed in turns; and how far their gradients differ."""
    layers = (fnn.Dense(config.features), fnn.Relu()) if hidden else ()
    net = fnn.Serial(*layers, fnn.Dense(config.classes))
    key_params, key_x, key_y = jax.random.split(jax.random.key(0), 3)
    params = net.init(key_params, (config.features,))
    x = jax.random.normal(key_x, (config.examples, config.features))
    batch = x, jax.random.randint(key_y, (config.examples,), 0, config.classes)
    programs = {
        name: measure.compiled(jax.jit(gradient), params, batch) for name, gradient in gradients(net, config).items()
    }
    runs = {name: functools.partial(program.run, params, batch) for name, program in programs.items()}
    values = {name: jax.tree.map(np.asarray, run()) for name, run in runs.items()}
    seconds = measure.interleave(runs, config.rounds, config.block_s)
    return {
        "network": repr(net),
        "programs": {
            name: {
                "seconds": measure.quartiles(seconds[name]),
                **programs[name].numbers(),
                "difference": difference(values[name], values["softmax_cross_entropy"]),
                "against": {
                    other: {
                        "memory": programs[name].temp_bytes / programs[other].temp_bytes,
                        "time": measure.quartiles(seconds[name] / seconds[other]),
                    }
                    for other in BASELINES
                },
            }
            for name in programs
        },
    }


def gradients(net: fnn.Serial, config: Config) -> dict[str, Callable[..., Any]]:
    """Functions `(params, batch) -> (value, gradients)`, by the names in `PROGRAMS`, and for each other chunk."""
    linear = fnn.losses.linear_cross_entropy
    *body, _ = net.layers

    def by_optax(params: Any, batch: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(net.apply(params, batch[0]), batch[1]).mean()

    def one_by_one(params: Any, batch: Any) -> jax.Array:
        features = fnn.Serial(*body).apply(params[:-1], batch[0]) if body else batch[0]
        return jnp.mean(linear((features, params[-1]["w"], params[-1]["b"]), batch[1]))

    return {
        "softmax_cross_entropy": jax.value_and_grad(fnn.Objective(net, fnn.losses.softmax_cross_entropy)),
        "optax": jax.value_and_grad(by_optax),
        "by autodiff": jax.value_and_grad(fnn.Objective(net, linear)),
        "by hand": fnn.backprop.value_and_grad(fnn.Objective(net, linear)),
        "one by one": jax.value_and_grad(one_by_one),
        **{f"chunk {c}": fnn.backprop.value_and_grad(fnn.Objective(net, linear(chunk=c))) for c in config.chunks},
    }


def difference(got: Any, want: Any) -> float:
    """The largest difference of an array, over its largest number."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)


def as_table(result: dict[str, Any]) -> Table:
    """A line for each program."""
    table = Table(title=f"{result['network']}: value and gradients", title_justify="left")
    for column in ("program", "temporary MB", "seconds", *(f"memory, time / {other}" for other in BASELINES)):
        table.add_column(column, justify="left" if column == "program" else "right")
    for name, row in result["programs"].items():
        against = (row["against"][other] for other in BASELINES)
        table.add_row(
            name,
            f"{row['temp_bytes'] / 1e6:.1f}",
            f"{row['seconds']['median']:.3f}",
            *(f"1/{1 / ratio['memory']:.1f}, {ratio['time']['median']:.2f}" for ratio in against),
        )
    return table


def verdict(results: list[dict[str, Any]]) -> str:
    """Which marks are met, in words."""
    lines = []
    for result in results:
        for name in ("by autodiff", "by hand"):
            against = result["programs"][name]["against"]
            met = all(
                ratio["memory"] <= MEMORY_MARK and ratio["time"]["median"] <= TIME_MARK for ratio in against.values()
            )
            lines.append(f"{result['network']}, {name}: both marks {'met' if met else 'MISSED'}")
    return "\n".join([f"Memory at most 1/{1 / MEMORY_MARK:.0f}, time at most {TIME_MARK:.2f}:", *lines])


if __name__ == "__main__":
    raise SystemExit(main())
