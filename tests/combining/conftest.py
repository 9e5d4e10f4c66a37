"""All comparisons here are in float64, and uncompiled except in tests that use `compiled`."""

from collections.abc import Iterator

import jax
import pytest

from ..uncompiled import uncompiled


@pytest.fixture(autouse=True)
def float64(request: pytest.FixtureRequest) -> Iterator[None]:
    """Enables float64 in JAX."""
    with jax.enable_x64(True), uncompiled(apply="compiled" not in request.fixturenames):
        yield


@pytest.fixture
def compiled() -> None:
    """The test runs as users run it, with compiled functions."""
