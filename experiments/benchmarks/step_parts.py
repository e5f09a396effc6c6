"""Where the time of a training step goes, and what other ways of writing it would change.

For the two large networks of the peers' benchmark: programs of many steps that hold the matrix products alone, then
loss and gradients, then Adam, then the whole step of `fit` with shuffled batches; and the whole step with Adam over one
flat vector, with the loop unrolled, and with the weights stored transposed. All in one process, in blocks that take
turns, beside the rate of one large product.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.table import Table

import funcnn as fnn
from experiments.benchmarks.blocks import Blocks, options
from experiments.benchmarks.networks import LEARNING_RATE, NETWORKS, Network
from experiments.common import measure, record
from funcnn.layer import Key, Params, Shape

PARTS = {
    "products": "the matrix products of a step, one after another, and nothing else",
    "gradient": "loss and gradients, and parameters moved by them",
    "adam": "the same with Adam, on one batch again and again",
    "step": "the whole: batches gathered in a new order, loss and metric added up",
}
TRIED = {
    "flat": "Adam over one flat vector (optax.flatten)",
    "unrolled": "four steps in one turn of the loop",
    "transposed": "weights stored as (K, D), so that a product reads rows of both",
}


@dataclasses.dataclass(frozen=True)
class Config(Blocks):
    """Measures the parts of a training step."""

    rounds: int = 15
    """Blocks of calls for each program, which take turns."""
    block_s: float = 1.0
    """About how long a block lasts."""


@dataclasses.dataclass(frozen=True)
class Transposed(fnn.Layer):
    """A dense layer whose weights are stored as (K, D): z = x w^T + b."""

    features: int

    def init(self, key: Key, in_shape: Shape) -> Params:
        params = fnn.Dense(self.features).init(key, in_shape)
        return {"w": params["w"].T, "b": params["b"]}

    def apply(self, params: Params, x: jax.Array, *, key: Key | None = None, train: bool = False) -> jax.Array:
        return x @ params["w"].T + params["b"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    config = options(Config, "experiments.benchmarks.step_parts", argv)
    chosen = [network for network in NETWORKS.values() if network.large]
    if config.smoke:
        config = dataclasses.replace(config, rounds=1, block_s=0.05)
        chosen = [Network((32, 16, 16, 10), 16, 4, 0.0, 0.0, large=True)]
    console = record.console()
    results = []
    for network in chosen:
        with console.status(network.name):
            results.append(measured(network, config))
        console.print(as_table(results[-1]))
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k != "out"}
    about = {"command": record.command("experiments.benchmarks.step_parts", argv), **record.environment()}
    path = config.out / "step_parts.json"
    record.write(path, {**about, "config": settings, "parts": PARTS, "tried": TRIED, "results": results})
    print(f"Record: {path}")
    return 0


def measured(network: Network, config: Config) -> dict[str, Any]:
    """Seconds a step of each program, and the rate of one large product."""
    x, y = map(jnp.asarray, network.examples())
    runs = {name: functools.partial(run, x, y) for name, run in programs(network).items()}
    size = 64 if config.smoke else 2048
    a, b = jax.random.normal(jax.random.key(0), (2, size, size))
    product = jax.jit(jnp.matmul)
    seconds = measure.interleave({**runs, "one product": lambda: product(a, b)}, config.rounds, config.block_s)
    rates = 2 * size**3 / seconds.pop("one product")
    steps = {name: values / network.steps for name, values in seconds.items()}
    return {
        "network": network.name,
        "batch": network.batch,
        "flops": network.flops,
        "product_gflops": measure.quartiles(rates / 1e9),
        "step_us": {name: measure.quartiles(values * 1e6) for name, values in steps.items()},
        "share": {name: measure.quartiles(network.flops / values / rates) for name, values in steps.items()},
        "against_step": {name: measure.quartiles(values / steps["step"]) for name, values in steps.items()},
    }


def programs(network: Network) -> dict[str, Callable[..., Any]]:
    """Each a function of the data that takes as many steps as an epoch has."""
    adam = optax.adam(LEARNING_RATE)
    plain = objective_of(network, fnn.Dense)
    key = jax.random.key(0)
    params = plain.net.init(key, (network.sizes[0],))
    return {
        "products": products(network, params),
        "gradient": loop(network, plain, optax.sgd(LEARNING_RATE), params, shuffled=False),
        "adam": loop(network, plain, adam, params, shuffled=False),
        "step": loop(network, plain, adam, params),
        "flat": loop(network, plain, optax.flatten(adam), params),
        "unrolled": loop(network, plain, adam, params, unroll=4),
        "transposed": loop(
            network,
            objective_of(network, Transposed),
            adam,
            objective_of(network, Transposed).net.init(key, (network.sizes[0],)),
        ),
    }


def objective_of(network: Network, dense: Callable[[int], fnn.Layer]) -> fnn.Objective:
    """The network's objective, its dense layers made by `dense`."""
    *hidden, outputs = network.sizes[1:]
    layers = [layer for width in hidden for layer in (dense(width), fnn.Relu())]
    loss = fnn.losses.mse if network.regression else fnn.losses.softmax_cross_entropy
    return fnn.Objective(fnn.Serial(*layers, dense(outputs)), loss)


def loop(
    network: Network,
    objective: fnn.Objective,
    optimizer: optax.GradientTransformation,
    params: Params,
    *,
    shuffled: bool = True,
    unroll: int = 1,
) -> Callable[..., Any]:
    """An epoch of training as a scan over rows, written here so that its parts can be left out."""

    @jax.jit
    def epoch(params: Params, x: jax.Array, y: jax.Array) -> Any:
        rows = jax.random.permutation(jax.random.key(1), len(x)).reshape(network.steps, network.batch)
        fixed = x[: network.batch], y[: network.batch]

        def step(carry: Any, index: jax.Array) -> tuple[Any, None]:
            params, state, total = carry
            batch = (x[index], y[index]) if shuffled else fixed
            value, grads = jax.value_and_grad(objective)(params, batch)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state, total + value), None

        return jax.lax.scan(step, (params, optimizer.init(params), jnp.zeros(())), rows, unroll=unroll)[0]

    return functools.partial(epoch, params)


def products(network: Network, params: Params) -> Callable[..., Any]:
    """The products of forward and backward pass alone: z = x w, dw = x^T dz, and dx = dz w^T but in the first layer."""
    weights = [layer["w"] for layer in params if layer]

    @jax.jit
    def epoch(weights: Any, x: jax.Array, y: jax.Array) -> Any:
        def step(_: Any, carry: Any) -> Any:
            inputs, kept = [carry[0]], []
            for w in carry[1]:
                inputs.append(inputs[-1] @ w)
            dz = inputs.pop()
            for w, h in zip(reversed(carry[1]), reversed(inputs), strict=True):
                kept.append(h.T @ dz)
                dz = dz @ w.T if h is not inputs[0] else dz
            # All are used, by one number each, so that none is left out and no pass over them is added.
            used = sum(k[0, 0] for k in kept) * 1e-30
            return carry[0] + used, carry[1]

        return jax.lax.fori_loop(0, network.steps, step, (x[: network.batch], weights))

    return functools.partial(epoch, weights)


def as_table(result: dict[str, Any]) -> Table:
    """A line for each program."""
    rate = result["product_gflops"]["median"]
    table = Table(
        title=f"{result['network']}, batch {result['batch']}; one large product: {rate:.0f} Gflop/s",
        title_justify="left",
    )
    for name in ("program", "us a step", "share of the product's rate", "time / whole step"):
        table.add_column(name)
    for name in itertools.chain(PARTS, TRIED):
        table.add_row(
            f"{name}: {(PARTS | TRIED)[name]}",
            f"{result['step_us'][name]['median']:,.0f}",
            f"{100 * result['share'][name]['median']:.0f} %",
            f"{result['against_step'][name]['median']:.3f}",
        )
    return table


if __name__ == "__main__":
    raise SystemExit(main())
