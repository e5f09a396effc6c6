"""Time and memory of compiled programs. Times are compared in one process, in blocks that take turns."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np


class Program(NamedTuple):
    """A compiled function, and what its compilation says of it."""

    run: Callable[..., Any]
    trace_s: float  # Python to StableHLO
    compile_s: float  # StableHLO to machine code
    temp_bytes: int  # of temporaries; arguments and results are not counted
    flops: float

    def numbers(self) -> dict[str, float]:
        """All but the function, for a record."""
        return {name: value for name, value in self._asdict().items() if name != "run"}


def compiled(jitted: Any, *args: Any) -> Program:
    """Compiles a jitted function for arguments like these."""
    began = time.perf_counter()
    lowered = jitted.lower(*args)
    traced = time.perf_counter()
    program = lowered.compile()
    ended = time.perf_counter()
    memory, cost = program.memory_analysis(), program.cost_analysis() or {}
    return Program(program, traced - began, ended - traced, memory.temp_size_in_bytes, cost.get("flops", float("nan")))


def interleave(
    runs: Mapping[str, Callable[[], Any]], rounds: int, block_s: float, *, alike: bool = True
) -> dict[str, np.ndarray]:
    """Seconds per call of each run, one number a round.

    Each round has a block of calls for every run, as many calls as take about `block_s`; the order of the blocks is
    reversed from one round to the next. Whatever else the machine does thus strikes all runs alike. All blocks have as
    many calls; where runs take very different times, `alike=False` gives each as many as last `block_s`.
    """
    for run in runs.values():  # warms up
        jax.block_until_ready(run())
    once = {}
    for name, run in runs.items():
        began = time.perf_counter()
        jax.block_until_ready(run())
        once[name] = time.perf_counter() - began
    mean = sum(once.values()) / len(once)
    calls = {name: max(1, round(block_s / (mean if alike else once[name]))) for name in runs}
    seconds = {name: np.empty(rounds) for name in runs}
    for i in range(rounds):
        for name in list(runs)[:: 1 if i % 2 else -1]:
            began = time.perf_counter()
            for _ in range(calls[name]):
                jax.block_until_ready(runs[name]())
            seconds[name][i] = (time.perf_counter() - began) / calls[name]
    return seconds


def quartiles(values: np.ndarray) -> dict[str, float]:
    """Median, and the quartiles around it."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "low": float(low), "high": float(high)}
