"""A random order of the examples, computed on the device, without sorting."""

import math

import jax
import jax.numpy as jnp

ROUNDS = 16  # at 12 the 720 orders of six examples are not yet equally frequent; a test counts them


def permutation(key: jax.Array, n: int) -> jax.Array:
    """A random permutation of 0..n-1, by a Feistel cipher on a grid instead of a sort.

    Number v is the cell (l, r) = (v mod a, v div a) of a grid of a b >= n cells. Each round moves it in a way that can
    be undone, l <- l + f(r) mod a and then r <- r + g(l) mod b, with hash functions f and g that `key` chooses; so the
    cells are permuted. What lands at n or beyond is moved again until it does not.

    Where `jax.random.permutation` sorts random numbers, this is some arithmetic for each number: on two CPU cores a
    third of its time for 1,344 numbers and a 37th for 60,000 (`experiments.benchmarks.overheads`), and nothing for the
    devices of a mesh to tell one another.

    Args:
        key: a random key.
        n: how many.

    Returns:
        (n,) int32. It is random enough to train by, not to keep secrets by.

    Example:
        >>> import jax
        >>> from funcnn.train.shuffle import permutation
        >>> print(sorted(permutation(jax.random.key(0), 5).tolist()))
        [0, 1, 2, 3, 4]

    Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains (2002), section 5.
    """
    if not 0 < n < 2**31:
        raise ValueError(f"a permutation is of 1 to 2**31 - 1 numbers, got n = {n}")
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    keys = jax.random.bits(key, (ROUNDS // 2, 2), jnp.uint32)

    def move(cell: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        # A loop, not ROUNDS copies of its body: one long chain of operations is compiled to slower code.
        def two_rounds(i: jax.Array, cell: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            left, right = cell
            left = _add(left, mix(right ^ keys[i, 0]), a)
            return left, _add(right, mix(left ^ keys[i, 1]), b)

        return jax.lax.fori_loop(0, ROUNDS // 2, two_rounds, cell)

    def outside(cell: tuple[jax.Array, jax.Array]) -> jax.Array:
        return cell[1] * jnp.uint32(a) + cell[0] >= n

    def move_on(cell: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        out = outside(cell)
        return tuple(jnp.where(out, new, old) for new, old in zip(move(cell), cell, strict=True))  # pyright: ignore[reportReturnType]

    start = jnp.arange(n, dtype=jnp.uint32)
    cell = move((start % jnp.uint32(a), start // jnp.uint32(a)))
    left, right = jax.lax.while_loop(lambda cell: jnp.any(outside(cell)), move_on, cell)
    return (right * jnp.uint32(a) + left).astype(jnp.int32)


def _add(value: jax.Array, hashed: jax.Array, modulus: int) -> jax.Array:
    """value + h mod modulus, with h the hash brought to 0..modulus-1 (modulus <= 2**16) by a product and a shift."""
    total = value + (((hashed >> 16) * jnp.uint32(modulus)) >> 16)
    return jnp.where(total >= modulus, total - jnp.uint32(modulus), total)


def mix(x: jax.Array) -> jax.Array:
    """A 32-bit integer hash: every bit of x changes every bit of the result half of the time (Wellons, 2018)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
