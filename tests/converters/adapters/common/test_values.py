"""Checks of the values in a config's fields."""

from typing import Any

import pytest

from jaxmix.converters.adapters.common.values import (
    ANY,
    BOUND,
    COUNT,
    FLAG,
    INTEGER,
    MASKS,
    NAMES,
    NUMBER,
    PATTERNS,
    RANKS,
    ROUNDS,
    SHARE,
    TERMS,
    TOKENS,
    Check,
    describe_wrong_values,
    matches_site,
    one_of,
    short_json,
)

NAN, INF = float("nan"), float("inf")


def test_terms_of_a_series() -> None:
    assert TERMS.holds(1) and TERMS.holds(1000)
    assert not any(map(TERMS.holds, (0, 1001, 2**62, True, 5.0)))


@pytest.mark.parametrize(
    ("check", "valid", "invalid"),
    [
        (COUNT, [1, 2**63 - 1], [0, -1, 2**63, True, 1.0, "1"]),
        (ROUNDS, [0, 1000], [-1, 1001, False, 0.0]),
        (INTEGER, [0, -(2**63) + 1], [2**63, -(2**63), False, 1.0]),
        # 10**400 is an integer that no float can hold.
        (NUMBER, [0, -1.5, 10**300], [NAN, INF, -INF, 10**400, True, "1"]),
        (SHARE, [0, 1, 0.5], [-1e-9, 1.1, NAN, True]),
        (BOUND, [0, 0.0, 2.5], [-1, INF, NAN, False]),
        (FLAG, [True, False], [0, 1, "true", None]),
        (NAMES, [[], ["a"]], ["a", [""], [1], {"a": 1}]),
        (RANKS, [{}, {"a.*": 1}], [{"(": 1}, {"a": 0}, {"a": True}, {"a": 1.0}, ["a"]]),
        (PATTERNS, [{"a": 0.5, "b": -1}], [{"(": 1}, {"a": NAN}, {"a": "1"}]),
        (TOKENS, [[], [0, 3], {"a": [1]}, {}], [[-1], [True], [1.0], {"a": 1}, "01"]),
        (MASKS, [{}, {"a": []}, {"a": [True]}], [[True], {"a": [1]}, {"a": True}, {"a": None}]),
        (one_of("a", "b"), ["a", "b"], ["c", "", 1, ["a"]]),
        (ANY, [None, NAN, {}], []),
    ],
)
def test_checks_at_their_bounds(check: Check, valid: list[Any], invalid: list[Any]) -> None:
    """A boolean is no number, a number is no boolean."""
    assert [value for value in valid if not check.holds(value)] == []
    assert [value for value in invalid if check.holds(value)] == []


def test_wrong_fields_are_described_in_the_order_of_the_checks() -> None:
    """Null counts as absent, and fields without a check are not looked at."""
    values = {"other": 1, "bias": "al", "alpha": None, "r": 0, "use_rslora": None}
    checks = {"r": COUNT, "alpha": NUMBER, "use_rslora": FLAG, "bias": one_of("all", "none")}
    assert describe_wrong_values(values, checks) == [
        "r is 0, expected a positive integer",
        "alpha is missing, expected a finite number",
        "bias is \"al\", expected 'all' or 'none'",
    ]


def test_pattern_matches_the_end_of_a_path() -> None:
    """The end begins after a dot, and an alternative is matched as a whole."""
    assert matches_site("q|k", "h.0.q") and matches_site("q|k", "k")
    assert not any(matches_site("q|k", site) for site in ("h.0.seq", "q.h", "kv"))


def test_long_values_are_cut_at_60_characters() -> None:
    """Quotes included; shorter ones are whole."""
    assert short_json("x" * 58) == f'"{"x" * 58}"'
    assert short_json("x" * 59) == f'"{"x" * 56}…'
