"""README and docs: every snippet is run as it is printed, and every public name is on an API page, once."""

import doctest
import io
import pathlib
import re
import types
from collections import Counter
from collections.abc import Iterator

import jax
import pytest

import funcnn
from funcnn import backprop, data, gradcheck, losses, penalties, train
from funcnn.backprop import learning, quantities, saving
from funcnn.data import augment

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)]
FENCE = re.compile(r"^(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
API_NAME = re.compile(r"^\.\. (?:auto\w+|py:\w+):: (funcnn[\w.]*)$", re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]\d+)?(?![\w.])")
NOISE = doctest.register_optionflag("NOISE")  # the numbers are rounding errors: only their size has to be as printed
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Checker(doctest.OutputChecker):
    """Compares as doctest does; under NOISE, each number to a factor of a hundred."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        if not optionflags & NOISE:
            return super().check_output(want, got, optionflags)
        # Without its numbers; and the line below a table's head is as long as the numbers are.
        plain_want, plain_got = (re.sub(r"-{2,}", "--", NUMBER.sub("#", text)) for text in (want, got))
        sizes = ([abs(float(number)) + 1e-17 for number in NUMBER.findall(text)] for text in (want, got))
        return super().check_output(plain_want, plain_got, optionflags) and all(
            0.01 <= w / g <= 100 for w, g in zip(*sizes, strict=True)
        )


def fences(text: str) -> Iterator[tuple[str, int]]:
    """The code of each ```python fence of a page, and the lines above it."""
    for match in FENCE.finditer(text):
        indent = match["indent"]
        code = "".join(line.removeprefix(indent) for line in match["code"].splitlines(keepends=True))
        yield code, text.count("\n", 0, match.start("code"))


def run_page(text: str, name: str) -> str:
    """Runs the snippets of a page in one namespace, one after another; returns a report, empty where all is as printed.

    A snippet with `>>>` has to print what stands there; one without has to run.
    """
    report = io.StringIO()
    namespace: dict[str, object] = {"__name__": name}
    runner = doctest.DocTestRunner(Checker(), verbose=False, optionflags=OPTIONS)
    for code, line in fences(text):
        if ">>>" in code:
            examples = doctest.DocTestParser().get_examples(code, name)
            # A name of its own: an error raised through a function of another fence has its traceback printed too.
            test = doctest.DocTest(examples, namespace, f"{name}:{line}", name, line, code)
            runner.run(test, out=report.write, clear_globs=False)
            namespace = test.globs
        else:
            # As many empty lines in front as the page has, so that a traceback shows the page's own line.
            exec(compile("\n" * line + code, name, "exec"), namespace)
    return report.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_snippet_prints_what_the_page_says(page: pathlib.Path) -> None:
    # Readers do not run under the tests' strict promotion.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        report = run_page(page.read_text(encoding="utf-8"), str(page.relative_to(ROOT)))
    assert not report, report


def test_a_wrong_snippet_is_found_with_its_line() -> None:
    page = "Text.\n\n```python\n>>> x = 2\n```\n\n```bash\nnot run\n```\n\n```python\n>>> x + 1\n4\n```\n"
    report = run_page(page, "page")
    assert "line 12" in report
    assert "Got:\n    3" in report


@pytest.mark.parametrize(
    ("got", "passes"),
    [("a  3e-17 1.0", True), ("a 3e-12  1.0", False), ("b 3e-17 1.0", False), ("a nan 1.0", False), ("a 3e-17", False)],
)
def test_noise_is_compared_by_its_size(got: str, passes: bool) -> None:
    page = f"```python\n>>> print({got!r})  # doctest: +NOISE\na 1.1e-16 1.0\n```\n"
    assert (not run_page(page, "page")) == passes


def public_names() -> Iterator[str]:
    """The names that a reader may use: those that a public module has of its own or hands on from its folder."""
    for module in (funcnn, losses, penalties, backprop, learning, quantities, saving, gradcheck, data, augment, train):
        for name, value in vars(module).items():
            if name.startswith("_") or isinstance(value, types.ModuleType):
                continue
            home = value.__module__ if hasattr(value, "__module__") else type(value).__module__
            own = home == module.__name__ or home.startswith(module.__name__ + ".")
            if own or name.isupper():  # a constant
                yield f"{module.__name__}.{name}"


def test_every_public_name_is_on_one_api_page() -> None:
    listed = [name for page in (ROOT / "docs" / "api").glob("*.md") for name in API_NAME.findall(page.read_text())]
    assert not [name for name, count in Counter(listed).items() if count > 1]
    modules = {
        "funcnn.losses",
        "funcnn.backprop.saving",
        "funcnn.data.augment",
        "funcnn.backprop.learning",
    }  # described as a whole, above their names
    assert set(listed) - modules == set(public_names())
