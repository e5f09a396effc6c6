"""Quantities of the rows of a backward pass: per-example gradients and what they sum to, and factors of curvature.

Each is a function of `Rows`. None but `gradients` forms the gradients of the examples where a layer gives its factors:
with g_n = a_n d_n^T, the norm is |a_n| |d_n|, a dot product (a_n . a_m) (d_n . d_m), and sum_n g_n^2 is one more matrix
product, of the squares. Shapes: C deltas, N examples, T positions, a (N, T, A), d (C, N, T, B), as in `Outer`. The
blocks of a `Repeat` are taken one at a time.
"""

import dataclasses

import jax
import jax.numpy as jnp

from funcnn.backprop import per_example
from funcnn.backprop.outer import (
    Outer,
    activity_moment,
    delta_moment,
    dot_products_of,
    formed,
    squared_norms_of,
    sum_of_squares_of,
    weighted_sum,
)
from funcnn.backprop.per_example import Rows
from funcnn.layer import Params, is_positive


def gradients(rows: Rows) -> Params:
    """The gradient of each example by itself.

    Args:
        rows: of any kind.

    Returns:
        A tree of the structure of params, of arrays (N, *shape): dloss_n/dparams. For rows of a curvature matrix
        (C, N, *shape). It takes C N times the memory of the parameters.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> objective = fnn.Objective(fnn.Dense(2), fnn.losses.squared_error)
        >>> params, batch = objective.net.init(jax.random.key(0), (3,)), (jnp.ones((5, 3)), jnp.ones((5, 2)))
        >>> fnn.backprop.quantities.gradients(fnn.backprop.rows(objective)(params, batch))["w"].shape
        (5, 3, 2)
    """
    if _check_rows("gradients", rows).of != per_example.LOSS:
        return rows.map(lambda outer: formed(outer, outer.delta))
    inverse = _inverse(rows.shares)
    return rows.map(lambda outer: formed(outer, outer.delta * _along(inverse, outer))[0])


def squared_norms(rows: Rows) -> jax.Array:
    """|g_n|^2 of each example's gradient, over all parameters.

    |sum_t a_nt d_nt^T|^2 = sum_tu (a_nt . a_nu) (d_nt . d_nu)

    Args:
        rows: of any kind.

    Returns:
        (N,); for rows of a curvature matrix (C, N).

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> objective = fnn.Objective(fnn.Dense(1, bias=False), fnn.losses.squared_error)
        >>> batch = jnp.array([[1.0, 2.0]]), jnp.array([[0.0]])
        >>> rows = fnn.backprop.rows(objective)({"w": jnp.array([[1.0], [1.0]])}, batch)
        >>> print(fnn.backprop.quantities.squared_norms(rows))  # of 2 (3 - 0) (1, 2)
        [180.]

    Source: Goodfellow, Efficient Per-Example Gradient Computations (2015).
    """
    _check_rows("norms", rows)
    each = _total([squared_norms_of(outer, outer.delta) for outer in rows.outers()])
    return each[0] * jnp.square(_inverse(rows.shares)).astype(each.dtype) if rows.of == per_example.LOSS else each


def norms(rows: Rows) -> jax.Array:
    """|g_n|, the norm of each example's gradient over all parameters: the root of `squared_norms`.

    Args:
        rows: of any kind.

    Returns:
        (N,); for rows of a curvature matrix (C, N).

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> objective = fnn.Objective(fnn.Dense(1, bias=False), fnn.losses.squared_error)
        >>> batch = jnp.array([[3.0, 4.0]]), jnp.array([[0.0]])
        >>> rows = fnn.backprop.rows(objective)({"w": jnp.array([[1.0], [1.0]])}, batch)
        >>> print(fnn.backprop.quantities.norms(rows))  # of 2 (7 - 0) (3, 4)
        [70.]
    """
    return jnp.sqrt(squared_norms(rows))


def dot_products(rows: Rows) -> jax.Array:
    """g_n . g_m for all pairs: the Gram matrix of the gradients, over all parameters.

    Args:
        rows: of any kind.

    Returns:
        (N, N); for rows of a curvature matrix (C N, C N), whose eigenvalues, but for zeros, are that matrix's.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> objective = fnn.Objective(fnn.Dense(2), fnn.losses.squared_error)
        >>> params, batch = objective.net.init(jax.random.key(0), (3,)), (jnp.ones((5, 3)), jnp.ones((5, 2)))
        >>> fnn.backprop.quantities.dot_products(fnn.backprop.rows(objective)(params, batch)).shape
        (5, 5)
    """
    _check_rows("dot_products", rows)
    each = _total([dot_products_of(outer, outer.delta) for outer in rows.outers()])
    if rows.of != per_example.LOSS:
        return each
    inverse = _inverse(rows.shares).astype(each.dtype)
    return each * inverse[:, None] * inverse[None]


def sum_of_squares(rows: Rows) -> Params:
    """The sum over the rows of each gradient's square, element by element.

    Of the rows of a curvature matrix it is the matrix's diagonal: exact for "gauss_newton", an unbiased estimate for
    "fisher". Of those of the loss it is N times the diagonal of the empirical Fisher matrix of N examples of equal
    weight: an example's weight changes nothing, but for one of weight 0, which is left out.

    Args:
        rows: of any kind.

    Returns:
        A tree of the structure and shapes of params.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> objective = fnn.Objective(fnn.Dense(1, bias=False), fnn.losses.squared_error)
        >>> batch = jnp.array([[1.0], [2.0]]), jnp.array([[0.0], [0.0]])
        >>> rows = fnn.backprop.rows(objective)({"w": jnp.array([[1.0]])}, batch)
        >>> print(fnn.backprop.quantities.sum_of_squares(rows)["w"])  # (2 * 1)^2 + (2 * 2 * 2)^2
        [[68.]]
    """
    _check_rows("sum_of_squares", rows)
    weight = jnp.square(_inverse(rows.shares))[None] if rows.of == per_example.LOSS else None
    return rows.map(lambda outer: sum_of_squares_of(outer, outer.delta, weight))


def variance(rows: Rows) -> Params:
    """The variance over the examples of each element of the gradient: sum_n m_n (g_n - sum_m m_m g_m)^2.

    Args:
        rows: of the loss.

    Returns:
        A tree of the structure and shapes of params. It is that of the batch, divided by N and not by N - 1.

    Raises:
        ValueError: the rows are not of the loss.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> objective = fnn.Objective(fnn.Dense(1, bias=False), fnn.losses.squared_error)
        >>> batch = jnp.array([[1.0], [2.0]]), jnp.array([[0.0], [0.0]])
        >>> rows = fnn.backprop.rows(objective)({"w": jnp.array([[1.0]])}, batch)
        >>> print(fnn.backprop.quantities.variance(rows)["w"])  # of 2 and 8
        [[9.]]
    """
    _need_loss(rows, "variance")

    squares = rows.map(lambda outer: sum_of_squares_of(outer, outer.delta, _inverse(rows.shares)[None]))
    # A difference of two numbers that may be equal but for rounding.
    return jax.tree.map(lambda square, mean: jnp.maximum(square - jnp.square(mean), 0), squares, rows.mean)


def clipped_sum(rows: Rows, bound: float | jax.Array) -> Params:
    """The SUM over the examples of their gradients, each scaled down to a norm of at most `bound`.

    sum_n g_n min(1, bound / |g_n|), with |g_n| over all parameters. What differential privacy adds noise to, of
    standard deviation noise_multiplier * bound, for example by an optax transformation; `clipped_mean` is the mean.

    Args:
        rows: of the loss.
        bound: the largest norm, in units of the gradient.

    Returns:
        A tree of the structure and shapes of params. Two passes: the deltas are scaled, and summed into gradients anew.

    Raises:
        ValueError: the rows are not of the loss, or `bound` is not positive.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> objective = fnn.Objective(fnn.Dense(1, bias=False), fnn.losses.squared_error)
        >>> batch = jnp.array([[1.0], [2.0]]), jnp.array([[0.0], [0.0]])
        >>> rows = fnn.backprop.rows(objective)({"w": jnp.array([[1.0]])}, batch)
        >>> print(fnn.backprop.quantities.clipped_sum(rows, 3.0)["w"])  # of 2 and 8: 2 + 3
        [[5.]]

    Source: Abadi et al., Deep Learning with Differential Privacy (2016); Lee and Kifer (2021) for the two passes.
    """
    _need_loss(rows, "clipped_sum")
    if not isinstance(bound, jax.Array) and not is_positive(bound):
        raise ValueError(f"bound is the largest norm, a positive number, got {bound!r}")
    size = norms(rows)
    factor = jnp.minimum(1, bound / jnp.where(size > 0, size, 1)) * _inverse(rows.shares).astype(size.dtype)
    return rows.map(lambda outer: weighted_sum(outer, (outer.delta * _along(factor, outer))[0]))


def clipped_mean(rows: Rows, bound: float | jax.Array) -> Params:
    """The MEAN over the examples of their gradients, each scaled down to a norm of at most `bound`.

    `clipped_sum` divided by the number of examples (those of weight 0 are not counted).

    Args:
        rows: of the loss.
        bound: the largest norm, in units of the gradient.

    Returns:
        A tree of the structure and shapes of params.

    Raises:
        ValueError: the rows are not of the loss, or `bound` is not positive.

    Example:
        >>> import jax.numpy as jnp, funcnn as fnn
        >>> objective = fnn.Objective(fnn.Dense(1, bias=False), fnn.losses.squared_error)
        >>> batch = jnp.array([[1.0], [2.0]]), jnp.array([[0.0], [0.0]])
        >>> rows = fnn.backprop.rows(objective)({"w": jnp.array([[1.0]])}, batch)
        >>> print(fnn.backprop.quantities.clipped_mean(rows, 3.0)["w"])
        [[2.5]]
    """
    count = jnp.sum(rows.shares > 0)
    return jax.tree.map(lambda g: g / count.astype(g.dtype), clipped_sum(rows, bound))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kronecker:
    """The two factors of one parameter's block of a curvature matrix: see `kronecker_factors`.

    Those of the n blocks of a `Repeat` are stacked: (n, A, A), (n, B, B).

    Attributes:
        a: A (A, A), the second moment of the activity; None for a parameter without, such as a bias.
        b: B (B, B), that of the deltas.
        transposed: whether the parameter is (B, A), so that its block is B (x) A.
    """

    a: jax.Array | None
    b: jax.Array
    transposed: bool = dataclasses.field(default=False, metadata={"static": True})

    def matrix(self) -> jax.Array:
        """A (x) B, whose rows and columns are the parameter's numbers as `ravel` has them."""
        if self.a is None:
            return self.b
        left, right = (self.b, self.a) if self.transposed else (self.a, self.b)
        product = left[..., :, None, :, None] * right[..., None, :, None, :]
        size = left.shape[-1] * right.shape[-1]
        return product.reshape(*left.shape[:-2], size, size)


def kronecker_factors(rows: Rows) -> Params:
    """Two small matrices for each parameter whose Kronecker product stands for its block of a curvature matrix.

    A = sum_n m_n a_n a_n^T (A, A),  B = sum_nc d_nc d_nc^T (B, B);  the block of g = a d^T is taken as A (x) B.

    Of rows of "fisher" it is K-FAC, of "gauss_newton" KFLR. Positions count as examples: A is their mean, B their sum.
    Of the centres of `Rbf`, whose activity x - c_b differs from unit to unit, A is the mean over the units.
    A parameter without activity, such as a bias, has B alone, which is its block itself.

    Args:
        rows: of "gauss_newton" or "fisher".

    Returns:
        A tree of the structure of params, with `Kronecker` factors in the place of each array.

    Raises:
        ValueError: the rows are of the loss, which has no curvature.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> objective = fnn.Objective(fnn.Dense(2), fnn.losses.softmax_cross_entropy)
        >>> params, batch = objective.net.init(jax.random.key(0), (3,)), (jnp.ones((5, 3)), jnp.zeros(5, int))
        >>> rows = fnn.backprop.rows(objective, of="gauss_newton")(params, batch)
        >>> factors = fnn.backprop.quantities.kronecker_factors(rows)["w"]
        >>> factors.a.shape, factors.b.shape, factors.matrix().shape
        ((3, 3), (2, 2), (6, 6))

    Source: Martens and Grosse (2015); Botev, Ritter and Barber (2017).
    """
    if _check_rows("kronecker_factors", rows).of == per_example.LOSS:
        raise ValueError('kronecker_factors takes rows of="fisher" (K-FAC) or of="gauss_newton" (KFLR), got of="loss"')

    return rows.map(
        lambda outer: Kronecker(activity_moment(outer, rows.shares), delta_moment(outer, outer.delta), outer.transposed)
    )


def _total(values: list[jax.Array]) -> jax.Array:
    if not values:
        raise ValueError("the network has no parameters, and so its examples no gradients")
    return sum(values[1:], start=values[0])


def _check_rows(name: str, rows: Rows) -> Rows:
    if not isinstance(rows, Rows):
        raise TypeError(f"{name} is of the rows that backprop.rows(objective)(params, batch) gives, got {rows!r:.200}")
    return rows


def _need_loss(rows: Rows, name: str) -> None:
    if _check_rows(name, rows).of != per_example.LOSS:
        raise ValueError(f'{name} is of the gradients of examples: rows(objective, of="loss"), got of={rows.of!r}')


def _along(values: jax.Array, outer: Outer) -> jax.Array:
    """values (N,) to be multiplied with deltas (C, ..., N, T, B)."""
    return values.astype(outer.delta.dtype).reshape(*(1,) * (outer.delta.ndim - 3), -1, 1, 1)


def _inverse(shares: jax.Array) -> jax.Array:
    """1 / m_n (N,), 0 where it is 0: the deltas of the loss were computed with each example's share m_n in them."""
    return jnp.where(shares > 0, 1 / jnp.where(shares > 0, shares, 1), 0)
