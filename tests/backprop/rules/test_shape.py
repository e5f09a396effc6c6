"""The rules of reshapes keep a shape, and no array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn import backprop
from funcnn.backprop import RULES, Context


@pytest.mark.parametrize("layer", [fnn.Flatten(), fnn.Reshape((3, -1))])
def test_the_gradient_goes_back_to_where_each_number_was(layer: fnn.Layer):
    x = jnp.arange(60.0).reshape(5, 2, 6)
    y, pullback = backprop.vjp(layer, (), x)
    np.testing.assert_array_equal(pullback(y)[1], x)


@pytest.mark.parametrize("layer", [fnn.Flatten(), fnn.Reshape((3, -1))])
def test_no_array_is_kept(layer: fnn.Layer):
    _, kept = RULES[type(layer)].fwd(layer, (), jnp.ones((5, 2, 6)), Context(RULES))
    assert jax.tree.leaves(kept) == []
