"""What an experiment on one claim is made of: options, numbers, checks with a criterion, a figure, and a record."""

import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import tyro
from rich.table import Table

import funcnn as fnn
from experiments.common import record

MOST = 2**31 - 1  # of whole numbers, such as seeds
FLOAT32 = float(np.finfo(np.float32).max)
WORDS = {True: "holds", False: "does not hold"}


@dataclasses.dataclass(frozen=True)
class Options:
    """What every experiment can be told."""

    seeds: int = 5
    """How many times everything that is random is drawn anew. One says nothing of chance: criteria that want more than
    some standard errors fail then."""
    out: pathlib.Path = pathlib.Path("out")
    """Directory for the figure and the record; made if it is missing."""
    smoke: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """For a moment, only to see that everything works: with small numbers of its own, and a verdict that means
    nothing."""

    may_be_zero: ClassVar[tuple[str, ...]] = ()
    below: ClassVar[dict[str, float]] = {}
    at_most: ClassVar[dict[str, int]] = {}
    at_least: ClassVar[dict[str, int]] = {}
    several: ClassVar[dict[str, int]] = {}

    def check(self) -> None:
        """Raises UsageError for values that no run can have.

        Numbers are positive, and those of a list grow from one to the next, of which there is at least one. Subclasses
        say by name which numbers may be 0 too, or are below, at most, or at least, some number, and how many values a
        list has.
        """
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            option = f"--{name.replace('_', '-')}"
            values = value if isinstance(value, tuple) else (value,)
            numbers = [one for one in values if isinstance(one, int | float) and not isinstance(one, bool)]
            for number in numbers:
                if not (0 < number < np.inf or (number == 0 and name in self.may_be_zero)):
                    raise record.UsageError(f"{option} is positive, got {number}")
                if not number < self.below.get(name, np.inf):
                    raise record.UsageError(f"{option} is below {self.below[name]:g}, got {number}")
                if number > (most := self.at_most.get(name, MOST if isinstance(number, int) else FLOAT32)):
                    shown = f"{most:,}" if isinstance(most, int) else f"{most:g}"
                    raise record.UsageError(f"{option} is at most {shown}, got {number:,}")
                if number < (least := self.at_least.get(name, 0)):
                    raise record.UsageError(f"{option} is at least {least}, got {number}")
            if isinstance(value, tuple) and len(value) < (least := self.several.get(name, 1 if field.default else 0)):
                raise record.UsageError(f"{option} takes at least {least} values, got {len(value)}")
            if any(a >= b for a, b in itertools.pairwise(numbers)):
                raise record.UsageError(f"{option} takes numbers that grow, got {' '.join(map(str, numbers))}")


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
        """Measures, judges, draws and writes; returns the exit code: 1 if the claim does not hold, else 0."""
        module = f"experiments.{self.name}"
        config = tyro.cli(self.options, args=argv, prog=f"python -m {module}", description=self.claim)
        path = config.out / self.name
        with record.one_line_errors(OSError, fnn.data.DataError, fnn.train.NonFiniteError):
            config.check()
            if config.smoke:
                config = self.momentary(config, sys.argv[1:] if argv is None else argv)
            record.directory(config.out)
            self.spare(path, config.smoke)
            numbers = self.measure(config)
            checks = self.judge(numbers)
            holds = all(check.holds for check in checks)
            settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("out", "data_dir", "smoke")}
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
        if config.smoke:
            console.print("A moment's run: the numbers say nothing of the claim.", highlight=False)
        else:
            console.print(f"The claim {WORDS[holds]}.", style="bold green" if holds else "bold red")
        print(f"Figure and record: {path}.png, {path}.json")
        return 0 if holds or config.smoke else 1

    def momentary(self, config: Options, argv: Sequence[str]) -> Options:
        """The options of a moment's run; raises UsageError where others were given in their place."""
        given = {word.partition("=")[0].replace("_", "-") for word in argv}
        for name in self.smoke:
            if (option := f"--{name.replace('_', '-')}") in given:
                raise record.UsageError(f"--smoke has numbers of its own: leave it out, or {option}")
        return dataclasses.replace(config, **self.smoke)

    def spare(self, path: pathlib.Path, smoke: bool) -> None:
        """Raises UsageError where a moment's run would take the place of a real one, or a directory stands there."""
        for made in (path.with_suffix(".json"), path.with_suffix(".png")):
            if made.is_dir():
                raise record.UsageError(f"{made} is a directory: move it away, or give another --out")
        if smoke and (old := path.with_suffix(".json")).exists() and not record.of_a_moment(record.read(old)):
            raise record.UsageError(f"{old} is of a real run, which --smoke does not replace: give another --out")


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
    return mean if len(values) == 1 else f"{mean} ± {deviation(values):.2g} ({len(values)} seeds)"


def deviation(values: Any, axis: int = -1) -> Any:
    """The standard deviation over the seeds, along an axis; 0 of one value."""
    values = np.asarray(values, float)
    return values.std(axis=axis, ddof=min(1, values.shape[axis] - 1))


def more(a: Any, b: Any, errors: float = 3.0) -> bool:
    """Whether the mean of a over the seeds is above that of b, by more than some standard errors of the difference.

    One value is a constant, without a spread; two of them say nothing of chance, and the answer is no.
    """
    a, b = np.asarray(a, float).ravel(), np.asarray(b, float).ravel()
    error = np.sqrt(sum(deviation(v) ** 2 / len(v) for v in (a, b)))
    return bool(max(len(a), len(b)) > 1 and a.mean() - b.mean() > errors * error)
