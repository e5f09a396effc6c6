"""What a loop script answers: a line of JSON on stdout for each line of JSON on stdin.

{"cmd": "build", "network": [...]} makes the loop, and trains for an epoch twice: the first compiles.
{"cmd": "train", "epochs": k} trains from the start for k epochs; the answer has the seconds, loss and metric.
{"cmd": "memory"} gives the peak, and {"cmd": "quit"} ends. A script may answer more commands.
"""

import json
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks import loops
from experiments.benchmarks.networks import Network


class Loop(NamedTuple):
    """How a library trains. Each training begins with the same weights, so that all trainings are the same work."""

    start: Callable[[], Any]  # the state before the first step, made of these weights
    train: Callable[[Any, int], tuple[float, float]]  # (state, epochs) -> loss and metric of the last epoch, all done


def serve(make: Callable[..., Loop], **more: Callable[[], dict[str, Any]]) -> None:
    """Answers commands until "quit". `make(network, x, y, *argv)` gives the loop; `more` are further commands."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    print(json.dumps({"import_s": time.perf_counter() - loops.STARTED}), file=answers)
    loop = None
    for line in sys.stdin:
        request = json.loads(line)
        match request.pop("cmd"):
            case "build":
                sizes, *others = request["network"]
                network = Network(tuple(sizes), *others)
                loop, answer = _build(make, network, *network.examples())
            case "train":
                assert loop is not None, "build comes first"
                answer = _train(loop, **request)
            case "memory":
                answer = {"peak_bytes": _peak_bytes()}
            case "quit":
                break
            case other:
                answer = more[other]()
        print(json.dumps(answer), file=answers)


def _build(make: Callable[..., Loop], network: Network, x: np.ndarray, y: np.ndarray) -> tuple[Loop, dict[str, Any]]:
    began = time.perf_counter()
    loop = make(network, x, y, *sys.argv[1:])
    loop.train(loop.start(), 1)
    first_s = time.perf_counter() - began
    warm = _train(loop, 1)
    return loop, {**warm, "compile_s": max(0.0, first_s - warm["seconds"])}


def _train(loop: Loop, epochs: int) -> dict[str, Any]:
    # The start is timed for all: `fit`, PyTorch and scikit-learn make their optimizer's state where they train.
    began = time.perf_counter()
    loss, metric = loop.train(loop.start(), epochs)
    return {"seconds": time.perf_counter() - began, "loss": float(loss), "metric": float(metric)}


def _peak_bytes() -> int:
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # ru_maxrss counts the parent that the process was forked from, too
        return next(1024 * int(line.split()[1]) for line in status.open(encoding="ascii") if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
