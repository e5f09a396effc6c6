"""Two processes that train together do what one does, and one goes on from what they saved."""

import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

pytestmark = pytest.mark.once

ROOT = pathlib.Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def run(of: int, folder: pathlib.Path, epochs: int) -> dict[str, np.ndarray]:
    """The parameters and the history of `of` processes."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.process", *map(str, (number, of, port, folder, epochs))],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(of)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * of, "\n".join(outputs)
    return dict(np.load(folder / f"of{of}.npz"))


def test_two_processes_train_as_one_does_and_one_resumes(tmp_path: pathlib.Path):
    one, two = run(1, tmp_path / "one", 3), run(2, tmp_path / "two", 3)
    assert sorted(one) == sorted(two) and len(one["loss"]) == 3
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-5, atol=1e-6, err_msg=name)  # float32, other sums
    longer, resumed = run(1, tmp_path / "one more", 5), run(1, tmp_path / "two", 5)
    for name in longer:
        np.testing.assert_allclose(resumed[name], longer[name], rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(resumed["loss"][:3], two["loss"])  # what the two saw is in the history
