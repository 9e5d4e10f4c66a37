"""Regular expressions out of files, matched in bounded time.

Python's engine backtracks: on a name of forty letters ``([a-z.]+)+!`` takes it years.
So the ways that it may have to try are counted from the expression first. Where they are few, as in
what people write, Python's engine matches. Else the sets of positions at which each part may end
are computed, in polynomial time and with a limit on the steps. What that can't do, because a part
depends on what another one matched, is refused by name. Both agree on whether there is a match.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from re import _parser  # pyright: ignore[reportAttributeAccessIssue]
from typing import Any

from jaxmix.errors import UnsupportedError
from jaxmix.untrusted.pattern_cost import MOST_STEPS, is_in, ways_of

__all__ = ["find", "is_match"]

# PEFT writes expressions that list the names of all modules.
_LENGTH = 1 << 16
# The longest name that is matched here; the longest that models have are of some hundred letters.
_NAME = 4096
# So many steps are taken here.
_STEPS = 1_000_000
# A flag of the whole expression, or of a part of it.
_IGNORES_CASE = re.compile(r"\(\?[a-zA-Z]*i")


def is_match(pattern: str, text: str, *, full: bool = False) -> bool:
    """Whether a regular expression matches, as `re.match` or `re.fullmatch` says.

    Args:
        pattern: the expression.
        text: what it is matched with.
        full: whether it must match to the end.

    Returns:
        Whether it does.

    Raises:
        re.error: if it is no regular expression.
        UnsupportedError: if it may take too long.

    Example:
        >>> is_match(r"^(?!.*vision).*q_proj$", "model.layers.0.q_proj")
        True
        >>> is_match("([a-z_0-9.]+)+!", 9 * "model.layers.0.q_proj")
        False

    Source: K. Thompson, "Regular Expression Search Algorithm", 1968, for sets in place of trials.
    """
    tree, compiled = _parsed(pattern)
    if _is_quick(pattern, len(text)):
        return (compiled.fullmatch(text) if full else compiled.match(text)) is not None
    if len(text) > _NAME:
        raise _refusal(pattern, f"the name {text[:20]}… has {len(text):,} characters")
    if compiled.flags & ~(re.UNICODE | re.DOTALL):
        raise _refusal(pattern, "it sets flags")
    ends = _Ends(pattern, text, bool(compiled.flags & re.DOTALL)).of(tree, 0)
    return len(text) in ends if full else bool(ends)


def find(pattern: str, text: str, *, full: bool = False) -> re.Match[str] | None:
    r"""The match of a regular expression, with its groups.

    Args:
        pattern: the expression.
        text: what it is matched with.
        full: whether it must match to the end.

    Returns:
        The match; None if there is none.

    Raises:
        re.error: if it is no regular expression.
        UnsupportedError: if it may take too long.

    Example:
        >>> found = find(r"layers\.(\d+)", "layers.7")
        >>> found and found[1]
        '7'
    """
    if not is_match(pattern, text, full=full):
        return None
    if not _is_quick(pattern, len(text)):
        raise _refusal(pattern, "its groups could be found in too many ways")
    _, compiled = _parsed(pattern)
    return compiled.fullmatch(text) if full else compiled.match(text)


@lru_cache(maxsize=1 << 12)
def _parsed(pattern: str) -> tuple[Any, re.Pattern[str]]:
    """An expression's tree, and Python's engine for it."""
    if len(pattern) > _LENGTH:
        raise _refusal(pattern, f"it has {len(pattern):,} characters, expected {_LENGTH:,} at most")
    try:
        return _parser.parse(pattern), re.compile(pattern)
    except (RecursionError, OverflowError) as error:
        raise _refusal(pattern, "it is nested too deep, or repeats too often") from error


@lru_cache(maxsize=1 << 14)
def _is_quick(pattern: str, length: int) -> bool:
    """Whether Python's engine is quick on any text of a length."""
    ignores_case = _IGNORES_CASE.search(pattern) is not None
    return ways_of(_parsed(pattern)[0], length, ignores_case=ignores_case)[1] <= MOST_STEPS


def _refusal(pattern: str, why: str) -> UnsupportedError:
    short = pattern if len(pattern) <= 60 else pattern[:57] + "…"
    return UnsupportedError(
        f"the regular expression {short!r} could take forever: {why}. Write it without repeats of "
        "repeats, or list the modules' names."
    )


class _Ends:
    """Where the parts of an expression may end in a text, for each place where they may begin."""

    def __init__(self, pattern: str, text: str, dotall: bool):
        self.pattern, self.text, self.dotall = pattern, text, dotall
        self._known: dict[tuple[int, int], frozenset[int]] = {}
        self._steps = 0

    def of(self, tree: Any, start: int) -> frozenset[int]:
        """The ends of a sequence that begins at a place."""
        key = (id(tree), start)
        if key not in self._known:
            ends = frozenset((start,))
            for op, value in tree:
                ends = self._union(self._node(str(op), value, at) for at in ends)
                if not ends:
                    break
            self._known[key] = ends
        return self._known[key]

    def _union(self, several: Iterable[frozenset[int]]) -> frozenset[int]:
        """All of several sets, each of which counts as steps."""
        ends: set[int] = set()
        for one in several:
            ends |= one
            self._steps += 1 + len(one)
            if self._steps > _STEPS:
                raise _refusal(self.pattern, f"{self.text[:80]!r} takes too many steps")
        return frozenset(ends)

    def _node(self, name: str, value: Any, at: int) -> frozenset[int]:
        """The ends of one part."""
        if name == "BRANCH":
            return self._union(self.of(one, at) for one in value[1])
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            return self._repeat(int(value[0]), int(value[1]), value[2], at)
        if name == "SUBPATTERN" and not value[1] and not value[2]:
            return self.of(value[3], at)
        if name in ("ASSERT", "ASSERT_NOT"):
            direction, inner = value
            if direction > 0:
                found = bool(self.of(inner, at))
            else:
                begin = at - inner.getwidth()[0]
                found = begin >= 0 and at in self.of(inner, begin)
            return frozenset((at,)) if found is (name == "ASSERT") else frozenset()
        if name == "AT":
            return frozenset((at,)) if _at(str(value), self.text, at) else frozenset()
        if name in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            is_there = at < len(self.text) and self._is_one(name, value, self.text[at])
            return frozenset((at + 1,)) if is_there else frozenset()
        raise _refusal(self.pattern, f"it uses {name.lower().replace('_', ' ')}")

    def _repeat(self, least: int, most: int, inner: Any, at: int) -> frozenset[int]:
        """The ends of a repeat; beyond the text's length more rounds change nothing."""
        ends = frozenset((at,))
        for _ in range(min(least, len(self.text) + 1)):
            ends = self._round(inner, ends)
        reached, new = set(ends), ends
        for _ in range(max(min(most, least + len(self.text) + 1) - least, 0)):
            new = self._round(inner, new) - reached
            if not new:
                break
            reached |= new
        return frozenset(reached)

    def _round(self, inner: Any, ends: frozenset[int]) -> frozenset[int]:
        return self._union(self.of(inner, end) for end in ends)

    def _is_one(self, name: str, value: Any, one: str) -> bool:
        """Whether a part that is one character wide matches a character."""
        if name == "ANY":
            return self.dotall or one != "\n"
        if name == "IN":
            return is_in(tuple(value), one)
        return (ord(one) == value) is (name == "LITERAL")


def _at(name: str, text: str, at: int) -> bool:
    """Whether a place in a text is one such as its beginning."""
    if name in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
        return at == 0
    if name == "AT_END_STRING":
        return at == len(text)
    if name == "AT_END":
        return text[at:] in ("", "\n")
    letter = "b" if name == "AT_BOUNDARY" else "B"
    return re.compile(rf"\{letter}").match(text, at) is not None
