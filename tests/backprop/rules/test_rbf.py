"""The rule of radial basis functions multiplies out what autodiff subtracts: it must not lose digits by that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from tests.backprop.agree import TOLERANCES, assert_agree, draw_layer, layer_gradients


@pytest.mark.parametrize("fixed", [False, True], ids=["learned", "fixed"])
def test_far_from_the_origin_it_keeps_its_digits(fixed: bool, rng: np.random.Generator, dtype: str):
    """Data and centres around 1000, as unscaled features are: x c alone would lose six digits."""
    centres = 1000 + rng.normal(size=(4, 3))
    layer = fnn.Rbf(4, 0.5, centres=centres if fixed else None)
    _, x, dy = draw_layer(rng, layer, (3,), 6)
    params = () if fixed else {"c": jnp.asarray(centres)}
    by_hand, by_autodiff = jax.jit(layer_gradients(layer, None, False))(params, 1000 + x, dy)
    assert_agree(by_hand, by_autodiff, TOLERANCES[dtype])
