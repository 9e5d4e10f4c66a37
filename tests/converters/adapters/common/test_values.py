"""Checks of the values in a config's fields."""

from jaxmix.converters.adapters.common.values import TERMS


def test_terms_of_a_series() -> None:
    assert TERMS.holds(1) and TERMS.holds(1000)
    assert not any(map(TERMS.holds, (0, 1001, 2**62, True, 5.0)))
