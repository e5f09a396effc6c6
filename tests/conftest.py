"""What every test runs under: strict promotion, eight pretended devices, seeds from its name, JAX's config kept."""

import os
import zlib
from collections.abc import Iterator

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)  # before the first array: meshes are tested on one machine
FLAGS = [
    # Most of the suite's time is compilation of programs that run for a millisecond. LLVM's optimizations are left out
    # of it; XLA's own, which the memory of a program depends on, are not.
    "--xla_backend_optimization_level=0",
    # Eight devices that wait for each other share the cores that there are. After 40 s, which a busy machine may need,
    # XLA would take them for stuck and end the process.
    "--xla_cpu_collective_call_terminate_timeout_seconds=300",
]
if jax.__version_info__ < (0, 11):  # JAX 0.12 has no such flag, and XLA ends the process of one that asks for it
    # Fusions are written without MLIR, which can take two fifths of a test's time.
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()


@pytest.fixture(autouse=True)
def strict_and_unchanged() -> Iterator[None]:
    """Mixed dtypes and ranks are errors inside, and no test may leave a setting behind."""
    before = dict(jax.config.values)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
    after = dict(jax.config.values)
    assert before == after, {k: (before[k], after[k]) for k in before if before[k] != after[k]}


@pytest.fixture(scope="module", autouse=True)
def programs_are_let_go() -> Iterator[None]:
    """A worker that keeps the programs of all modules grows to 5 GB, in ten thousands of pieces.

    Linux gives a process 65,530 of them, and at the next one it dies in the middle of a compilation.
    """
    yield
    jax.clear_caches()


def seed_of(name: str) -> int:
    """A seed from a test's name: it stays when other tests come and go."""
    return zlib.crc32(name.encode())


@pytest.fixture
def key(request: pytest.FixtureRequest) -> jax.Array:
    return jax.random.key(seed_of(request.node.nodeid))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng(seed_of(request.node.nodeid))


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test in both, with x64 switched on for the one that needs it."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield
