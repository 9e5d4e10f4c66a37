"""What regular expressions cost: how often a backtracking engine may have to try."""

import re
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

__all__ = ["MOST_STEPS", "REPEATS", "is_in", "ways_of"]

# So many steps Python's engine may take: some hundredths of a second.
MOST_STEPS = 300_000
# Repeats of more than this of what has ways of its own are not counted: they are too many.
_REPEATED = 16
REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")


def ways_of(tree: Any, length: int, *, ignores_case: bool = False) -> tuple[float, float]:
    """What a backtracking engine may have to do on a text of some length, at most.

    Args:
        tree: The expression, as Python's parser gives it.
        length: How many letters the text has.
        ignores_case: Whether letters may match others.

    Returns:
        In how many ways the expression can match from one place, and how many steps it takes to try
        all of them.
    """
    ways, steps = 1.0, 1.0
    nodes = list(tree)
    for at, (op, value) in enumerate(nodes):
        more, each = _ways_of_node(str(op), value, length, ignores_case)
        if not ignores_case and _ends_at_once(nodes[at : at + 2]):
            more = 1.0
        steps += ways * each
        ways *= more
        if steps > MOST_STEPS:
            break
    return ways, steps


def _ways_of_node(name: str, value: Any, length: int, ignores_case: bool) -> tuple[float, float]:
    """The ways and steps of one node."""
    inner = partial(ways_of, length=length, ignores_case=ignores_case)
    if name == "BRANCH":
        found = [inner(one) for one in value[1]]
        all_ways = [ways for ways, _ in found]
        # Of alternatives that begin with different letters one can match at a place.
        is_one = not ignores_case and _are_apart(value[1])
        return max(all_ways) if is_one else sum(all_ways), sum(steps for _, steps in found)
    if name in REPEATS:
        least, most = value[0], min(int(value[1]), length + 1)
        ways, steps = inner(value[2])
        if most <= 1:
            return ways + (least == 0), 1 + steps
        if ways == 1:
            return max(most - least, 0) + 1, steps * most
        if most > _REPEATED:
            return float("inf"), float("inf")
        every = sum(ways**n for n in range(most + 1))
        return every, every * steps
    parts = [inner(one) for one in _inside(name, value)]
    ways, steps = max((w for w, _ in parts), default=1.0), sum(each for _, each in parts)
    # An assertion is tried until it holds, and never again for another way to hold.
    return (1.0 if name.startswith(("ASSERT", "ATOMIC")) else ways), 1 + steps


def _ends_at_once(nodes: Sequence[Any]) -> bool:
    r"""Whether a run of one kind of letters can end in one place alone, as in ``\d+\.``."""
    if len(nodes) < 2 or str(nodes[1][0]) != "LITERAL":
        return False
    op, value = nodes[0]
    while str(op) == "SUBPATTERN" and len(value[-1]) == 1:
        op, value = value[-1][0]
    if str(op) not in REPEATS or [str(one) for one, _ in value[2]] != ["IN"]:
        return False
    return not is_in(tuple(value[2][0][1]), chr(nodes[1][1]))


def _are_apart(trees: Sequence[Any]) -> bool:
    """Whether alternatives begin with letters of which no two are the same."""
    firsts = [tree[0] if len(tree) else None for tree in trees]
    letters = [first[1] for first in firsts if first and str(first[0]) == "LITERAL"]
    return len(set(letters)) == len(trees)


def _inside(name: str, value: Any) -> Sequence[Any]:
    """The trees within a node that is no choice and no repeat."""
    if name in ("SUBPATTERN", "ASSERT", "ASSERT_NOT"):
        return (value[-1],)
    if name == "ATOMIC_GROUP":
        return (value,)
    if name == "GROUPREF_EXISTS":
        return tuple(one for one in value[1:] if one is not None)
    return ()


@cache
def is_in(members: tuple[Any, ...], one: str) -> bool:
    """Whether a character is in a set.

    Args:
        members: The set, as Python's parser gives it.
        one: The character.

    Returns:
        Whether it is.
    """
    negated = str(members[0][0]) == "NEGATE"
    for op, value in members[1:] if negated else members:
        name, code = str(op), ord(one)
        if (
            (name == "LITERAL" and code == value)
            or (name == "RANGE" and value[0] <= code <= value[1])
            or (name == "CATEGORY" and _is_category(str(value), one))
        ):
            return not negated
    return negated


def _is_category(name: str, one: str) -> bool:
    """Whether a character is a digit, a space, part of a word, or none of one of these."""
    kind = name.removeprefix("CATEGORY_").removeprefix("NOT_")
    letter = {"DIGIT": "d", "SPACE": "s", "WORD": "w"}[kind]
    return (re.match(rf"\{letter}", one) is not None) is ("NOT_" not in name)
