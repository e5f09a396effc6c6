"""One step: the same by every gradient function, with every optimizer, compiled once, and reusing its state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcnn as fnn
from tests.train.problems import KEY, NET, OBJECTIVE, ROUNDING, assert_close, assert_same, examples, start

OPTIMIZERS: dict[str, optax.GradientTransformation] = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adagrad": optax.adagrad(0.1),
    "rmsprop": optax.rmsprop(0.01),
    "adam": optax.adam(0.01),
    "adamw": optax.adamw(0.01, weight_decay=0.1),
    "schedule": optax.sgd(optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 5)),
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1)),
    "masked": optax.masked(optax.sgd(0.1), lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
    "multi-steps": optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
    "plateau": optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
    "line search": optax.lbfgs(memory_size=3),
    "max norm": optax.chain(optax.sgd(1.0), fnn.train.max_norm(0.5)),
}


def by_hand(optimizer: optax.GradientTransformation, state: fnn.train.State, batch: Any) -> tuple[Any, Any, jax.Array]:
    """A step written out."""
    key = jax.random.fold_in(state.key, state.step)
    value, grads = jax.value_and_grad(OBJECTIVE)(state.params, batch, key=key, train=True)
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
        grads, state.opt_state, state.params, value=value, grad=grads,
        value_fn=lambda params: OBJECTIVE(params, batch, key=key, train=True),
    )  # fmt: skip
    return optax.apply_updates(state.params, updates), opt_state, value


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_gradient_update_and_nothing_else(name: str):
    optimizer = OPTIMIZERS[name]
    step = fnn.train.step(OBJECTIVE, optimizer)
    state, batch = fnn.train.start(optimizer, start(), KEY), examples(8)
    reference = fnn.train.start(optimizer, start(), KEY)
    for _ in range(3):
        params, opt_state, value = jax.jit(by_hand, static_argnums=0)(optimizer, reference, batch)
        reference = fnn.train.State(params, opt_state, reference.step + 1, reference.key)
        state, metrics = step(state, batch)
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    assert_close(state.params, reference.params, ROUNDING["float32"])
    assert state.step == 3
    assert step._cache_size() == 1, "traced once: no state of a weak type"


@pytest.mark.parametrize("gradient", ["autodiff", "backprop"])
def test_an_optimizer_that_asks_is_given_the_function_that_was_differentiated(gradient: str):
    """Of the same batch with the same dropout: its value and gradient at the parameters are those of the step."""

    def update(updates: Any, state: Any, params: Any = None, *, value: Any, grad: Any, value_fn: Any, **_: Any) -> Any:
        again, slope = jax.value_and_grad(value_fn)(params)
        errors = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), (again, slope, slope), (value, grad, updates))
        return updates, jnp.maximum(state, jnp.stack(jax.tree.leaves(errors)).max())

    as_optax: Any = update
    asking = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(()), as_optax)
    step, state = fnn.train.step(OBJECTIVE, asking, gradient), fnn.train.start(asking, start(), KEY)
    for _ in range(3):
        state, _ = step(state, examples(8))
    assert state.opt_state < ROUNDING["float32"]


def own_gradient(objective: fnn.Objective, has_aux: bool = False) -> Any:
    """A user's gradient function: by the rules, with one of them replaced."""
    return fnn.backprop.value_and_grad(objective, has_aux=has_aux, rules=fnn.backprop.RULES)


def test_gradient_functions_swap():
    states = []
    for gradient in ("autodiff", "backprop", jax.value_and_grad, own_gradient):
        optimizer = optax.sgd(0.1)
        state, batch = fnn.train.start(optimizer, start(), KEY), examples(8)
        step = fnn.train.step(OBJECTIVE, optimizer, gradient, metrics={"accuracy": fnn.train.accuracy})
        metrics: dict[str, jax.Array] = {}
        for _ in range(3):
            state, metrics = step(state, batch)
        states.append(state)
        assert sorted(metrics) == ["accuracy", "loss"] and 0 <= metrics["accuracy"] <= 1
    for state in states[1:]:
        assert_close(state.params, states[0].params, ROUNDING["float32"])


def test_the_state_is_used_up_and_the_parameters_are_not():
    params, optimizer = start(), optax.adam(1e-2)
    state = fnn.train.start(optimizer, params, KEY)
    old = state.params[0]["w"]
    fnn.train.step(OBJECTIVE, optimizer)(state, examples(8))
    assert old.is_deleted(), "donated"
    assert not params[0]["w"].is_deleted(), "copied by start"


def test_a_weighted_batch_counts_by_weight():
    optimizer = optax.sgd(0.1)
    x, y = examples(8)
    net = fnn.Serial(*(layer for layer in NET.layers if not isinstance(layer, fnn.Dropout)))
    step = fnn.train.step(OBJECTIVE.replace(net=net), optimizer, metrics={"accuracy": fnn.train.accuracy})
    params = net.init(jax.random.key(1), (5,))
    twice, one = step(fnn.train.start(optimizer, params, KEY), (x[[0, 0, 1]], y[[0, 0, 1]]))
    weighted, two = step(fnn.train.start(optimizer, params, KEY), (x[:2], y[:2], np.array([2, 1], np.float32)))
    assert_close((twice.params, one), (weighted.params, two), ROUNDING["float32"])


def test_augmentation_gets_a_key_of_its_own_each_step():
    seen = []

    def noise(key, batch):
        jax.debug.callback(lambda data: seen.append(tuple(data.tolist())), jax.random.key_data(key))
        x, y = batch
        return x + jax.random.normal(key, x.shape), y

    optimizer = optax.sgd(0.1)
    step = fnn.train.step(OBJECTIVE, optimizer, augment=[noise, noise], prepare=lambda batch: (batch[0] / 2, batch[1]))
    state, batch = fnn.train.start(optimizer, start(), KEY), examples(8)
    for _ in range(3):
        state, _ = step(state, batch)
    jax.effects_barrier()
    assert len(seen) == len(set(seen)) == 6


@pytest.mark.parametrize("name", ["augment", "prepare"])
def test_what_a_function_does_to_a_batch_is_checked(name: str):
    x, y = examples(8)
    batch = x, y, np.ones(8, np.float32)
    for change in (lambda batch: batch[:2], lambda batch: [a[:4] for a in batch], lambda batch: batch[0]):
        function = change if name == "prepare" else lambda key, batch, change=change: change(batch)
        with pytest.raises(ValueError, match=rf"{name}, .* given a batch \(x, y, weight\) of 8 examples"):
            step_of(**{name: function})(fnn.train.start(optax.sgd(0.1), start(), KEY), batch)
    with pytest.raises(TypeError) as caught:
        step_of(**{name: lambda: None})(fnn.train.start(optax.sgd(0.1), start(), KEY), batch)
    assert f"(in {name}, " in caught.value.__notes__[0]


def test_a_state_of_another_optimizer_and_no_state_are_named():
    step = step_of()
    with pytest.raises(TypeError, match="the state is of another optimizer than the step's"):
        step(fnn.train.start(optax.adam(1e-2), start(), KEY), examples(8))
    with pytest.raises(TypeError, match=r"a step takes a state.*got \(\{"):
        step(start(), examples(8))
    with pytest.raises(TypeError, match=r"start\(optimizer, params, key\), where .* got \(\{"):
        fnn.train.start(start(), optax.sgd(0.1), KEY)


def test_max_norm_holds_each_unit(key: jax.Array):
    optimizer = optax.chain(optax.sgd(0.5), fnn.train.max_norm(1.5))
    params = {"w": jax.random.normal(key, (4, 6)), "b": jnp.full(6, 9.0)}
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    new: Any = optax.apply_updates(params, updates)
    plain: Any = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
    norms, before = (jnp.linalg.norm(tree["w"], axis=0) for tree in (new, plain))
    np.testing.assert_allclose(norms, jnp.minimum(before, 1.5), rtol=1e-6)
    assert (before > 1.5).any() and (before <= 1.5).any(), "both cases are in the draw"
    np.testing.assert_array_equal(new["b"], plain["b"])
    with pytest.raises(ValueError, match="needs the parameters"):
        optimizer.update(grads, optimizer.init(params))
    with pytest.raises(ValueError, match="positive"):
        fnn.train.max_norm(0.0)
    stacked = {"w": jnp.full((2, 4, 3), 2.0)}  # of two blocks, whose units have norms of 4
    held = fnn.train.max_norm(1.0, axis=1)
    moved: Any = held.update(jax.tree.map(jnp.zeros_like, stacked), held.init(stacked), stacked)[0]
    np.testing.assert_allclose(stacked["w"] + moved["w"], 0.5, rtol=1e-6)
    with pytest.raises(fnn.LayerError, match="none among"):
        fnn.train.max_norm(1.0, "kernel").init(params)


def step_of(**changes: Any) -> Any:
    options: dict[str, Any] = {"objective": OBJECTIVE, "optimizer": optax.sgd(0.1)} | changes
    return fnn.train.step(options.pop("objective"), options.pop("optimizer"), **options)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "objective": ({"objective": NET}, r"takes an fnn.Objective\(net, loss\), got Serial"),
    "optimizer": ({"optimizer": optax.sgd}, r"hyper=\{...\} it may be a function"),
    "gradient": ({"gradient": "jax"}, "one of 'autodiff', 'backprop'"),
    "metric": ({"metrics": {"loss": max}}, "none of"),
    "augment": ({"augment": [3]}, r"\(key, batch\) -> batch"),
    "prepare": ({"prepare": 255}, "batch -> batch"),
    "aux": ({"objective": OBJECTIVE.replace(aux=max)}, r"metrics=\{name: function\}"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str):
    changes, message = BAD[name]
    with pytest.raises(TypeError, match=message):
        step_of(**changes)


def test_a_key_is_a_key():
    key: Any = 0
    with pytest.raises(TypeError, match=r"jax.random.key\(0\), got 0"):
        fnn.train.start(optax.sgd(0.1), start(), key)


def test_a_metric_that_takes_the_mean_itself_is_refused():
    step = fnn.train.step(OBJECTIVE, optax.sgd(0.1), metrics={"mine": lambda outputs, targets: jnp.mean(outputs)})
    with pytest.raises(ValueError, match=r"'mine' gives one number per example, \(8,\), and gave \(\)"):
        step(fnn.train.start(optax.sgd(0.1), start(), KEY), examples(8))


def test_start_makes_copies():
    params = start()
    assert_same(fnn.train.start(optax.sgd(0.1), params, KEY).params, params)
