"""`python -m experiments` names every command."""

import os
import pathlib
import subprocess
import sys

import pytest

import experiments
from experiments.__main__ import main


def test_every_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    first, _, *printed = capsys.readouterr().out.splitlines()
    assert first == "python -m experiments all"
    root = pathlib.Path(experiments.__path__[0])
    commands = [
        ".".join(path.relative_to(root.parent).with_suffix("").parts)
        for folder in (root, root / "benchmarks")
        for path in folder.glob("[!_]*.py")
        if "def main(" in path.read_text(encoding="utf-8")
    ]
    assert {"experiments.step_cost", "experiments.benchmarks.peers"} <= set(commands)
    assert printed[::2] == [f"python -m {name}" for name in sorted(commands, key=lambda name: (name.count("."), name))]
    assert all(claim.startswith("    ") and claim.strip() for claim in printed[1::2])


@pytest.mark.skipif(os.name != "posix", reason="a closed pipe is told by a signal on POSIX only")
def test_a_reader_that_stops_reading_gives_no_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "experiments"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as listing:
        assert listing.stdout is not None and listing.stderr is not None
        listing.stdout.close()
        assert listing.stderr.read() == ""


def test_a_word_that_is_no_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    listed = "; without a word it lists what there is"
    for word, hint in (("everything", listed), ("xor", ": run python -m experiments.xor")):
        assert main([word]) == 2
        assert capsys.readouterr().err == f"error: python -m experiments takes all, got {word!r}{hint}\n"
    assert main(["--help"]) == 0
    assert "python -m experiments.xor" in capsys.readouterr().out
