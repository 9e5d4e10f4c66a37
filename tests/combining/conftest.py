"""Everything here is compared in float64; compiling is what takes long: it is not optimised."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """JAX computes in float64 where the arrays are."""
    with jax.enable_x64(True):
        yield
