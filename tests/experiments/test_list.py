"""`python -m experiments` names every script."""

import pathlib

import pytest

import experiments
from experiments.__main__ import main


def test_every_script_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    printed = capsys.readouterr().out
    scripts = [path.stem for path in pathlib.Path(experiments.__path__[0]).glob("[!_]*.py")]
    assert scripts
    for name in scripts:
        assert f"python -m experiments.{name}\n" in printed
