"""Settings for all tests of operators."""

from collections.abc import Iterator
from typing import Any

import jax
import pytest

from jaxmix.operators import backends, rotations, scattering, solving


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    """All comparisons here are in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Compiles without optimization, because compilation takes most of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def tpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chooses the TPU's form."""

    def chosen(cpu: Any, accelerator: Any, *operands: Any) -> Any:
        return accelerator(backends.TPU, *operands)

    for module in (solving, scattering, rotations):
        monkeypatch.setattr(module, "by_platform", chosen)
