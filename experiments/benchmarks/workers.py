"""The libraries, each in a process of its own; only one of them works at any time."""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, NamedTuple

import experiments
from experiments.benchmarks.networks import Network

ROOT = pathlib.Path(experiments.__path__[0]).parent
# Each build compiles, also where an earlier run has left the result in a cache.
COLD = {"JAX_ENABLE_COMPILATION_CACHE": "false", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}

LEAST_EPOCHS = 3  # in a block, so that it is not the start of a training that is measured


class Library(NamedTuple):
    """A training loop to measure."""

    label: str
    script: tuple[str, ...]  # the file in `loops`, and its arguments
    module: str  # what has to be installed
    package: str  # whose version is recorded
    idiom: str  # how it trains, in a line
    peer: bool = True  # whether it is another library

    @property
    def missing(self) -> bool:
        """Whether it is not installed."""
        return importlib.util.find_spec(self.module) is None

    @property
    def version(self) -> str | None:
        """Of its package, where that is installed as one."""
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(self.package)


LIBRARIES = {
    "funcnn-autodiff": Library(
        "fit, autodiff", ("funcnn", "autodiff"), "funcnn", "funcnn", "train.fit(..., gradient='autodiff')", peer=False
    ),
    "funcnn-backprop": Library(
        "fit, backprop", ("funcnn", "backprop"), "funcnn", "funcnn", "train.fit(..., gradient='backprop')", peer=False
    ),
    "scan": Library("bare scan", ("scan", "epoch"), "jax", "jax", "a jitted lax.scan an epoch, donated", peer=False),
    "scan-run": Library(
        "bare scan, one call", ("scan", "run"), "jax", "jax", "the same, all epochs in one call", peer=False
    ),
    "flax-linen": Library("Flax linen", ("flax_linen",), "flax", "flax", "TrainState, jitted step, NumPy shuffles"),
    "flax-nnx": Library(
        "Flax nnx", ("flax_nnx",), "flax", "flax", "nnx.Optimizer, MultiMetric, nnx.jit step in cached_partial"
    ),
    "equinox": Library(
        "Equinox", ("equinox",), "equinox", "equinox", "filter_jit step, filter_value_and_grad, NumPy shuffles"
    ),
    "haiku": Library("Haiku", ("haiku",), "haiku", "dm-haiku", "transform, jitted update, NumPy shuffles"),
    "torch-eager": Library(
        "PyTorch eager", ("pytorch", "eager"), "torch", "torch", "optim.Adam, rows by torch.randperm, no DataLoader"
    ),
    "torch-compiled": Library(
        "PyTorch compiled", ("pytorch", "compiled"), "torch", "torch", "the same with torch.compile(model)"
    ),
    "keras": Library("Keras on JAX", ("keras",), "keras", "keras", "compile(jit_compile=True), fit(shuffle=True)"),
    "scikit-learn": Library(
        "scikit-learn", ("sklearn",), "sklearn", "scikit-learn", "MLPClassifier.fit: the loss, no other metric"
    ),
}


class WorkerError(Exception):
    """A loop script ended before it was told to."""


class Worker:
    """A process that runs one loop script."""

    def __init__(self, script: tuple[str, ...], log: IO[bytes]):
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"experiments.benchmarks.loops.{script[0]}", *script[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **COLD, "PYTHONPATH": os.pathsep.join(paths)},
        )

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Sends a command and waits for the answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it died of is in the log
            self._process.stdin.write(json.dumps({"cmd": command, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer; the first, without a command, says how long the imports took."""
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        self._process.wait()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()
        raise WorkerError(said[-1] if said else f"it ended with code {self._process.returncode}")

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError), self._process as process:
            process.kill()


@contextlib.contextmanager
def workers(names: list[str], network: Network) -> Iterator[tuple[dict[str, Worker], dict[str, Any], dict[str, str]]]:
    """Starts and builds one library after the other: those that work, what each answered, and why others do not."""
    started: dict[str, Worker] = {}
    built: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for name in names:
            if LIBRARIES[name].missing:
                left_out[name] = "not installed"
                continue
            worker = Worker(LIBRARIES[name].script, stack.enter_context(tempfile.TemporaryFile()))
            stack.callback(worker.close)
            try:
                first = {**worker.answer(), **worker.ask("build", network=network)}
            except WorkerError as error:
                left_out[name] = f"failed: {error}"
            else:
                started[name] = worker
                built[name] = {
                    "import_s": first["import_s"],
                    "compile_s": first["compile_s"],
                    "epoch_s": first["seconds"],
                }
        yield started, built, left_out


def epochs_for(train: Callable[[int], float], seconds: float, block_s: float) -> int:
    """How many epochs last about `block_s`, at least LEAST_EPOCHS, where a training of one epoch took `seconds`.

    `train(epochs)` returns its seconds. A training of one epoch is no measure of many where its start has a cost.
    """
    epochs = 1
    while seconds < block_s / 2:
        epochs = min(16 * epochs, max(epochs + 1, round(epochs * block_s / seconds)))
        seconds = train(epochs)
    return max(LEAST_EPOCHS, round(epochs * block_s / seconds))


def take_turns(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """What each returns in each round; the order is reversed from one round to the next."""
    found: dict[str, list[Any]] = {name: [] for name in runs}
    for i in range(rounds):
        for name in list(runs)[:: -1 if i % 2 else 1]:
            found[name].append(runs[name]())
    return found
