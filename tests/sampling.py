"""Tests whose cases take one way through the code: `make test` runs one of n, CI all of them."""

import re
from collections import Counter

import pytest

__all__ = ["mark_others_thorough"]

# Multiples of it are spread evenly over [0, 1) in every order, so that the cases that are kept do
# not fall into step with a parameter of two or three values.
_GOLDEN = (5**0.5 - 1) / 2


def mark_others_thorough(items: list[pytest.Item]) -> None:
    """Marks the cases that ``@pytest.mark.one_of(n)`` leaves out, except those that are already.

    Cases are counted for each first word of their names, such as a family's. The first one is kept.

    Args:
        items: All tests, in the order of their cases.
    """
    counts: Counter[str] = Counter()
    for item in items:
        marker = item.get_closest_marker("one_of")
        if marker is None or item.get_closest_marker("thorough"):
            continue
        function, _, case = item.nodeid.partition("[")
        word = re.match(r"[A-Za-z]*", case)
        name = f"{function} {word and word[0]}"
        if counts[name] * _GOLDEN % 1 >= 1 / marker.args[0]:
            item.add_marker(pytest.mark.thorough)
        counts[name] += 1
