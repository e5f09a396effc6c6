"""The rule of maxout: ties, and the bits that stand for the input of the maximum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn.backprop import RULES, Context
from tests.backprop.agree import TOLERANCES, assert_agree, draw_layer, layer_gradients


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("pieces", [1, 2, 8, 9, 19, 300])
def test_ties_are_shared_as_autodiff_shares_them(pieces: int, rng: np.random.Generator):
    """Pieces that come in equal pairs, and one unit whose pieces are all equal."""
    layer = fnn.Maxout(4, pieces)
    params, x, dy = draw_layer(rng, layer, (3,), 5)

    def tie(leaf):
        leaf = np.repeat(leaf[..., ::2, :], 2, axis=-2)[..., :pieces, :]
        leaf[..., 0] = leaf[..., :1, 0]
        return jnp.asarray(leaf)

    tied = jax.tree.map(tie, jax.tree.map(np.asarray, params))
    z = layer.pre_activation(tied, x)
    ties = np.sum(np.asarray(z == jnp.max(z, axis=-2, keepdims=True)), axis=-2)
    assert (ties[:, 0] == pieces).all()
    assert pieces == 1 or (ties >= 2).mean() > 0.5  # the pairs, too
    by_hand, by_autodiff = jax.jit(layer_gradients(layer, None, False))(tied, x, dy)
    assert_agree(by_hand, by_autodiff, TOLERANCES["float64"])


@pytest.mark.parametrize(("pieces", "size"), [(1, 1), (8, 1), (9, 2), (19, 3)])
def test_a_bit_for_each_piece_is_kept(pieces: int, size: int, rng: np.random.Generator):
    layer = fnn.Maxout(4, pieces)
    params, x, _ = draw_layer(rng, layer, (3,), 5)
    _, (kept_x, bits) = RULES[fnn.Maxout].fwd(layer, params, x, Context(RULES))
    assert kept_x is x
    assert (bits.dtype, bits.shape) == (jnp.uint8, (5, size, 4))
