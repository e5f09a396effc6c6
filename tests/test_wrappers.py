"""Cast and WeightNoise: dtypes in and out, the noise and where it goes, and errors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn.wrappers import select_leaves
from tests.messages import message_of

UNTYPED: Any = fnn  # for the calls that a type checker would refuse


def test_cast_computes_in_its_dtype_and_gives_back_the_inputs(key: jax.Array):
    seen = []

    def look(params: Any, x: jax.Array) -> jax.Array:
        seen.append((x.dtype.name, params["w"].dtype.name))
        return x @ params["w"]

    net = fnn.Cast(fnn.lift(lambda key, in_shape: {"w": jax.random.normal(key, (*in_shape, 3))}, look), "bfloat16")
    params = net.init(key, (4,))
    assert params["w"].dtype == jnp.float32
    x = jax.random.normal(key, (5, 4))

    @jax.jit
    def run(params: Any, x: jax.Array) -> Any:
        expected = (x.astype(jnp.bfloat16) @ params["w"].astype(jnp.bfloat16)).astype(x.dtype)
        return net.apply(params, x), expected, jax.grad(lambda p: jnp.sum(net.apply(p, x)))(params)

    y, expected, grads = run(params, x)
    assert set(seen) == {("bfloat16", "bfloat16")}
    assert (y.dtype, grads["w"].dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_allclose(y, expected, rtol=2**-7, atol=2**-7)  # bfloat16 has 8 bits
    assert not np.allclose(y, np.asarray(x) @ np.asarray(params["w"]), rtol=1e-4)
    assert net.out_shape((4,)) == (3,)


@pytest.mark.parametrize("dtype_name", ["uint8", "int32"])
def test_cast_takes_integers_such_as_the_bytes_of_an_image(dtype_name: str, key: jax.Array):
    net = fnn.Cast(fnn.Serial(fnn.Flatten(), fnn.Dense(2)), "float32")
    params = net.init(key, (2, 2))
    x = jnp.array([[[0, 255], [7, 1]]], dtype_name)
    y = net.apply(params, x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, x.reshape(1, 4).astype(np.float32) @ params[1]["w"], rtol=1e-5, atol=1e-4)  # float32


def test_weight_noise_adds_what_it_says_to_the_weights(key: jax.Array):
    dense = fnn.Dense(300, w_init="zeros", b_init=1.0)
    noisy = fnn.WeightNoise(dense, std=0.2)
    x = jnp.eye(300)

    @jax.jit
    def run(key: jax.Array) -> Any:
        params = noisy.init(key, (300,))
        other = jax.random.fold_in(key, 1)
        return noisy.apply(params, x), *(noisy.apply(params, x, key=k, train=True) for k in (key, key, other))

    plain, one, again, other = (np.asarray(a) for a in run(key))
    np.testing.assert_array_equal(plain, 1)
    n = one - 1
    assert abs(n.mean()) < 5 * 0.2 / 300  # 90,000 draws, 5 standard deviations of their mean
    assert abs(n.std() / 0.2 - 1) < 5 / 300
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)


def test_weight_noise_on_the_named_leaves(key: jax.Array):
    layer = fnn.Serial(fnn.Dense(3), fnn.Dense(3), fnn.Rbf(2, epsilon=1.0))
    params = layer.init(key, (3,))

    def moved(leaves: Any) -> list[str]:
        noisy = fnn.WeightNoise(layer, 0.1, leaves=leaves).perturb(params, key, True)
        changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), params, noisy)
        return [jax.tree_util.keystr(path) for path, flag in jax.tree_util.tree_leaves_with_path(changed) if flag]

    assert moved(("w",)) == moved("w") == moved(["w"]) == ["[0]['w']", "[1]['w']"]
    assert moved(("b", "c")) == ["[0]['b']", "[1]['b']", "[2]['c']"]
    assert len(moved(None)) == 5
    assert hash(UNTYPED.WeightNoise(layer, 0.1, leaves="w")) == hash(fnn.WeightNoise(layer, 0.1))
    # Two leaves of one shape get other numbers.
    noise = jax.tree.map(lambda a, b: b - a, params, fnn.WeightNoise(layer, 0.1).perturb(params, key, True))
    assert not np.allclose(noise[0]["w"], noise[1]["w"], atol=1e-3)  # as they would but for rounding
    message = message_of(
        lambda: fnn.WeightNoise(fnn.Rbf(2, epsilon=1.0), 0.1).apply(params[2], jnp.ones((1, 3)), key=key, train=True)
    )
    assert "for the parameters called ('w',), and there are none among {'c': float32[2, 3]}" in message
    assert "leaves=None for all" in message


def test_selected_leaves_are_in_the_order_of_the_tree():
    params = ({"w": 1, "b": 2}, (), {"a": {"w": 3}, "w": {"b": 4}}, 5)
    assert select_leaves(params, ("w",), "owner") == [False, True, True, False, False]
    assert select_leaves(params, None, "owner") == [True] * 5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: UNTYPED.Cast(jnp.tanh, "bfloat16"), ["Cast is made of layers"]),
        (lambda: UNTYPED.Cast(fnn.Relu(), "int32"), ["Cast's dtype is the name of a floating dtype", "'int32'"]),
        (lambda: UNTYPED.Cast(fnn.Relu(), jnp.bfloat16), ["Cast's dtype is the name of a floating dtype"]),
        (lambda: UNTYPED.WeightNoise(fnn.Relu(), -0.1), ["WeightNoise's std is not negative, got -0.1"]),
        (lambda: UNTYPED.WeightNoise(fnn.Relu(), float("nan")), ["WeightNoise's std is not negative, got nan"]),
    ],
)
def test_what_no_wrapper_can_be_made_of(make: Callable[[], Any], words: list[str]):
    message = message_of(make)
    assert all(word in message for word in words), message
