"""K-FAC against its definition with whole matrices, its averages and intervals step by step, and as an optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcnn as fnn
from funcnn import backprop
from funcnn.backprop import quantities
from tests.backprop import dense
from tests.train.problems import OBJECTIVE, examples, fit, start

pytestmark = pytest.mark.once

# A layer of each kind of parameters: weights with biases, without, of several pieces, centres (transposed), slopes.
NET = fnn.Serial(fnn.Dense(4), fnn.Prelu(), fnn.Maxout(3, pieces=2), fnn.Rbf(5, epsilon=0.6), fnn.Dense(3, bias=False))
DAMPING = 0.03


def problem(key: jax.Array) -> tuple[fnn.Objective, Any, Any]:
    x = jax.random.normal(key, (12, 5))
    objective = fnn.Objective(NET, fnn.losses.softmax_cross_entropy)
    return objective, NET.init(key, (5,)), (x, jnp.arange(12) % 3)


def damped(factor: Any, size: Any) -> Any:
    return factor + size * jnp.eye(len(factor))


def solved(a: Any, b: Any, g: Any) -> Any:
    """(A + pi s I)^-1 G (B + s / pi I)^-1 by one solve with the whole Kronecker product, s = sqrt(damping)."""
    if a is None:
        return jnp.linalg.solve(damped(b, DAMPING), g.ravel()).reshape(g.shape)
    pi, s = jnp.sqrt(jnp.trace(a) / len(a) / (jnp.trace(b) / len(b))), DAMPING**0.5
    return jnp.linalg.solve(jnp.kron(damped(a, pi * s), damped(b, s / pi)), g.ravel()).reshape(g.shape)


def moved(objective: fnn.Objective, params: Any, batch: Any, key: jax.Array, **options: Any) -> tuple[Any, Any, Any]:
    """The gradient, what K-FAC makes of it in its first step, and its state."""
    optimizer = fnn.train.scale_by_kfac(objective, **{"bound": None, "damping": DAMPING} | options)
    grads = jax.grad(objective)(params, batch)
    update = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p, batch=batch, key=key))
    return (grads, *update(grads, params))


def test_the_first_step_is_the_definition(key: jax.Array):
    with jax.enable_x64(True):
        objective, params, batch = problem(key)
        grads, got, _ = moved(objective, params, batch, key, of="gauss_newton")
        rows = backprop.rows(objective, of="gauss_newton")(params, batch)
        kron = quantities.kronecker_factors(rows)
        for i in (0, 2):  # weights and biases together, with activities (a, 1)
            outer = rows.factors[i]["w"]
            a = jnp.concatenate([outer.activity[:, 0], jnp.ones((12, 1))], axis=1)
            g = jnp.concatenate([grads[i]["w"].reshape(len(a[0]) - 1, -1), grads[i]["b"].reshape(1, -1)])
            wanted = solved(a.T @ a / 12, kron[i]["w"].b, g)
            np.testing.assert_allclose(got[i]["w"].ravel(), wanted[:-1].ravel(), rtol=1e-9)
            np.testing.assert_allclose(got[i]["b"].ravel(), wanted[-1].ravel(), rtol=1e-9)
        slope, centres, weights = kron[1]["slope"], kron[3]["c"], kron[4]["w"]
        np.testing.assert_allclose(got[1]["slope"], solved(None, slope.b, grads[1]["slope"]), rtol=1e-9)
        np.testing.assert_allclose(got[3]["c"], solved(centres.a, centres.b, grads[3]["c"].T).T, rtol=1e-9)
        np.testing.assert_allclose(got[4]["w"], solved(weights.a, weights.b, grads[4]["w"]), rtol=1e-9)


@pytest.mark.parametrize(("method", "n"), [("kfac", 3), ("kfac", 4), ("scale_by_kfac", 3)])
def test_repeated_blocks_are_preconditioned_as_layers_one_after_another(method: str, n: int, key: jax.Array):
    """Three steps; also with as many blocks as inputs, where the shapes of the stacked weights and biases mislead."""
    d = 4
    block = fnn.Serial(fnn.Dense(d), fnn.Tanh(), fnn.Prelu(), fnn.Dense(d, bias=False))
    repeated = fnn.Serial(fnn.Dense(d), fnn.Repeat(block, n), fnn.Dense(3))
    written = fnn.Serial(fnn.Dense(d), fnn.Serial(*[block] * n), fnn.Dense(3))

    def trained(net: fnn.Layer, params: Any) -> Any:
        objective = fnn.Objective(net, fnn.losses.softmax_cross_entropy)
        optimizer = getattr(fnn.train, method)(objective, of="gauss_newton")

        @jax.jit
        def step(params: Any, state: Any) -> Any:
            grads = jax.grad(objective)(params, batch)
            updates, state = optimizer.update(grads, state, params, batch=batch, key=key)
            return optax.apply_updates(params, updates), state

        state = optimizer.init(params)
        for _ in range(3):
            params, state = step(params, state)
        return params

    with jax.enable_x64(True):
        batch = jax.random.normal(key, (6, 5)), jnp.arange(6) % 3
        first, blocks, last = repeated.init(key, (5,))
        got = trained(repeated, (first, blocks, last))
        apart = tuple(jax.tree.map(lambda array, k=k: array[k], blocks) for k in range(n))
        want = trained(written, (first, apart, last))
    together = want[0], jax.tree.map(lambda *arrays: jnp.stack(arrays), *want[1]), want[2]
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)  # float64, through inverses of damped matrices


def test_with_the_exact_block_and_no_damping_it_is_newtons_step(key: jax.Array):
    """One dense layer with squared error: A (x) B is the Gauss-Newton matrix, and the Hessian."""
    with jax.enable_x64(True):
        objective = fnn.Objective(fnn.Dense(2), fnn.losses.squared_error)
        x, y = jax.random.normal(key, (20, 3)), jax.random.normal(jax.random.fold_in(key, 1), (20, 2))
        params = objective.net.init(key, (3,))
        for of in ("gauss_newton", "fisher"):
            samples = {} if of == "gauss_newton" else {"samples": 200}
            _, step, _ = moved(objective, params, (x, y), key, damping=1e-12, of=of, **samples)
            best = jax.tree.map(jnp.subtract, params, step)
            solution = jnp.linalg.lstsq(jnp.c_[x, jnp.ones(20)], y)[0]
            tolerance = 1e-5 if of == "gauss_newton" else 0.2  # of 200 samples for each example
            np.testing.assert_allclose(jnp.r_[best["w"], best["b"][None]], solution, atol=tolerance)


def test_averages_and_intervals_step_by_step(key: jax.Array):
    with jax.enable_x64(True):
        objective, params, batch = problem(key)
        optimizer = fnn.train.scale_by_kfac(
            objective, decay=0.7, factors_every=2, inverses_every=3, damping=DAMPING, bound=None, of="gauss_newton"
        )
        update = jax.jit(lambda g, s, p, k: optimizer.update(g, s, p, batch=batch, key=k))

        @jax.jit
        def once(params: Any) -> Any:
            return moved(objective, params, batch, key, decay=0.0, of="gauss_newton")[2].factors

        state: Any = optimizer.init(params)
        averages, inverses = state.factors, None
        for count in range(7):
            here = jax.tree.map(lambda leaf, c=count: leaf + 0.1 * c, params)
            if count % 2 == 0:
                new = once(here)
                averages = jax.tree.map(lambda f, a: 0.7 * a + 0.3 * f, new, averages)
            _, state = update(params, state, here, jax.random.key(count))
            for got, wanted in zip(jax.tree.leaves(state.factors), jax.tree.leaves(averages), strict=True):
                np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-14)
            changed = inverses is None or any(
                not np.array_equal(a, b)
                for a, b in zip(jax.tree.leaves(inverses), jax.tree.leaves(state.inverses), strict=True)
            )
            assert changed == (count % 3 == 0)
            if count % 3 == 0:  # divided by what the average of a constant would be, as it began with 0
                known = 1 - 0.7 ** (count // 2 + 1)
                (_, b), (_, inverse) = state.factors[1], state.inverses[1]
                np.testing.assert_allclose(inverse @ damped(b / known, DAMPING), np.eye(len(b)), atol=1e-8)
            inverses = state.inverses


def test_the_bound_is_on_the_length_in_the_curvatures_metric(key: jax.Array):
    objective, params, batch = problem(key)
    grads, free, _ = moved(objective, params, batch, key)
    length = float(jnp.vdot(dense.flat(free), dense.flat(grads)))
    for bound in (0.25 * length, 4 * length):
        _, got, _ = moved(objective, params, batch, key, bound=bound)
        factor = min(1.0, (bound / length) ** 0.5)
        jax.tree.map(lambda a, b, f=factor: np.testing.assert_allclose(a, f * b, rtol=1e-5), got, free)


def test_a_schedule_for_the_damping(key: jax.Array):
    objective, params, batch = problem(key)
    _, fixed, _ = moved(objective, params, batch, key, damping=0.5)
    _, scheduled, _ = moved(objective, params, batch, key, damping=optax.exponential_decay(0.5, 10, 0.1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), fixed, scheduled)


def noisy(key: jax.Array) -> tuple[fnn.Objective, Any, Any]:
    """With dropout, so that it matters which key each pass is given."""
    objective, _, batch = problem(key)
    objective = objective.replace(net=fnn.Serial(fnn.Dense(4), fnn.Tanh(), fnn.Dropout(0.5), fnn.Dense(3)))
    return objective, objective.net.init(key, (5,)), batch


def stepped(
    optimizer: Any, objective: fnn.Objective, batch: Any, state: Any, params: Any, key: Any, **given: Any
) -> Any:
    grads = jax.grad(objective)(params, batch, key=key, train=True)
    return (grads, *jax.jit(optimizer.update)(grads, state, params, batch=batch, key=key, **given))


def test_rate_and_momentum_minimise_the_model(key: jax.Array):
    """Each update is the minimum over the plane of the direction and the last update, found here by whole matrices."""
    with jax.enable_x64(True):
        objective, params, batch = problem(key)
        objective = objective.replace(penalty=fnn.penalties.l2(1e-2))
        options: Any = {"decay": 0.0, "factors_every": 1, "inverses_every": 1, "of": "gauss_newton"}
        optimizer = fnn.train.kfac(objective, damping=DAMPING, adapt_every=1000, **options)
        direction = fnn.train.scale_by_kfac(objective, damping=DAMPING, bound=None, **options)
        state, aside, last = optimizer.init(params), direction.init(params), []
        for count in range(3):
            grads, updates, state = stepped(optimizer, objective, batch, state, params, key)
            moved, aside = direction.update(grads, aside, params, batch=batch, key=key)
            matrix = dense.gauss_newton(objective, params, batch)
            matrix = matrix + DAMPING * jnp.eye(len(matrix))
            plane = jnp.stack([-dense.flat(moved), *last], axis=1)
            rates = jnp.linalg.solve(plane.T @ matrix @ plane, -plane.T @ dense.flat(grads))
            np.testing.assert_allclose(dense.flat(updates), plane @ rates, rtol=1e-8, atol=1e-12)
            wanted = [*rates, 0.0][:2]
            np.testing.assert_allclose([state.rate, state.momentum], wanted, rtol=1e-8, err_msg=str(count))
            assert state.damping == DAMPING
            params, last = optax.apply_updates(params, updates), [dense.flat(updates)]


def test_the_damping_follows_how_good_the_model_is(key: jax.Array):
    """By a value that is told, so that the objective fell by a known part of what the model foretold."""
    with jax.enable_x64(True):
        objective, params, batch = noisy(key)
        optimizer = fnn.train.kfac(objective, damping=DAMPING, least_damping=0.02, adapt_every=2)
        first = stepped(optimizer, objective, batch, optimizer.init(params), params, key)[2]
        assert first.damping == DAMPING  # not yet
        grads, updates, _ = stepped(optimizer, objective, batch, first, params, key)
        after = objective(optax.apply_updates(params, updates), batch, key=key, train=True)
        curved = backprop.gauss_newton_form(objective)(params, batch, (updates,), key=key, train=True)
        u = dense.flat(updates)
        foretold = u @ dense.flat(grads) + curved[0, 0] / 2 + DAMPING * u @ u / 2
        assert foretold < 0
        growth = 0.95**2
        for part, wanted in (
            (0.8, DAMPING * growth), (0.7, DAMPING), (0.3, DAMPING), (0.2, DAMPING / growth), (-1.0, DAMPING / growth),
            (np.nan, DAMPING / growth), (-np.inf, DAMPING / growth),
        ):  # fmt: skip
            state = stepped(optimizer, objective, batch, first, params, key, value=after - part * foretold)[2]
            np.testing.assert_allclose(state.damping, wanted, rtol=1e-12, err_msg=str(part))


def test_one_step_of_the_whole_method_solves_least_squares(key: jax.Array):
    with jax.enable_x64(True):
        objective = fnn.Objective(fnn.Dense(2), fnn.losses.squared_error)
        x, y = jax.random.normal(key, (20, 3)), jax.random.normal(jax.random.fold_in(key, 1), (20, 2))
        params = objective.net.init(key, (3,))
        optimizer = fnn.train.kfac(objective, damping=1e-12, least_damping=1e-12, of="gauss_newton")
        _, updates, state = stepped(optimizer, objective, (x, y), optimizer.init(params), params, key)
        best: Any = optax.apply_updates(params, updates)
        np.testing.assert_allclose(
            jnp.r_[best["w"], best["b"][None]], jnp.linalg.lstsq(jnp.c_[x, jnp.ones(20)], y)[0], atol=1e-5
        )
        np.testing.assert_allclose(state.rate, 1.0, rtol=1e-5)
        # By values of its own: the model is right here, and the damping falls as far as it may.
        optimizer = fnn.train.kfac(objective, damping=1.0, least_damping=0.9, adapt_every=1)
        state, seen = optimizer.init(params), []
        for _ in range(3):
            _, updates, state = stepped(optimizer, objective, (x, y), state, params, key)
            params = optax.apply_updates(params, updates)
            seen.append(state.damping)
        np.testing.assert_allclose(seen, [0.95, 0.9025, 0.9], rtol=1e-12)


def test_where_the_gradient_is_zero_nothing_moves():
    objective = fnn.Objective(fnn.Dense(1, w_init="zeros"), fnn.losses.squared_error)
    params, batch = objective.net.init(jax.random.key(0), (2,)), (jnp.ones((3, 2)), jnp.zeros((3, 1)))
    optimizer = fnn.train.kfac(objective, adapt_every=1)
    _, updates, state = stepped(optimizer, objective, batch, optimizer.init(params), params, jax.random.key(1))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates))
    assert np.isfinite(dense.flat(state.curvature.inverses)).all()
    assert state.damping == 1.0


def test_the_whole_method_trains_and_says_what_it_needs(key: jax.Array):
    optimizer = fnn.train.kfac(OBJECTIVE, factors_every=2, inverses_every=4)
    state, history = fit(optimizer=optimizer, epochs=10, gradient="backprop")
    _, sgd = fit(optimizer=optax.sgd(0.3), epochs=10, gradient="backprop")
    assert history["loss"][-1] < 0.9 * sgd["loss"][-1]
    assert state.opt_state.curvature.steps == state.step
    with pytest.raises(ValueError, match="kfac's update needs params, batch and key"):
        optimizer.update(start(), state.opt_state, start(), key=key)
    learned = fnn.Objective(fnn.Dense(2), fnn.losses.gaussian_nll(variance="learned"))
    params, batch = learned.net.init(key, (3,)), (jnp.ones((4, 3)), jnp.ones((4, 1)))
    optimizer = fnn.train.kfac(learned)
    with pytest.raises(backprop.RuleError, match=r"is not convex in its outputs.* scale_by_kfac needs none"):
        optimizer.update(params, optimizer.init(params), params, batch=batch, key=key)
    for options, message in (
        ({"damping": optax.constant_schedule(1.0)}, "damping is a positive number"),
        ({"damping": "1"}, "damping is a positive number"),
        ({"least_damping": 0.0}, "least_damping is a positive number"),
        ({"adapt_every": 0}, "adapt_every is a positive integer"),
        ({"inverses_every": 0}, "inverses_every is a positive integer"),
        ({"of": "loss"}, "have no curvature"),
    ):
        with pytest.raises(ValueError, match=message):
            fnn.train.kfac(OBJECTIVE, **options)  # pyright: ignore[reportArgumentType]


def test_it_trains_and_asks_for_what_it_needs(key: jax.Array):
    optimizer = optax.chain(fnn.train.scale_by_kfac(OBJECTIVE, factors_every=2, inverses_every=4), optax.sgd(1.0))
    state, history = fit(optimizer=optimizer, epochs=10, gradient="backprop")
    _, sgd = fit(optimizer=optax.sgd(0.3), epochs=10, gradient="backprop")
    assert history["loss"][-1] < 0.9 * sgd["loss"][-1]
    assert state.opt_state[0].steps == state.step
    for missing in ({}, {"batch": examples()}, {"key": key}):
        with pytest.raises(ValueError, match="needs params, batch and key"):
            optimizer.update(start(), state.opt_state, start(), **missing)


def test_bad_arguments(key: jax.Array):
    def scale(key: Any, in_shape: Any) -> Any:
        return {"m": jnp.ones((2, *in_shape))}

    own = fnn.lift(scale, lambda params, x: x * jnp.sum(params["m"], axis=0)[None])
    objective = fnn.Objective(own, fnn.losses.squared_error)
    batch = jnp.ones((3, 4)), jnp.ones((3, 4))
    rules = backprop.Rules(backprop.RULES, missing="autodiff")
    optimizer = fnn.train.scale_by_kfac(objective, rules=rules)
    params = own.init(key, (4,))
    with pytest.raises(backprop.RuleError, match=r"params\['m'\] gives its examples' gradients as they are"):
        optimizer.update(params, optimizer.init(params), params, batch=batch, key=key)
    for options, message in (
        ({"of": "loss"}, "have no curvature"),
        ({"of": "hessian"}, "rows are of one of"),
        ({"damping": 0.0}, "damping is a positive number"),
        ({"damping": None}, "damping is a positive number"),
        ({"decay": 1.0}, "decay is a number from 0 to 1"),
        ({"decay": "0.9"}, "decay is a number from 0 to 1"),
        ({"bound": jnp.ones(2)}, "bound is a positive number or None"),
        ({"bound": -1.0}, "bound is a positive number or None"),
        ({"factors_every": 0}, "factors_every is a positive integer"),
        ({"inverses_every": 2.5}, "inverses_every is a positive integer"),
        ({"samples": 0}, "samples is a positive integer"),
    ):
        with pytest.raises(ValueError, match=message):
            fnn.train.scale_by_kfac(objective, **options)  # pyright: ignore[reportArgumentType]
