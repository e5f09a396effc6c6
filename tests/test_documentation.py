"""Every public name has a docstring with an example, and every example prints what it says."""

import doctest
import importlib
import inspect
import pkgutil
import types
from collections.abc import Iterator

import jax
import pytest

import funcnn as fnn

MODULES = ["funcnn"] + [found.name for found in pkgutil.walk_packages(fnn.__path__, "funcnn.")]

# The modules that a user meets: what they import by name is what they offer.
PUBLIC = [
    "funcnn",
    "funcnn.backprop",
    "funcnn.backprop.learning",
    "funcnn.backprop.quantities",
    "funcnn.backprop.saving",
    "funcnn.data",
    "funcnn.data.augment",
    "funcnn.gradcheck",
    "funcnn.losses",
    "funcnn.penalties",
    "funcnn.train",
]

# Public names that their neighbours' examples show: exceptions, bases, what functions return, what only rules use.
NO_EXAMPLE = {
    "funcnn.LayerError",
    "funcnn.Activation",
    "funcnn.BatchError",
    "funcnn.Combinator",
    "funcnn.Part",
    "funcnn.losses.Loss",
    "funcnn.losses.LossError",
    "funcnn.losses.ClassLoss",
    "funcnn.penalties.Penalty",
    "funcnn.backprop.Context",
    "funcnn.backprop.Diagnosis",
    "funcnn.backprop.LayerDiagnosis",
    "funcnn.backprop.LayerRecord",
    "funcnn.backprop.LossRule",
    "funcnn.backprop.NonFinite",
    "funcnn.backprop.Outer",
    "funcnn.backprop.Residual",
    "funcnn.backprop.Residuals",
    "funcnn.backprop.Rows",
    "funcnn.backprop.quantities.Kronecker",
    "funcnn.backprop.saving.keep",
    "funcnn.backprop.RuleError",
    "funcnn.backprop.RULES",
    "funcnn.backprop.Static",
    "funcnn.gradcheck.LeafCheck",
    "funcnn.gradcheck.Report",
    "funcnn.losses.half_difference",
    "funcnn.losses.width",
    "funcnn.data.Dataset",
    "funcnn.data.DataError",
    "funcnn.data.MissingDataError",
    "funcnn.Exported",
    "funcnn.StorageError",
    "funcnn.load",
    "funcnn.train.CheckpointError",
    "funcnn.train.DataStreamError",
    "funcnn.train.NonFiniteError",
    "funcnn.train.State",
    "funcnn.train.TrainingError",
    "funcnn.train.fit_many",
}


def public_names(module: types.ModuleType) -> Iterator[tuple[str, object]]:
    """What a module offers: a package, all that it imports from itself; a file, what it defines."""
    package = hasattr(module, "__path__")
    for name, value in vars(module).items():
        if name.startswith("_") or isinstance(value, types.ModuleType):
            continue
        home = inspect.getmodule(value if inspect.isclass(value) or inspect.isfunction(value) else type(value))
        if home is not None and home.__name__.startswith("funcnn") and (package or home is module):
            yield name, value


def documented(value: object) -> object:
    """What carries the docstring: a class or function itself; a value such as `losses.mse`, its class."""
    return value if inspect.isclass(value) or inspect.isfunction(value) else type(value)


NAMES = [
    pytest.param(f"{module}.{name}", documented(value), id=f"{module}.{name}")
    for module in PUBLIC
    for name, value in public_names(importlib.import_module(module))
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_print_what_they_say(module: str):
    """Under JAX's usual promotion, as a reader has it; warnings are errors here too."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        failures, _ = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert failures == 0


@pytest.mark.parametrize(("name", "value"), NAMES)
def test_every_public_name_has_a_docstring_with_an_example(name: str, value: object):
    text = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__  # a base's does not count
    assert text, f"{name} has no docstring of its own"
    assert not text.startswith(f"{getattr(value, '__name__', '')}("), f"{name} has the docstring that dataclass writes"
    if name not in NO_EXAMPLE:
        assert "Example:" in text, f"{name} has no example"
        assert doctest.DocTestParser().get_examples(text), f"{name} has an example that does not run"


def test_the_tables_are_complete():
    names = {param.values[0] for param in NAMES}
    assert {
        "funcnn.Dense",
        "funcnn.losses.mse",
        "funcnn.penalties.l2",
        "funcnn.backprop.vjp",
        "funcnn.data.load_mnist",
    } <= names
    assert names >= NO_EXAMPLE
    assert len(names) > 60
