"""Indices of rules, as strings: the part of a leaf that one site has."""

import re
from collections.abc import Sequence
from functools import lru_cache

from jaxmix.errors import LayoutError

__all__ = ["divided", "literal_index", "parsed_index"]


@lru_cache(maxsize=4096)
def parsed_index(text: str, shape: tuple[int, ...]) -> tuple[int | slice, ...]:
    """Parses an index into a leaf.

    Args:
        text: Integers and slices, separated by commas. A divisor counts equal parts of an axis
            instead of its entries: ``1/3`` is the second of three, ``3:7/7`` the last four of
            seven.
        shape: The leaf's shape.

    Returns:
        A basic NumPy index.

    Raises:
        LayoutError: If the index is invalid.
        IndexError: If an axis with parts is absent, or can't be divided.

    Example:
        >>> parsed_index(":, 3", (2, 4))
        (slice(None, None, None), 3)
        >>> parsed_index(":, 1/3", (2, 12))
        (slice(None, None, None), slice(4, 8, None))
    """
    return tuple(_parsed(item, axis, text, shape) for axis, item in enumerate(text.split(",")))


def literal_index(text: str, shape: tuple[int, ...]) -> str:
    """Replaces the parts of axes in an index by ranges of entries.

    Args:
        text: The index.
        shape: The leaf's shape.

    Returns:
        The index without divisors.

    Example:
        >>> literal_index("2, :, 1/3", (5, 2, 12))
        '2, :, 4:8'
    """
    if "/" not in text:
        return text
    items = zip(text.split(","), parsed_index(text, shape), strict=True)
    return ", ".join(
        f"{found.start}:{found.stop}" if "/" in item and isinstance(found, slice) else item.strip()
        for item, found in items
    )


def _parsed(item: str, axis: int, text: str, shape: Sequence[int]) -> int | slice:
    """One item of an index."""
    span, *divisors = item.split("/")
    try:
        numbers = [int(part) if part.strip() else None for part in span.split(":")]
        counts = [int(divisor) for divisor in divisors]
    except ValueError:
        numbers, counts = [], []
    is_valid = numbers != [None] and 1 <= len(numbers) <= 3 - len(counts)
    if not is_valid or len(counts) > 1 or any(count < 1 for count in counts):
        raise LayoutError(
            f"the index {text!r} of a layout's rule is not a basic index, expected integers and "
            "slices separated by commas, such as ':, 3' or '0:64', or parts of an axis, such as "
            "'1/3' for the second of three."
        )
    number = numbers[0]
    picked = slice(*numbers) if number is None or len(numbers) > 1 else number
    if not counts:
        return picked
    if axis >= len(shape) or shape[axis] % counts[0]:
        raise IndexError(f"axis {axis} can't be divided into {counts[0]} equal parts")
    parts, size = range(counts[0]), shape[axis] // counts[0]
    if isinstance(picked, int):
        if not -len(parts) <= picked < len(parts):
            last = len(parts) - 1
            raise IndexError(f"there is no part {picked}; parts are numbered from 0 to {last}")
        return slice(parts[picked] * size, (parts[picked] + 1) * size)
    return slice(parts[picked].start * size, parts[picked].stop * size)


def divided(text: str) -> str:
    """Returns a string with the quotients and remainders in braces computed.

    Args:
        text: A leaf's name, or an index.

    Example:
        >>> divided("block_{7%2}[{7//2}]")
        'block_1[3]'
    """
    if "{" not in text:
        return text

    def value(match: re.Match[str]) -> str:
        a, operator, b = int(match[1]), match[2], int(match[3])
        return str(a // b if operator == "//" else a % b)

    return re.sub(r"\{(\d+)(//|%)([1-9]\d*)\}", value, text)
