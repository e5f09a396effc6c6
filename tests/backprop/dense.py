"""The slow definitions: every matrix whole, by autodiff, one example at a time."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import funcnn as fnn


def flat(tree: Any) -> jax.Array:
    """All numbers of a tree, in one vector."""
    return ravel_pytree(tree)[0]


def flat_rows(tree: Any, axes: int = 1) -> jax.Array:
    """All numbers of a tree of arrays with `axes` axes in front: (..., P)."""
    return jnp.concatenate([leaf.reshape(*leaf.shape[:axes], -1) for leaf in jax.tree.leaves(tree)], axis=-1)


def each_gradient(objective: fnn.Objective, params: Any, batch: Any, **noise: Any) -> jax.Array:
    """The gradient of each example's loss (N, P), by `vmap(grad)`; with noise, which is drawn for all, by `jacrev`."""
    x, y, *_ = batch
    if noise:
        return flat_rows(jax.jacrev(lambda p: objective.loss(objective.net.apply(p, x, **noise), y))(params))

    def loss(p: Any, x_n: jax.Array, y_n: jax.Array) -> jax.Array:
        return objective.loss(objective.net.apply(p, x_n[None]), y_n[None])[0]

    return flat_rows(jax.vmap(jax.grad(loss), (None, 0, 0))(params, x, y))


def output_jacobians(objective: fnn.Objective, params: Any, batch: Any, **noise: Any) -> tuple[jax.Array, jax.Array]:
    """J_n (N, K, P) of the flattened outputs, and H_n (N, K, K) of the loss for them."""
    x, y, *_ = batch

    def outputs(p: Any) -> jax.Array:
        return objective.net.apply(p, x, **noise)

    f = outputs(params)
    j = [leaf.reshape(len(x), f[0].size, -1) for leaf in jax.tree.leaves(jax.jacrev(outputs)(params))]
    return jnp.concatenate(j, axis=-1), loss_hessians(objective, f, y)


def loss_hessians(objective: fnn.Objective, f: jax.Array, y: jax.Array) -> jax.Array:
    """H_n (N, K, K) of the loss for the flattened outputs."""

    def loss(f_n: jax.Array, y_n: jax.Array) -> jax.Array:
        return objective.loss(f_n.reshape(1, *f.shape[1:]), y_n[None])[0]

    return jax.vmap(jax.hessian(loss))(f.reshape(len(f), -1), y)


def gauss_newton(objective: fnn.Objective, params: Any, batch: Any, **noise: Any) -> jax.Array:
    """sum_n m_n J_n^T H_n J_n (P, P)."""
    j, h = output_jacobians(objective, params, batch, **noise)
    return jnp.einsum("n,nkp,nkl,nlq->pq", shares(batch), j, h, j)


def shares(batch: Any) -> jax.Array:
    """m_n = w_n / sum_n w_n (N,)."""
    weight = batch[2] if len(batch) == 3 else jnp.ones(len(batch[0]))
    return weight / jnp.sum(weight)
