"""What the honoured fields of a config must hold."""

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
    "matches",
    "one_of",
    "short",
    "wrong_values",
]


class Check(NamedTuple):
    """What a value must be, in words and as a test, and whether a file must have it."""

    text: str
    holds: Callable[[Any], bool]
    is_needed: bool = True


def _is_number(value: Any) -> bool:
    # A comparison and no `isfinite`, which overflows for an integer beyond all floats.
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and abs(value) <= sys.float_info.max


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**63


def _is_pattern(text: str) -> bool:
    try:
        matches(text, "")
    except re.error:
        return False
    return True


def _are_patterns(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(_is_pattern(k) and holds(v) for k, v in value.items())


def _are_masks(value: Any) -> bool:
    lists = value.values() if isinstance(value, dict) else [None]
    return all(isinstance(x, list) and all(isinstance(kept, bool) for kept in x) for x in lists)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in value
    )


ANY = Check("anything", lambda value: True, False)
COUNT = Check("a whole number from 1 on", _is_count)
# Of a series that is summed term by term; PEFT's default is 5.
TERMS = Check("an integer from 1 to 1,000", lambda value: _is_count(value) and value <= 1000, False)
# Of a loop whose every round costs as much as a product with the weight; PEFT's default is 10.
ROUNDS = Check(
    "an integer from 0 to 1,000",
    lambda value: (type(value) is int and value == 0) or TERMS.holds(value),
    False,
)
INTEGER = Check(
    "a whole number",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63,
)
NUMBER = Check("a finite number", _is_number)
SHARE = Check("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
BOUND = Check("a finite number from 0 on", lambda value: _is_number(value) and value >= 0)
FLAG = Check("true or false", lambda value: isinstance(value, bool), False)
NAMES = Check("a list of module names", _are_names, False)
RANKS = Check(
    "an object from regular expressions to whole numbers from 1 on",
    lambda value: _are_patterns(value, _is_count),
    False,
)
PATTERNS = Check(
    "an object from regular expressions to finite numbers",
    lambda value: _are_patterns(value, _is_number),
    False,
)
TOKENS = Check(
    "a list of token numbers, or an object from module names to such lists",
    lambda value: (
        _are_tokens(value) or (isinstance(value, dict) and all(map(_are_tokens, value.values())))
    ),
    False,
)
MASKS = Check("an object from the names of lora_E to lists of true and false", _are_masks, False)


def one_of(*choices: str) -> Check:
    """The kind of a field that is one of a few words."""
    return Check(" or ".join(map(repr, choices)), lambda value: value in choices, False)


def wrong_values(values: Mapping[str, Any], kinds: Mapping[str, Check]) -> list[str]:
    """The fields whose values are not of their kinds, in words; null stands for an absent one."""
    wrong: list[str] = []
    for field, kind in kinds.items():
        value = values.get(field)
        if value is None and kind.is_needed:
            wrong.append(f"{field} is missing, expected {kind.text}")
        elif value is not None and not kind.holds(value):
            wrong.append(f"{field} is {short(value)}, expected {kind.text}")
    return wrong


def matches(pattern: str, site: str) -> bool:
    """Whether one of PEFT's patterns is for a site: a regular expression for its path's end."""
    return is_match(rf"(.*\.)?({pattern})$", site)


def short(value: Any) -> str:
    """A value as it stands in the file, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
