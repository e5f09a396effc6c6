"""The comparisons are of rules, not of matrix units: TF32 and bfloat16 products are switched off."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield
