"""Training runs optax, whose transformations mix dtypes: here JAX's usual promotion holds, and the config is kept."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_and_unchanged() -> Iterator[None]:
    """In the place of the fixture of the same name for the other tests."""
    before = dict(jax.config.values)
    yield
    after = dict(jax.config.values)
    assert before == after, {k: (before[k], after[k]) for k in before if before[k] != after[k]}
