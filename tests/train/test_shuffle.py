import itertools
import math
from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest

from funcnn.train.shuffle import permutation


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16, 17, 97, 100, 1347, 65537])
def test_every_number_comes_once(n: int, key: jax.Array):
    assert np.array_equal(np.sort(jax.jit(permutation, static_argnums=1)(key, n)), np.arange(n))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_all_orders_are_equally_frequent(n: int, key: jax.Array):
    draws = 40 * math.factorial(n) + 2000
    orders = np.asarray(jax.jit(jax.vmap(lambda k: permutation(k, n)))(jax.random.split(key, draws)))
    counts, expected = Counter(map(tuple, orders.tolist())), draws / math.factorial(n)
    chi2 = sum((counts[order] - expected) ** 2 / expected for order in itertools.permutations(range(n)))
    freedom = math.factorial(n) - 1
    # A chi-square variable is within 5 of its standard deviations of its mean but once in a million.
    assert abs(chi2 - freedom) < 5 * math.sqrt(2 * freedom) + 5


def test_places_and_neighbours_are_independent_of_the_numbers(key: jax.Array):
    """In a larger permutation: where each number lands, and which number follows which, over many draws."""
    n, draws = 64, 4096
    orders: Any = np.asarray(jax.jit(jax.vmap(lambda k: permutation(k, n)))(jax.random.split(key, draws)))
    places = np.zeros((n, n))
    follows = np.zeros((n, n))
    for i in range(n):
        np.add.at(places, (orders[:, i], i), 1)
        np.add.at(follows, (orders[:, i], orders[:, (i + 1) % n]), 1)
    for counts, cells in ((places, n * n), (follows[~np.eye(n, dtype=bool)], n * (n - 1))):
        expected, freedom = draws * n / cells, cells - n
        chi2 = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi2 - freedom) < 5 * math.sqrt(2 * freedom)


def test_bad_sizes_are_refused(key: jax.Array):
    with pytest.raises(ValueError, match="n = 0"):
        permutation(key, 0)
