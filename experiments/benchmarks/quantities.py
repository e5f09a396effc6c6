"""Quantities of single examples and of curvature cost little beside a gradient, and less than by BackPACK or Opacus.

On one network and batch: the time of each quantity over that of one gradient of the same library, and over the peer's
time for it. What is compared takes turns, in rounds of its own; compilation is apart. The values are compared too, in
float64 on the same weights.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import funcnn as fnn
from experiments.benchmarks import quantities_report as report
from experiments.benchmarks.blocks import Blocks, options
from experiments.benchmarks.networks import NETWORKS, Network
from experiments.benchmarks.quantities_peers import CLIP, PEERS, Problem, use_cores
from experiments.common import measure, record
from funcnn.backprop import quantities
from funcnn.layer import Key, Params
from funcnn.objective import Batch, Objective

AGREE_ON = 16  # examples on which values are compared, in float64
TOLERANCE = 1e-12  # seen was 2e-15
OPACUS_TOLERANCE = 1e-6  # Opacus adds 1e-6 to the norms that it divides by
PEER_MARK = 0.9  # of BackPACK's time
VMAP_MARK, MEMORY_MARK = 1 / 20, 1 / 50  # of the time and the temporary memory of jax.vmap(jax.grad)

# What computes a quantity: (params, batch, key) -> (loss and gradient or nothing, the quantity)
Function = Callable[[Params, Batch, Key], tuple[Any, Any]]


def from_rows(
    quantity: Callable[[fnn.backprop.Rows], Any], of: str = "loss", *, gradient: bool = True
) -> Callable[[Objective], Function]:
    """A quantity of the rows, with loss and gradient or alone."""

    def make(objective: Objective) -> Function:
        rows = fnn.backprop.rows(objective, of=of)

        def function(params: Params, batch: Batch, key: Key) -> tuple[Any, Any]:
            found = rows(params, batch, sample_key=key)
            return (found.value, found.grads) if gradient else (), quantity(found)

        return function

    return make


def beside_gradient(quantity: Callable[[Objective], Callable[..., Params]]) -> Callable[[Objective], Function]:
    """A quantity that has a function of its own, compiled together with loss and gradient."""

    def make(objective: Objective) -> Function:
        gradient, function = fnn.backprop.value_and_grad(objective), quantity(objective)
        return lambda params, batch, key: (gradient(params, batch), function(params, batch))

    return make


norms = from_rows(quantities.norms, gradient=False)
squares, variance = from_rows(quantities.sum_of_squares), from_rows(quantities.variance)
gradients = from_rows(quantities.gradients)
sampled_diagonal, diagonal = (from_rows(quantities.sum_of_squares, of) for of in ("fisher", "gauss_newton"))
kfac, kflr = (from_rows(quantities.kronecker_factors, of) for of in ("fisher", "gauss_newton"))
kfra, hessian = beside_gradient(fnn.backprop.kfra_factors), beside_gradient(fnn.backprop.hessian_diagonal)
clipped = from_rows(functools.partial(quantities.clipped_sum, bound=CLIP), gradient=False)

ALL, NONE, A = slice(None), slice(0), slice(1, None, 3)  # of a layer's factors: B of the bias, A and B of the weights


class Line(NamedTuple):
    """A line of the table: a quantity by us and by a peer."""

    label: str
    mark: float | None  # the most that it may take, over our gradient
    ours: Callable[[Objective], Function]
    peer: str = "backpack"
    theirs: str = ""  # BackPACK's extension
    peer_mark: float | None = PEER_MARK  # the most, over the peer's time
    same: slice = ALL  # the leaves whose values are compared
    tolerance: float = TOLERANCE
    activation: str = "relu"
    reuse: bool = False  # whether results are written over those of the last call
    heavy: bool = False  # takes much time or memory
    note: str = ""


DRAWN = "each library draws targets, so that values agree in expectation"
REUSED = "written over the results of the last call, which are donated"
NEW = "each call into fresh memory, as BackPACK does it"
FRESH = Line("per-example gradients, new", None, gradients, theirs="BatchGrad", peer_mark=None, heavy=True, note=NEW)
CLIPPED = Line("clipped sum, two passes", 2.0, clipped, "opacus-ghost", peer_mark=None, tolerance=OPACUS_TOLERANCE)
LINES = (
    Line("norms, without the gradient", 0.8, norms, theirs="BatchL2Grad", note="BackPACK's come with the gradient"),
    Line("sum of squared gradients", 1.4, squares, theirs="SumGradSquared"),
    Line("variance", 1.5, variance, theirs="Variance"),
    Line("Gauss-Newton diagonal, sampled", 1.75, sampled_diagonal, theirs="DiagGGNMC", same=NONE, note=DRAWN),
    Line("Gauss-Newton diagonal, exact", 4.4, diagonal, theirs="DiagGGNExact"),
    Line("K-FAC factors", 2.3, kfac, theirs="KFAC", same=A, note="A is compared; each library draws targets for B"),
    Line("KFLR factors", 8.5, kflr, theirs="KFLR"),
    Line("KFRA factors", 3.3, kfra, theirs="KFRA"),
    Line("Hessian diagonal, relu", 4.4, hessian, theirs="DiagHessian"),
    CLIPPED,
    # The heavy ones last, where they disturb no others.
    CLIPPED._replace(peer="opacus", heavy=True),
    FRESH._replace(label="per-example gradients, reused", mark=20, peer_mark=PEER_MARK, reuse=True, note=REUSED),
    FRESH,
    Line("norms, without the gradient", 0.8, norms, "vmap", peer_mark=VMAP_MARK, heavy=True),
    Line("Hessian diagonal, sigmoid", 250, hessian, theirs="DiagHessian", activation="sigmoid", heavy=True),
)


@dataclasses.dataclass(frozen=True)
class Config(Blocks):
    """Measures quantities of single examples and of curvature, by funcnn and by other libraries, in one run."""

    only: str = ""
    """Measure the quantities whose name contains this."""
    rounds: int = 15
    """Blocks of calls for each program; what is compared takes turns."""
    slow_rounds: int = 5
    """The same for what takes much time or memory."""
    block_s: float = 0.2
    """About how long a block lasts, at least one call."""

    def check(self) -> None:
        """Raises UsageError for values that no run can have."""
        super().check()
        if self.slow_rounds < 1:
            raise record.UsageError(f"--slow-rounds is positive, got {self.slow_rounds}")
        if not any(self.only in line.label for line in LINES):
            names = ", ".join(dict.fromkeys(line.label for line in LINES))
            raise record.UsageError(f"--only {self.only!r} is in none of the names: {names}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    config = options(Config, "experiments.benchmarks.quantities", argv)
    network = NETWORKS["784-512-512-10"]._replace(steps=1)
    if config.smoke:
        config = dataclasses.replace(config, rounds=1, slow_rounds=1, block_s=0.001)
        network = Network((12, 8, 8, 3), 4, 1, 0.0, 0.0)
    console = record.console()
    chosen = [line for line in LINES if config.only in line.label]
    about = {"command": record.command("experiments.benchmarks.quantities", argv), **record.environment()}
    with warnings.catch_warnings(), console.status("") as status:
        # PyTorch's, of hooks that work as their library means them to.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        use_cores(about["device"]["cores"])
        rows = []
        for line in chosen:
            status.update(line.label)
            rows.append(measured(line, network, config))
        for line, row in zip(chosen, rows, strict=True):
            status.update(f"{line.label}: values")
            row.update(agreement(line, network))
    console.print(report.as_table(rows, network))
    console.print(report.verdict(rows), highlight=False)
    used = [PEERS[line.peer] for line in chosen]
    found = {
        "config": {k: v for k, v in dataclasses.asdict(config).items() if k != "out"},
        "libraries": {name: version for p in used if not p.missing for name, version in p.versions.items()},
        "left_out": {p.label: "not installed" for p in used if p.missing},
        "network": network.name,
        "batch": network.batch,
        "clip": CLIP,
        "agree_on": AGREE_ON,
        "results": rows,
    }
    path = config.out / "quantities.json"
    record.write(path, about | found)
    print(f"Record: {path}")
    return int(any(row["agrees"] is False for row in rows))


@functools.cache
def first_batch(activation: str, network: Network) -> tuple[Problem, measure.Program]:
    """The network with a batch, and its compiled loss and gradient: the same for all lines."""
    problem = Problem.of(network.sizes, activation, *network.examples())
    gradient = jax.jit(fnn.backprop.value_and_grad(problem.objective))
    return problem, measure.compiled(gradient, problem.params, problem.batch)


def measured(line: Line, network: Network, config: Config) -> dict[str, Any]:
    """Times of the quantity and of a gradient, by us and by the peer if it is there."""
    (problem, gradient), peer = first_batch(line.activation, network), PEERS[line.peer]
    run, ours = program(line, problem)
    runs: dict[str, Callable[[], Any]] = {"ours": run, "gradient": lambda: gradient.run(problem.params, problem.batch)}
    theirs = None if peer.missing else peer.make(problem, line.theirs)
    if theirs is not None:
        runs |= {"theirs": theirs.run, "their_gradient": theirs.gradient}
    rounds = config.slow_rounds if line.heavy else config.rounds
    seconds = measure.interleave(runs, rounds, config.block_s, alike=False)
    found: dict[str, Any] = {
        "quantity": line.label,
        "activation": line.activation,
        "peer": peer.label,
        "peer_gradient": peer.gradient,
        "theirs": line.theirs,
        "note": line.note,
        "program": ours.numbers(),
        "seconds": {name: measure.quartiles(values) for name, values in seconds.items()},
        "over_gradient": bounded(seconds["ours"] / seconds["gradient"], line.mark),
    }
    if theirs is not None:
        found["theirs_over_gradient"] = measure.quartiles(seconds["theirs"] / seconds["their_gradient"])
        found["over_theirs"] = bounded(seconds["ours"] / seconds["theirs"], line.peer_mark)
        if theirs.temp_bytes is not None:
            found["memory_over_theirs"] = bounded(np.array([ours.temp_bytes / theirs.temp_bytes]), MEMORY_MARK)
    return found


def program(line: Line, problem: Problem) -> tuple[Callable[[], Any], measure.Program]:
    """Our quantity as a function without arguments, and what compiling it says."""
    function = line.ours(problem.objective)
    arguments = problem.params, problem.batch, jax.random.key(1)
    if not line.reuse:
        compiled = measure.compiled(jax.jit(function), *arguments)
        return lambda: compiled.run(*arguments), compiled

    # As a training loop would: the memory of the last results is donated for the next. Nothing is read of it, so that
    # it is kept by request.
    def onto(last: Any, *arguments: Any) -> Any:
        return function(*arguments)

    last = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(function, *arguments))
    compiled = measure.compiled(jax.jit(onto, donate_argnums=0, keep_unused=True), last, *arguments)

    def run() -> Any:
        nonlocal last
        last = compiled.run(last, *arguments)
        return last

    return run, compiled


def bounded(ratios: np.ndarray, mark: float | None) -> dict[str, Any]:
    """Quartiles of a ratio, and whether its median is at most the mark."""
    found = measure.quartiles(ratios)
    return found | {"mark": mark, "reached": None if mark is None else found["median"] <= mark}


def agreement(line: Line, network: Network) -> dict[str, Any]:
    """The largest |ours - theirs| / max |theirs| over the arrays that can be compared, in float64."""
    peer = PEERS[line.peer]
    found: dict[str, Any] = {"difference": None, "tolerance": line.tolerance, "agrees": None}
    if peer.missing or line.same == NONE:
        return found
    with jax.enable_x64(True):
        problem = Problem.of(network.sizes, line.activation, *(array[:AGREE_ON] for array in network.examples()))
        theirs = peer.make(problem, line.theirs)
        theirs.run()
        _, ours = jax.jit(line.ours(problem.objective))(problem.params, problem.batch, jax.random.key(1))
        difference = furthest(jax.tree.leaves(ours)[line.same], theirs.values()[line.same])
    return found | {"difference": difference, "agrees": difference <= line.tolerance}


def furthest(ours: Sequence[Any], theirs: Sequence[np.ndarray]) -> float:
    """max |a - b| / max |b| over pairs of arrays a, b of one shape; NaN if there is one."""
    if [np.shape(a) for a in ours] != [np.shape(b) for b in theirs]:
        raise ValueError(f"shapes differ: {[np.shape(a) for a in ours]} and {[np.shape(b) for b in theirs]}")
    return float(np.max([np.max(np.abs(a - b)) / np.max(np.abs(b)) for a, b in zip(ours, theirs, strict=True)]))


if __name__ == "__main__":
    raise SystemExit(main())
