"""What holds for every command: its help explains all options, and a mistake is told in one line."""

import dataclasses
from typing import Any

import pytest

from experiments import (
    backprop_vs_autodiff,
    depth_generalizes,
    kernels,
    kfac_autoencoder,
    learning_rules,
    maxout,
    mixed_precision,
    regularizers,
    step_cost,
    wide_and_regularized,
)
from experiments.benchmarks import accelerator, linear_cross_entropy, memory, overheads, peers, quantities, scaling

# Options that no run can have, and what the error says of each.
COMMANDS: dict[Any, dict[str, str]] = {
    backprop_vs_autodiff: {
        "--data mnist": "--data-dir",
        "--data mnist --data-dir /there/is/none": "/there/is/none",
        "--hidden 0": "--hidden",
        "--epochs 0": "--epochs",
        "--dropout 1": "--dropout",
        "--learning-rate nan": "--learning-rate",
        "--seed -1": "--seed",
        "--out /dev/null/out": "/dev/null",
    },
    kfac_autoencoder: {"--steps 0": "--widths", "--data mnist --data-dir /there/is/none": "/there/is/none"},
    learning_rules: {
        "--epochs 0": "--epochs",
        "--tune nan": "--tune",
        "--only hebb": "'hebb'",
        "--data mnist --data-dir /there/is/none": "/there/is/none",
    },
    mixed_precision: {"--epochs 0": "--epochs", "--data mnist --data-dir /there/is/none": "/there/is/none"},
    depth_generalizes: {"--parameters 0": "--parameters", "--data-dir /there/is/none": "/there/is/none"},
    kernels: {"--units 76": "--units", "--rounds 0": "--rounds"},
    maxout: {"--dropout nan": "--dropout", "--data-dir /there/is/none": "/there/is/none"},
    regularizers: {
        "--only l3": "'l3'",
        "--strengths 5": "--strengths",
        "--data-dir /there/is/none": "/there/is/none",
    },
    wide_and_regularized: {"--examples 900": "--examples", "--wrong 1": "--wrong"},
    step_cost: {"--rounds 0": "--rounds", "--only lstm": "'lstm'", "--dtypes": "--dtypes"},
    accelerator: {"--rounds 0": "--rounds", "--parts": "--parts"},
    linear_cross_entropy: {"--chunks 4 0": "--chunks", "--rounds 0": "--rounds"},
    memory: {"--rounds 0": "--rounds"},
    overheads: {"--block-s nan": "--block-s"},
    peers: {
        "--rounds 0": "--rounds",
        "--block-s nan": "--block-s",
        "--networks 1-2": "'1-2'",
        "--libraries caffe": "'caffe'",
    },
    quantities: {"--rounds 0": "--rounds", "--slow-rounds 0": "--slow-rounds", "--only hvp": "'hvp'"},
    scaling: {
        "--rounds 0": "--rounds",
        "--block-s nan": "--block-s",
        "--sample 9 --runs 8": "--sample",
        "--strategy pmap": "'pmap'",
    },
}
NAMES = {command: command.__name__.rpartition(".")[2] for command in COMMANDS}


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [(command, options, said) for command, errors in COMMANDS.items() for options, said in errors.items()],
    ids=[f"{NAMES[command]} {options}" for command, errors in COMMANDS.items() for options in errors],
)
def test_an_error_is_one_line(command: Any, options: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.main(options.split())
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES.values())
def test_help_explains_every_option(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(command.Config):
        assert f"--{field.name.replace('_', '-')}" in text
