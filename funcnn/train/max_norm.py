"""A constraint on weights, as an optax transformation."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from funcnn.layer import is_positive
from funcnn.wrappers import leaf_names, select_leaves


def max_norm(c: float, leaves: str | tuple[str, ...] | None = ("w",), *, axis: int = 0) -> optax.GradientTransformation:
    """Keeps the norm of each unit's incoming weights at c or below.

    w_k <- w_k min(1, c / |w_k|) after each update, for each unit k: |w_k|^2 = sum_d w_dk^2, over the inputs d

    Put it last in `optax.chain`, so that it sees the whole update.

    Args:
        c: the largest norm, positive.
        leaves: the names of the parameters that are constrained; None for all.
        axis: that of the inputs d. In a `Repeat` it is 1, as the first is that of the blocks: `optax.masked` tells
            these parameters from others.

    Returns:
        An optax transformation, which needs `params` in `update`.

    Raises:
        ValueError: c is not positive, or `update` is not given params.
        LayerError: no parameter has one of these names.

    Example:
        >>> import jax.numpy as jnp, optax, funcnn as fnn
        >>> optimizer = optax.chain(optax.sgd(1.0), fnn.train.max_norm(1.0))
        >>> params = {"w": jnp.array([[3.0], [4.0]])}
        >>> updates, _ = optimizer.update({"w": jnp.zeros((2, 1))}, optimizer.init(params), params)
        >>> print(optax.apply_updates(params, updates)["w"].round(3))
        [[0.6]
         [0.8]]

    Source: Srivastava et al., Dropout (2014), section 5.1.
    """
    if not is_positive(c):
        raise ValueError(f"max_norm's c is positive, got {c!r}")
    names = leaf_names(leaves)

    def init(params: Any) -> optax.EmptyState:
        select_leaves(params, names, "max_norm")
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("max_norm needs the parameters: optimizer.update(grads, state, params)")

        def constrained(p: jax.Array, u: jax.Array) -> jax.Array:
            w = p + u
            norm = jnp.sqrt(jnp.sum(jnp.square(w), axis=axis, keepdims=True))
            return w * jnp.minimum(1, c / jnp.where(norm == 0, c, norm)).astype(w.dtype) - p

        p_leaves, treedef = jax.tree.flatten(params)
        chosen = select_leaves(params, names, "max_norm")
        new = [
            constrained(p, u) if pick else u
            for p, u, pick in zip(p_leaves, jax.tree.leaves(updates), chosen, strict=True)
        ]
        return jax.tree.unflatten(treedef, new), state

    return optax.GradientTransformation(init, update)
