"""What a user gets wrong at the seams between rooms: each is an error that says so, none is silently something else."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn import losses, penalties

NET = fnn.Serial(fnn.Dense(3), fnn.Dropout(0.5), fnn.Dense(2))
BATCH = jnp.ones((4, 3)), jnp.zeros((4, 2))


def test_train_under_jit_has_to_be_static(key: jax.Array) -> None:
    gradient = fnn.backprop.value_and_grad(fnn.Objective(NET, losses.mse))
    params = NET.init(key, (3,))
    with pytest.raises(TypeError, match=r"static_argnames='train'"):
        jax.jit(gradient)(params, BATCH, key=key, train=True)
    value, _ = jax.jit(gradient, static_argnames="train")(params, BATCH, key=key, train=True)
    assert np.isfinite(value)


def test_parameters_of_the_unshared_graph_do_not_fit_the_shared_one(key: jax.Array) -> None:
    nodes = {"h": fnn.Node(fnn.Dense(3), "input"), "y": fnn.Node(fnn.Dense(3), "h", params_of="h")}
    shared = fnn.Graph(nodes, "y")
    unshared = fnn.Graph(nodes | {"y": fnn.Node(fnn.Dense(3), "h")}, "y")
    with pytest.raises(fnn.LayerError, match=r"at 'y': .* its entry is \(\)"):
        shared.apply(unshared.init(key, (3,)), jnp.ones((2, 3)))


@pytest.mark.parametrize("bias", [10, "no", None])
def test_a_second_number_is_no_bias(bias: Any) -> None:
    with pytest.raises(fnn.LayerError, match=r"bias is True or False.*Dense\(features\) is all"):
        fnn.Dense(64, bias)


def test_a_layer_that_is_no_dataclass_cannot_be_made() -> None:
    class Power(fnn.Layer):
        def __init__(self, k: int):
            object.__setattr__(self, "k", k)

        def init(self, key: Any, in_shape: Any) -> Any:
            return ()

        def apply(self, params: Any, x: Any, *, key: Any = None, train: bool = False) -> Any:
            return x

    with pytest.raises(TypeError, match="Power is no dataclass"):
        Power(2)


def test_bytes_keep_the_centres_of_rbf_and_get_noise(key: jax.Array) -> None:
    images = jnp.zeros((2, 1), jnp.uint8)
    with jax.numpy_dtype_promotion("standard"):
        rbf = fnn.Rbf(1, 1.0, centres=[[0.5]]).apply((), images)
        noisy = fnn.GaussianNoise(0.5).apply((), images, key=key, train=True)
    np.testing.assert_allclose(rbf, np.exp(-0.25), rtol=1e-6)  # float32
    assert noisy.dtype == jnp.float32


def test_record_under_jit_is_in_forward_order(key: jax.Array) -> None:
    net = fnn.Serial(*[fnn.Tanh() for _ in range(12)])
    record = jax.jit(fnn.backprop.record(fnn.Objective(net, losses.mse)))(
        ((),) * 12, (jnp.ones((2, 3)), jnp.ones((2, 3)))
    )
    assert list(record) == [str(i) for i in range(12)]


@pytest.mark.parametrize("dtype", [bool, "int32"])
def test_a_loss_gives_floating_numbers(dtype: Any) -> None:
    objective = fnn.Objective(fnn.Identity(), lambda f, y: jnp.any(f != y, axis=1).astype(dtype))
    with pytest.raises(fnn.BatchError, match="a loss gives floating numbers"):
        objective((), (jnp.ones((4, 2)), jnp.zeros((4, 2))))


def test_a_penalty_gives_one_number(key: jax.Array) -> None:
    net = fnn.Dense(2)
    objective = fnn.Objective(net, losses.mse, lambda params: params["w"][0])  # type: ignore[arg-type]
    rules = fnn.backprop.Rules(fnn.backprop.RULES, missing="autodiff")
    for function in (objective, fnn.backprop.value_and_grad(objective, rules=rules)):
        with pytest.raises(fnn.BatchError, match=r"a penalty gives one number.*shape \(2,\)"):
            function(net.init(key, (3,)), BATCH)


def test_an_initialiser_that_was_not_made_is_named(key: jax.Array) -> None:
    with pytest.raises(TypeError, match=r"made first, he_normal\(\)"):
        fnn.Dense(8, w_init=jax.nn.initializers.he_normal).init(key, (3,))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a/b"])
def test_names_of_nodes_are_steps_in_a_path(name: str) -> None:
    with pytest.raises(fnn.LayerError, match="without '/'"):
        fnn.Graph({name: fnn.Node(fnn.Tanh(), "input")}, name)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: fnn.Objective(NET, losses.Mse), "loss is a function"),  # type: ignore[arg-type]
        (lambda: fnn.Objective(NET, losses.mse, penalties.l2), "penalties.l2"),  # type: ignore[arg-type]
        (lambda: fnn.Objective(NET, losses.mse, aux=3), "aux is a function"),  # type: ignore[arg-type]
        (lambda: fnn.weight_noise(0.1)(NET), "transforms an Objective"),  # type: ignore[arg-type]
        (lambda: fnn.validate(NET, (), BATCH), "takes an Objective"),  # type: ignore[arg-type]
        (lambda: fnn.backprop.with_rules(fnn.Objective(NET, losses.mse)), "takes a layer"),  # type: ignore[arg-type]
        (lambda: fnn.backprop.vjp(fnn.Objective(NET, losses.mse), (), BATCH[0]), "takes a layer"),  # type: ignore
    ],
)
def test_the_wrong_kind_of_argument_is_named(wrong: Any, says: str) -> None:
    with pytest.raises(TypeError, match=re.escape(says)):
        wrong()


def test_what_numpy_and_none_stand_for(key: jax.Array) -> None:
    assert fnn.Dense(np.int64(3)) == fnn.Dense(3)  # type: ignore[arg-type]
    assert repr(fnn.Dense(np.int64(3))) == "Dense(3)"  # type: ignore[arg-type]
    objective = fnn.Objective(fnn.Dense(2), losses.mse)
    params = objective.net.init(key, (3,))
    assert objective(params, (*BATCH, None)) == objective(params, BATCH)
    rules = dict(fnn.backprop.RULES)  # a plain mapping will do
    fnn.backprop.value_and_grad(objective, rules=rules)(params, BATCH)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", ["list", "values"])
def test_parameters_in_another_container_are_refused(change: str, key: jax.Array) -> None:
    params = NET.init(key, (3,))
    other = list(params) if change == "list" else tuple(tuple(p.values()) if isinstance(p, dict) else p for p in params)
    for function in (
        fnn.Objective(NET, losses.mse),
        fnn.backprop.value_and_grad(fnn.Objective(NET, losses.mse)),
    ):
        with pytest.raises(fnn.LayerError, match=r"net\.init"):
            function(other, BATCH)
