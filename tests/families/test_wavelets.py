"""The wavelets' filters satisfy the equations that define them."""

import math

import numpy as np
import pytest

from jaxmix.families.wavelets import WAVELETS, low_pass


@pytest.mark.parametrize("name", WAVELETS)
def test_filters_are_orthonormal_with_vanishing_moments(name: str) -> None:
    h, order = np.array(low_pass(name)), 1 if name == "haar" else int(name.lstrip("dbsymcoif"))
    length, count = (6 * order, 2 * order) if name.startswith("coif") else (2 * order, order)
    assert len(h) == length
    assert h.sum() == pytest.approx(math.sqrt(2), abs=1e-13)
    for shift in range(0, length, 2):
        overlap = h[shift:] @ h[: length - shift]
        assert overlap == pytest.approx(float(shift == 0), abs=1e-12)
    positions = (np.arange(length) - length / 2) / length
    for power in range(count):
        assert (h * (-1.0) ** np.arange(length) * positions**power).sum() == pytest.approx(
            0, abs=1e-11
        )
    if name.startswith("coif"):
        offsets = (np.arange(length) - 2 * order) / length
        for power in range(1, count):
            assert h @ offsets**power == pytest.approx(0, abs=1e-12)


def test_filters_are_distinct() -> None:
    """No two filters are equal, except haar and db1, sym2 and db2, and sym3 and db3."""
    assert len({low_pass(name) for name in WAVELETS}) == len(WAVELETS) - 3
    assert low_pass("sym3") == low_pass("db3")
