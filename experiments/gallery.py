"""Runs the experiments on the claims of the lectures, one after another, and writes the page that shows them all."""

import dataclasses
import importlib
import pathlib
import pkgutil
import shutil
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import tyro

import experiments
import funcnn as fnn
from experiments.common import record
from experiments.common.claims import WORDS, Experiment, MnistOptions

ORDER = (  # that of the course
    "xor", "composition_is_linear",
    "units_and_losses", "stable_softmax", "two_class_softmax", "mean_and_median",
    "universal_approximation", "activations", "maxout", "features", "kernels",
    "chain_rule_order", "optimizers", "vanishing_gradients", "initialization",
    "wide_and_regularized", "regularizers", "depth_folds_space", "depth_generalizes", "mnist_records",
)  # fmt: skip
RECORDS = pathlib.Path(__file__).parent / "records"
DOCS = pathlib.Path(__file__).parent.parent / "docs"
HEAD = """# Gallery

Claims that courses on feedforward networks make, each with an experiment that looks whether it holds. The verdict is
computed from the numbers, against criteria that stand beside it; what is random is drawn anew for each seed, and the
spread, as the bars in the figures, is the standard deviation over them. `python -m experiments` lists all commands, and
`python -m experiments all --data-dir DIR`, with the directory of MNIST's four files, runs those of
this page but for `mnist_records`, which takes hours.

"""
COURSE = "The [course](course/index.md) tells what the claims are about, in the order of this page.\n\n"


@dataclasses.dataclass(frozen=True)
class Config:
    """Runs the experiments on claims, and writes the gallery."""

    only: tuple[str, ...] | None = None
    """Experiments to run; unless given, all but those that take hours."""
    data_dir: pathlib.Path | None = None
    """Directory with MNIST's four files, which some experiments take; the environment variable FUNCNN_DATA unless
    given."""
    out: pathlib.Path = pathlib.Path("out")
    """Directory for records and figures, and for the page, gallery.md; made if it is missing."""
    keep: tyro.conf.FlagCreatePairsOff[bool] = False
    """Put records, figures and the page into the checkout too, which the docs are made of."""
    smoke: tyro.conf.FlagCreatePairsOff[bool] = False
    """Each for a moment, only to see that everything works."""


def claims() -> dict[str, Experiment]:
    """All experiments on claims by name, in the order of the course."""
    found = {}
    for module in pkgutil.iter_modules(experiments.__path__, f"{experiments.__name__}."):
        if not module.ispkg and not module.name.endswith("__main__"):
            experiment = getattr(importlib.import_module(module.name), "EXPERIMENT", None)
            if experiment is not None:
                found[experiment.name] = experiment
    return {name: found[name] for name in sorted(found, key=lambda name: (place(name), name))}


def place(name: str) -> int:
    """In the course; behind all others for what is not in it."""
    return ORDER.index(name) if name in ORDER else len(ORDER)


def run(argv: Sequence[str] | None = None) -> int:
    """`python -m experiments all`; the exit code is 0 if every claim holds, else 1."""
    config = tyro.cli(Config, args=argv, prog="python -m experiments all")
    known = claims()
    with record.one_line_errors(OSError, fnn.data.DataError):
        if config.keep and config.smoke:
            raise record.UsageError("--keep is for real runs, and --smoke is none: leave one of them out")
        if config.keep and config.out.resolve() == RECORDS.resolve():
            raise record.UsageError(f"--keep puts records into {RECORDS}, which --out is already: give another --out")
        if config.only is None:
            chosen = [name for name, experiment in known.items() if not experiment.long]
        else:
            chosen = list(dict.fromkeys(config.only))
            got = [repr(name) for name in chosen if name not in known] if chosen else ["none"]
            if got:
                raise record.UsageError(f"--only takes names of {', '.join(known)}, got {got[0]}")
        if not config.smoke and any(on_mnist(known[name]) for name in chosen):
            fnn.data.load_mnist(config.data_dir)  # whose absence is told before the first experiment, not after some
        record.directory(config.out)
        if (config.out / "gallery.md").is_dir():
            raise record.UsageError(f"{config.out / 'gallery.md'} is a directory: move it away, or give another --out")
        recorded(config.out)  # what is there already goes into the page: told before hours are spent if it cannot
    options = ["--out", str(config.out), *(["--smoke"] if config.smoke else [])]
    where = [] if config.data_dir is None else ["--data-dir", str(config.data_dir)]
    codes, failed = [], []
    for name in chosen:
        began = time.perf_counter()
        try:
            codes.append(known[name].run([*options, *(where if on_mnist(known[name]) else [])]))
        except SystemExit:  # it has said why, in one line; the others go on, and it is named at the end
            failed.append(name)
        except Exception:
            traceback.print_exc()
            failed.append(name)
        jax.clear_caches()  # thousands of compiled programs are more pieces of memory than Linux gives to one process
        print(f"--- {name}: {time.perf_counter() - began:.0f} s\n", flush=True)
    (config.out / "gallery.md").write_text(page(recorded(config.out), "."), encoding="utf-8")
    print(f"Page: {config.out / 'gallery.md'}")
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
        return 2
    if config.keep:
        for name in chosen:
            shutil.copy(config.out / f"{name}.json", RECORDS)
            shutil.copy(config.out / f"{name}.png", DOCS / "figures")
        (DOCS / "gallery.md").write_text(page(recorded(RECORDS), "figures", COURSE), encoding="utf-8")
    return max(codes)


def on_mnist(experiment: Experiment) -> bool:
    """Whether it takes MNIST."""
    return issubclass(experiment.options, MnistOptions)


def recorded(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The records of claims in a directory, in the order of the course."""
    paths = [folder / f"{name}.json" for name in claims()]
    found = {path: record.read(path) for path in paths if path.exists()}
    for path, one in found.items():
        if missing := {"name", "claim", "source", "verdict", "checks", "command", "numbers"} - one.keys():
            raise record.UsageError(f"{path} is no record, move it away: it has no {', '.join(sorted(missing))}")
        if one["name"] != path.stem or one["verdict"] not in WORDS.values() or not isinstance(one["checks"], list):
            raise record.UsageError(f"{path} is no record of {path.stem}: move it away")
        try:
            section(one, ".")
        except (KeyError, TypeError, AttributeError) as error:
            raise record.UsageError(f"{path} is no record, move it away: {error!r}") from error
    return list(found.values())


def page(records: Sequence[Mapping[str, Any]], figures: str, course: str = "") -> str:
    """The gallery of these records, whose figures are in a directory; with a sentence on the course in the docs."""
    lines = ["| claim | verdict |", "|---|---|"]
    lines += [f"| [{one['claim']}](#{one['name']}) | {verdict(one)} |" for one in records]
    return HEAD + course + "\n".join(lines) + "\n\n" + "\n".join(section(one, figures) for one in records)


def section(one: Mapping[str, Any], figures: str) -> str:
    """One claim: figure, criteria and what was found, verdict, command, source."""
    name = one["name"]
    checks = [
        f"| {cell(check['criterion'])} | {cell(check['found'])} | {word(check['holds'])} |" for check in one["checks"]
    ]
    said = "The numbers say nothing of the claim" if record.of_a_moment(one) else f"The claim **{one['verdict']}**"
    made = f"Python {one['python']}, JAX {one['packages']['jax']}, {one['device']['kind']}"
    return f"""## {name}

**{one["claim"]}**

![{one["claim"]}]({figures}/{name}.png)

| criterion | found | |
|---|---|---|
{chr(10).join(checks)}

{said}: `{one["command"]}` ({made}). Source: {one["source"]}.
"""


def verdict(one: Mapping[str, Any]) -> str:
    """Of a claim; a moment's run has none."""
    return "only a moment's run" if record.of_a_moment(one) else one["verdict"]


def cell(text: str) -> str:
    """Of a table."""
    return text.replace("|", "\\|")


def word(holds: bool) -> str:
    """Of one criterion."""
    return "holds" if holds else "**does not hold**"
