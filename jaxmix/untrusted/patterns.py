"""Matches regular expressions from files in bounded time.

Python's engine backtracks: ``([a-z.]+)+!`` would take years on a name with forty letters. So this
module first bounds the number of ways that the engine may have to try. If there are few, as usual,
Python's engine is used. Otherwise the module computes the sets of positions at which each part may
end, in polynomial time and with a limit on the steps. Expressions for which this is impossible,
because a part depends on what another part matched, are refused. Both methods agree on whether
there is a match.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from re import _parser  # pyright: ignore[reportAttributeAccessIssue]
from typing import Any

from jaxmix.errors import UnsupportedError
from jaxmix.untrusted.pattern_cost import MOST_STEPS, is_in, match_cost

__all__ = ["find", "is_match"]

# The maximal length of an expression. PEFT writes some that list the names of all modules.
_LENGTH = 1 << 16
# The maximal length of a name. The longest names in models have some hundred letters.
_NAME = 4096
# The maximal number of steps.
_STEPS = 1_000_000
# The flag that ignores case, for the whole expression or a part of it.
_IGNORES_CASE = re.compile(r"\(\?[a-zA-Z]*i")


def is_match(pattern: str, text: str, *, full: bool = False) -> bool:
    """Whether a regular expression matches, like `re.match` or `re.fullmatch`.

    Args:
        pattern: The expression.
        text: The string to match.
        full: Whether the expression must match the whole string.

    Returns:
        Whether it matches.

    Raises:
        re.error: If it is not a valid regular expression.
        UnsupportedError: If it may take too long.

    Example:
        >>> is_match(r"^(?!.*vision).*q_proj$", "model.layers.0.q_proj")
        True
        >>> is_match("([a-z_0-9.]+)+!", 9 * "model.layers.0.q_proj")
        False

    Source: K. Thompson, "Regular Expression Search Algorithm", 1968, for the sets of positions.
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
    r"""Returns the match of a regular expression, with its groups.

    Args:
        pattern: The expression.
        text: The string to match.
        full: Whether the expression must match the whole string.

    Returns:
        The match, or None.

    Raises:
        re.error: If it is not a valid regular expression.
        UnsupportedError: If it may take too long.

    Example:
        >>> match = find(r"layers\.(\d+)", "layers.7")
        >>> match and match[1]
        '7'
    """
    if not is_match(pattern, text, full=full):
        return None
    if not _is_quick(pattern, len(text)):
        raise _refusal(pattern, "its groups can match in too many ways")
    _, compiled = _parsed(pattern)
    return compiled.fullmatch(text) if full else compiled.match(text)


@lru_cache(maxsize=1 << 12)
def _parsed(pattern: str) -> tuple[Any, re.Pattern[str]]:
    """Returns an expression's syntax tree and its compiled form."""
    if len(pattern) > _LENGTH:
        raise _refusal(pattern, f"it has {len(pattern):,} characters, expected at most {_LENGTH:,}")
    try:
        return _parser.parse(pattern), re.compile(pattern)
    except (RecursionError, OverflowError) as error:
        raise _refusal(pattern, "it is nested too deeply, or repeats too often") from error


def _is_quick(pattern: str, length: int) -> bool:
    """Whether Python's engine is quick on every string of a length."""
    # The cost grows with the length, so that one result holds for all shorter strings too.
    longer = max(64, 1 << length.bit_length())
    return _is_quick_at(pattern, longer) or _is_quick_at(pattern, length)


@lru_cache(maxsize=1 << 14)
def _is_quick_at(pattern: str, length: int) -> bool:
    """Whether the cost at this length is low."""
    ignores_case = _IGNORES_CASE.search(pattern) is not None
    return match_cost(_parsed(pattern)[0], length, ignores_case=ignores_case)[1] <= MOST_STEPS


def _refusal(pattern: str, reason: str) -> UnsupportedError:
    """Returns the error for an expression that may take too long."""
    short = pattern if len(pattern) <= 60 else pattern[:57] + "…"
    return UnsupportedError(
        f"the regular expression {short!r} could take forever: {reason}. Write it without nested "
        "repeats, or list the modules' names."
    )


class _Ends:
    """Computes the positions at which the parts of an expression may end, for each start."""

    def __init__(self, pattern: str, text: str, dotall: bool):
        self.pattern, self.text, self.dotall = pattern, text, dotall
        self._known: dict[tuple[int, int], frozenset[int]] = {}
        self._steps = 0

    def of(self, tree: Any, start: int) -> frozenset[int]:
        """Returns the ends of a sequence that starts at a position."""
        key = (id(tree), start)
        if key not in self._known:
            ends = frozenset((start,))
            for op, value in tree:
                ends = self._union(self._node(str(op), value, at) for at in ends)
                if not ends:
                    break
            self._known[key] = ends
        return self._known[key]

    def _union(self, position_sets: Iterable[frozenset[int]]) -> frozenset[int]:
        """Returns the union of sets, and counts their elements as steps."""
        ends: set[int] = set()
        for positions in position_sets:
            ends |= positions
            self._steps += 1 + len(positions)
            if self._steps > _STEPS:
                raise _refusal(self.pattern, f"{self.text[:80]!r} takes too many steps")
        return frozenset(ends)

    def _node(self, name: str, value: Any, at: int) -> frozenset[int]:
        """Returns the ends of one part."""
        if name == "BRANCH":
            return self._union(self.of(alternative, at) for alternative in value[1])
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            return self._repeat(int(value[0]), int(value[1]), value[2], at)
        if name == "SUBPATTERN" and not value[1] and not value[2]:
            return self.of(value[3], at)
        if name in ("ASSERT", "ASSERT_NOT"):
            direction, inner = value
            if direction > 0:
                is_satisfied = bool(self.of(inner, at))
            else:
                begin = at - inner.getwidth()[0]
                is_satisfied = begin >= 0 and at in self.of(inner, begin)
            return frozenset((at,)) if is_satisfied is (name == "ASSERT") else frozenset()
        if name == "AT":
            return frozenset((at,)) if _is_anchor(str(value), self.text, at) else frozenset()
        if name in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            matches = at < len(self.text) and self._matches(name, value, self.text[at])
            return frozenset((at + 1,)) if matches else frozenset()
        raise _refusal(self.pattern, f"it uses {name.lower().replace('_', ' ')}")

    def _repeat(self, least: int, most: int, inner: Any, at: int) -> frozenset[int]:
        """Returns the ends of a repeat. More rounds than the string's length change nothing."""
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

    def _matches(self, name: str, value: Any, character: str) -> bool:
        """Whether a part of one character matches a character."""
        if name == "ANY":
            return self.dotall or character != "\n"
        if name == "IN":
            return is_in(tuple(value), character)
        return (ord(character) == value) is (name == "LITERAL")


def _is_anchor(name: str, text: str, at: int) -> bool:
    """Whether a position satisfies an anchor, such as the start of the string."""
    if name in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
        return at == 0
    if name == "AT_END_STRING":
        return at == len(text)
    if name == "AT_END":
        return text[at:] in ("", "\n")
    letter = "b" if name == "AT_BOUNDARY" else "B"
    return re.compile(rf"\{letter}").match(text, at) is not None
