"""Checks of the values in a config's fields."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxmix.untrusted.patterns import is_match

__all__ = [
    "ANY",
    "BOUND",
    "COUNT",
    "FLAG",
    "INTEGER",
    "MASKS",
    "NAMES",
    "NUMBER",
    "PATTERNS",
    "RANKS",
    "ROUNDS",
    "SHARE",
    "TERMS",
    "TOKENS",
    "Check",
    "describe_wrong_values",
    "matches_site",
    "one_of",
    "short_json",
]


class Check(NamedTuple):
    """A condition on a field's value.

    Args:
        description: The condition, for messages.
        holds: Whether a value meets it.
        is_required: Whether the config must have the field.
    """

    description: str
    holds: Callable[[Any], bool]
    is_required: bool = True


def _is_number(value: Any) -> bool:
    # Not `isfinite`, which overflows for an integer larger than all floats.
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and abs(value) <= sys.float_info.max


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**63


def _is_pattern(text: str) -> bool:
    try:
        matches_site(text, "")
    except re.error:
        return False
    return True


def _are_patterns(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(_is_pattern(k) and holds(v) for k, v in value.items())


def _are_masks(value: Any) -> bool:
    lists = value.values() if isinstance(value, dict) else [None]
    return all(
        isinstance(x, list) and all(isinstance(is_kept, bool) for is_kept in x) for x in lists
    )


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in value
    )


ANY = Check("anything", lambda value: True, False)
COUNT = Check("a positive integer", _is_count)
# Of a series that is summed term by term; PEFT's default is 5.
TERMS = Check("an integer from 1 to 1,000", lambda value: _is_count(value) and value <= 1000, False)
# Of a loop whose rounds each cost as much as a product with the weight; PEFT's default is 10.
ROUNDS = Check(
    "an integer from 0 to 1,000",
    lambda value: (type(value) is int and value == 0) or TERMS.holds(value),
    False,
)
INTEGER = Check(
    "an integer",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63,
)
NUMBER = Check("a finite number", _is_number)
SHARE = Check("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
BOUND = Check("a finite number, 0 or more", lambda value: _is_number(value) and value >= 0)
FLAG = Check("true or false", lambda value: isinstance(value, bool), False)
NAMES = Check("a list of module names", _are_names, False)
RANKS = Check(
    "an object that maps regular expressions to positive integers",
    lambda value: _are_patterns(value, _is_count),
    False,
)
PATTERNS = Check(
    "an object that maps regular expressions to finite numbers",
    lambda value: _are_patterns(value, _is_number),
    False,
)
TOKENS = Check(
    "a list of token indices, or an object that maps module names to such lists",
    lambda value: (
        _are_tokens(value) or (isinstance(value, dict) and all(map(_are_tokens, value.values())))
    ),
    False,
)
MASKS = Check(
    "an object that maps the names of lora_E to lists of true and false", _are_masks, False
)


def one_of(*choices: str) -> Check:
    """Returns the check of a field whose value is one of a few strings."""
    return Check(" or ".join(map(repr, choices)), lambda value: value in choices, False)


def describe_wrong_values(values: Mapping[str, Any], checks: Mapping[str, Check]) -> list[str]:
    """Describes the fields whose values fail their checks; null counts as absent."""
    wrong: list[str] = []
    for field, check in checks.items():
        value = values.get(field)
        if value is None and check.is_required:
            wrong.append(f"{field} is missing, expected {check.description}")
        elif value is not None and not check.holds(value):
            wrong.append(f"{field} is {short_json(value)}, expected {check.description}")
    return wrong


def matches_site(pattern: str, site: str) -> bool:
    """Returns whether a pattern of PEFT matches a site: a regular expression for its path's end."""
    return is_match(rf"(.*\.)?({pattern})$", site)


def short_json(value: Any) -> str:
    """Formats a value as JSON, truncated to 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
