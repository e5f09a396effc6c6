"""`python -m experiments` names every command."""

import pathlib

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


def test_a_word_that_is_no_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["everything"]) == 2
    assert capsys.readouterr().err == "error: python -m experiments takes nothing, or all, got 'everything'\n"
