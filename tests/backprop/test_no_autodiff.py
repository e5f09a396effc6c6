"""The hand-written backward pass has no autodiff inside, proved twice: by its source, and by running it without.

The two marked files, `autodiff.py` (the stand-in for missing rules) and `bridge.py` (`with_rules`), are what they say.
"""

import ast
import pathlib
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.interpreters import ad

import funcnn as fnn
from funcnn import backprop
from funcnn.backprop.rules import RULES
from tests.backprop.agree import draw_layer
from tests.problems import LAYERS, LOSSES, NETWORKS, draw_targets

PACKAGE = pathlib.Path(backprop.__file__).parent
MARKED = {"autodiff.py", "bridge.py"}

# Whatever differentiates, in any module of JAX.
DIFFERENTIATION = {
    "ad",
    "ad_checkpoint",
    "ad_util",
    "backward_pass",
    "check_grads",
    "check_jvp",
    "check_vjp",
    "checkpoint",
    "custom_derivatives",
    "custom_gradient",
    "custom_jvp",
    "custom_vjp",
    "fwd_and_bwd",
    "grad",
    "hessian",
    "interpreters",
    "jacfwd",
    "jacobian",
    "jacrev",
    "jet",
    "jvp",
    "linear_call",
    "linear_transpose",
    "linearize",
    "remat",
    "softmax_custom_jvp",
    "value_and_grad",
    "vjp",
}


def uses(source: str) -> list[str]:
    """Where a source reaches for a function of JAX (or of the marked files) that differentiates.

    Names are followed from their imports, so that a rule of our own may be called `vjp`, and `getattr` does not help.
    """
    tree = ast.parse(source)
    ours: set[str] = set()  # names bound to something of JAX, or to a marked file
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                parts = name.name.split(".")
                if parts[0] == "jax" or parts[-1] in ("autodiff", "bridge"):
                    ours.add(name.asname or parts[0])
                    found += [f"{node.lineno}: import {name.name}"] if DIFFERENTIATION.intersection(parts) else []
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            for name in node.names:
                if parts[0] == "jax":
                    ours.add(name.asname or name.name)
                    if DIFFERENTIATION.intersection([*parts, name.name]):
                        found.append(f"{node.lineno}: from {node.module} import {name.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in DIFFERENTIATION and _root(node) in ours:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.Name) and node.id in ("getattr", "__import__", "eval", "exec", "import_module"):
            found.append(f"{node.lineno}: {node.id}")
    return sorted(found)


def _root(node: ast.expr) -> str | None:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def test_the_source_of_the_rules_has_no_autodiff():
    sources = {path: path.read_text() for path in PACKAGE.rglob("*.py") if path.name not in MARKED}
    assert len(sources) >= 12
    assert {path.name: uses(text) for path, text in sources.items() if uses(text)} == {}


def test_the_marked_files_are_two_and_say_so():
    marked = {
        path
        for path in PACKAGE.rglob("*.py")
        if (ast.get_docstring(ast.parse(path.read_text())) or "")[:7] == "Marked:"
    }
    assert {path.relative_to(PACKAGE).as_posix() for path in marked} == MARKED
    assert all(uses(path.read_text()) for path in marked)


def test_the_engine_takes_only_the_stand_ins_from_the_marked_files():
    """`rule.py` makes the stand-ins for missing rules of `autodiff.py`, `residuals.py` compares; no rule imports it."""
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom | ast.Import)
        and {"autodiff", "bridge"}.intersection(
            [
                *(getattr(node, "module", None) or "").split("."),
                *(part for n in node.names for part in n.name.split(".")),
            ]
        )
    }
    assert importers == {"rule.py", "__init__.py", "residuals.py"}


@pytest.mark.parametrize(
    "planted",
    [
        "import jax\ndef bwd(f, x): return jax.grad(f)(x)",
        "import jax\nmine = jax.vjp",
        "import jax as j\ndef bwd(f, x): return j.value_and_grad(f)(x)",
        "from jax import vjp\n",
        "from jax import grad as derivative\n",
        "from jax import custom_derivatives as cd\n",
        "import jax.interpreters.ad\n",
        "from jax._src.interpreters import ad as a\n",
        "from jax.ad_checkpoint import checkpoint\n",
        "from jax.experimental.jet import jet\n",
        "import jax\nf = jax.interpreters.ad.linearize",
        "import jax\n@jax.custom_vjp\ndef f(x): return x",
        "import jax\ndef bwd(f, x): return jax.linear_transpose(f, x)",
        "import jax\nf = getattr(jax, 'gr' + 'ad')",
        "f = __import__('jax').grad",
        "import jax.test_util\nf = jax.test_util.check_grads",
    ],
)
def test_a_planted_use_is_found(planted: str):
    assert uses(planted)


def test_names_alone_are_not_uses():
    assert (
        uses('"""jax.grad in a docstring."""\nimport jax\ndef grad(vjp): return vjp.grad + jax.numpy.sum(vjp)\n') == []
    )


# ---------------------------------------------------------------------------------------------------------------------

OUTER = (
    "grad value_and_grad vjp jvp linearize jacfwd jacrev hessian jacobian linear_transpose checkpoint remat fwd_and_bwd"
)
INNER = "jvp vjp linearize linearize_jaxpr linearize_subtrace_2 jvp_subtrace_2 jvp_jaxpr backward_pass backward_pass3"
TRACES = "JVPTrace LinearizeTrace"  # the interpreters of differentiation: without one of them nothing is differentiated


class AutodiffWasUsedError(Exception):
    """Something differentiated while differentiation was off."""


@pytest.fixture(scope="module")
def no_autodiff() -> Iterator[None]:
    """JAX without its differentiation, and without what it has traced so far, which could hold some."""

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise AutodiffWasUsedError

    with pytest.MonkeyPatch.context() as patch:
        for name in OUTER.split():
            patch.setattr(jax, name, refuse)
        for name in INNER.split():
            patch.setattr(ad, name, refuse, raising=name in ("jvp", "linearize"))  # the others come and go
        for name in TRACES.split():
            patch.setattr(getattr(ad, name), "__init__", refuse)
        jax.clear_caches()
        yield
    jax.clear_caches()


REAL = {name: getattr(jax, name) for name in ("grad", "vjp", "jvp", "linearize", "value_and_grad")}


@pytest.mark.usefixtures("no_autodiff")
def test_with_differentiation_off_nothing_differentiates():
    """Neither by the public names nor by references that were taken before."""

    def square(x):
        return jnp.sum(x * jnp.tanh(x))

    x = jnp.ones(3)
    with pytest.raises(AutodiffWasUsedError):
        jax.grad(square)(x)
    attempts = {
        "grad": lambda: REAL["grad"](square)(x),
        "value_and_grad": lambda: REAL["value_and_grad"](square)(x),
        "vjp": lambda: REAL["vjp"](square, x),
        "jvp": lambda: REAL["jvp"](square, (x,), (x,)),
        "linearize": lambda: REAL["linearize"](square, x),
        "jit of grad": lambda: jax.jit(REAL["grad"](square))(x),
        "grad of jit": lambda: REAL["grad"](jax.jit(square))(x),
        "the stand-in": lambda: backprop.vjp(fnn.Tanh(), (), x, rules=backprop.Rules({}, missing="autodiff")),
        "the bridge": lambda: REAL["grad"](lambda x: backprop.with_rules(fnn.Tanh()).apply((), x).sum())(x),
    }
    for name, attempt in attempts.items():
        with pytest.raises(AutodiffWasUsedError):
            attempt()
            pytest.fail(f"{name} still works")


# A rule's Python runs when it is traced, and only then: what is traced without autodiff is a program without autodiff.
# So the layers and losses are traced, which is quick; the networks are also compiled and run.
EVERY_LAYER = {name: tuple(problem) for name, problem in LAYERS.items()} | {
    "cast": (fnn.Cast(fnn.Serial(fnn.Dense(2), fnn.Tanh()), "bfloat16"), (3,))
}


@pytest.mark.usefixtures("no_autodiff")
@pytest.mark.parametrize(("layer", "in_shape"), EVERY_LAYER.values(), ids=EVERY_LAYER.keys())
@pytest.mark.parametrize("train", [False, True], ids=["test", "train"])
def test_every_layer(
    layer: fnn.Layer, in_shape: tuple[int, ...], train: bool, key: jax.Array, rng: np.random.Generator
):
    def run(params, x, dy):
        y, pullback = backprop.vjp(layer, params, x, key=key, train=train)
        return y, pullback(dy)

    params, x, dy = draw_layer(rng, layer, in_shape, 4)
    y, (dparams, dx) = jax.eval_shape(run, params, x, dy)
    assert (y.shape, dx.shape) == (dy.shape, x.shape)
    assert jax.tree.structure(dparams) == jax.tree.structure(params)


@pytest.mark.usefixtures("no_autodiff")
@pytest.mark.parametrize("problem", LOSSES.values(), ids=LOSSES.keys())
def test_every_loss(problem, key: jax.Array):
    ctx, rule = backprop.Context(RULES), RULES[type(problem.loss)]

    def delta(outputs, targets):
        value, residuals = rule.fwd(problem.loss, targets, outputs, ctx)
        return rule.bwd(problem.loss, targets, residuals, value, ctx)[1]

    outputs = jnp.ones((4, *problem.out_shape))
    assert (
        jax.eval_shape(delta, outputs, draw_targets(problem.targets, key, 4, problem.out_shape)).shape == outputs.shape
    )


@pytest.mark.usefixtures("no_autodiff")
@pytest.mark.parametrize("problem", NETWORKS.values(), ids=NETWORKS.keys())
def test_every_network(problem, key: jax.Array):
    """With its loss and its penalty, in training; and its record."""
    params, batch = problem.draw(key)
    in_training = {"key": key, "train": True}
    run = backprop.value_and_grad(problem.objective)
    value, grads = jax.jit(lambda *args: run(*args, **in_training))(params, batch)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    record = jax.eval_shape(lambda *args: backprop.record(problem.objective)(*args, **in_training), params, batch)
    assert not any(entry.autodiff for entry in record.values())
