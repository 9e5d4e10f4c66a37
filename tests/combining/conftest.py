"""Compares everything in float64, uncompiled unless a test uses `compiled`."""

from collections.abc import Iterator

import jax
import pytest

from ..uncompiled import uncompiled


@pytest.fixture(autouse=True)
def float64(request: pytest.FixtureRequest) -> Iterator[None]:
    """JAX computes in float64 where the arrays are."""
    with jax.enable_x64(True), uncompiled(apply="compiled" not in request.fixturenames):
        yield


@pytest.fixture
def compiled() -> None:
    """Runs a test with compiled functions, as users do."""
