"""What an experiment on one claim is made of: options, numbers, checks with a criterion, a figure, and a record."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import tyro
from rich.table import Table

import funcnn as fnn
from experiments.common import record

WORDS = {True: "holds", False: "does not hold"}


@dataclasses.dataclass(frozen=True)
class Options:
    """What every experiment can be told."""

    seeds: int = 5
    """How many times everything that is random is drawn anew."""
    out: pathlib.Path = pathlib.Path("out")
    """Directory for the figure and the record; made if it is missing."""
    smoke: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """For a moment, only to see that everything works; the verdict means nothing."""

    def check(self) -> None:
        """Raises UsageError for values that no run can have: numbers are positive unless a subclass says otherwise."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int | float) and not isinstance(number, bool) and not 0 < number < np.inf:
                    raise record.UsageError(f"--{field.name.replace('_', '-')} is positive, got {number}")


@dataclasses.dataclass(frozen=True)
class MnistOptions(Options):
    """What experiments on MNIST can be told; a moment's run takes scikit-learn's digits, which are always there."""

    data_dir: pathlib.Path | None = None
    """Directory with MNIST's four files; the environment variable FUNCNN_DATA unless given."""

    def dataset(self) -> fnn.data.Dataset:
        """The images as bytes, and their labels."""
        return fnn.data.load_digits() if self.smoke else fnn.data.load_mnist(self.data_dir)


@dataclasses.dataclass(frozen=True)
class Check:
    """One part of a verdict.

    Attributes:
        criterion: what has to be seen, with the mark, in words.
        found: what was seen, with the spread over the seeds.
        holds: whether it is what has to be seen.
    """

    criterion: str
    found: str
    holds: bool


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A claim and how it is looked at.

    Attributes:
        name: of the script, the record and the figure.
        claim: a sentence that may be wrong.
        source: who makes it, and where.
        options: the class of the script's options.
        measure: from the options to the numbers, a dict that JSON can hold.
        judge: from the numbers alone to the checks, all of which have to hold.
        draw: writes the figure of the numbers to a path.
        smoke: options for a moment's run.
        long: whether it takes so long that it is run by its own command only, and not with all others.
    """

    name: str
    claim: str
    source: str
    options: type[Options]
    measure: Callable[[Any], dict[str, Any]]
    judge: Callable[[dict[str, Any]], list[Check]]
    draw: Callable[[pathlib.Path, dict[str, Any]], None]
    smoke: dict[str, Any] = dataclasses.field(default_factory=dict)
    long: bool = False

    def run(self, argv: Sequence[str] | None = None) -> int:
        """Measures, judges, draws and writes; returns the exit code: 0 if the claim holds, else 1."""
        module = f"experiments.{self.name}"
        config = tyro.cli(self.options, args=argv, prog=f"python -m {module}", description=self.claim)
        if config.smoke:
            config = dataclasses.replace(config, **self.smoke)
        with record.one_line_errors(OSError, fnn.data.DataError):
            config.check()
            config.out.mkdir(parents=True, exist_ok=True)
            numbers = self.measure(config)
        checks = self.judge(numbers)
        holds = all(check.holds for check in checks)
        settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("out", "data_dir", "smoke")}
        path = config.out / self.name
        record.write(
            path.with_suffix(".json"),
            {
                "name": self.name, "claim": self.claim, "source": self.source,
                "verdict": WORDS[holds], "checks": [dataclasses.asdict(check) for check in checks],
                "command": record.command(module, argv), **record.environment(), "config": settings,
                "numbers": numbers,
            },
        )  # fmt: skip
        self.draw(path.with_suffix(".png"), numbers)
        console = record.console()
        console.print(self.claim, style="bold", highlight=False)
        console.print(as_table(checks))
        console.print(f"The claim {WORDS[holds]}.", style="bold green" if holds else "bold red")
        print(f"Figure and record: {path}.png, {path}.json")
        return 0 if holds else 1


def as_table(checks: Sequence[Check]) -> Table:
    """A line for each check."""
    table = Table(show_lines=True)
    for name in ("criterion", "found", ""):
        table.add_column(name)
    for check in checks:
        table.add_row(check.criterion, check.found, WORDS[check.holds])
    return table


def spread(values: Any, digits: int = 3) -> str:
    """Mean and standard deviation over the seeds, such as "0.25 ± 0.01"; of one value alone, that."""
    values = np.asarray(values, float).ravel()
    mean = f"{values.mean():.{digits}g}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):.2g} ({len(values)} seeds)"


def more(a: Any, b: Any, errors: float = 3.0) -> bool:
    """Whether the mean of a over the seeds is above that of b, by more than some standard errors of the difference."""
    a, b = np.asarray(a, float).ravel(), np.asarray(b, float).ravel()
    error = np.sqrt(sum(v.var(ddof=1) / len(v) if len(v) > 1 else 0.0 for v in (a, b)))
    return bool(a.mean() - b.mean() > errors * error)
