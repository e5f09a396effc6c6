"""Experiments run as they do by themselves."""

from typing import Any

import jax
import pytest


@pytest.fixture(autouse=True)
def as_a_program() -> Any:
    """JAX's usual promotion, which the tests of the library are stricter than."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
