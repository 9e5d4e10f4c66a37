"""The cost of regular expressions: bounds the number of attempts of a backtracking engine."""

import re
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

__all__ = ["MOST_STEPS", "REPEATS", "is_in", "match_cost"]

# The maximal number of steps for Python's engine, which take some hundredths of a second.
MOST_STEPS = 300_000
# More repeats than this of an ambiguous part count as infinitely expensive.
_REPEATED = 16
REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")


def match_cost(tree: Any, length: int, *, ignores_case: bool = False) -> tuple[float, float]:
    """Bounds the work of a backtracking engine on a string of some length.

    Args:
        tree: The parsed expression, from Python's parser.
        length: The length of the string.
        ignores_case: Whether the expression ignores case.

    Returns:
        The number of ways in which the expression can match from one position, and the number of
        steps to try all of them.
    """
    ways, steps = 1.0, 1.0
    nodes = list(tree)
    for at, (op, value) in enumerate(nodes):
        node_ways, node_steps = _node_cost(str(op), value, length, ignores_case)
        if not ignores_case and _has_unique_end(nodes[at : at + 2]):
            node_ways = 1.0
        steps += ways * node_steps
        ways *= node_ways
        if steps > MOST_STEPS:
            break
    return ways, steps


def _node_cost(name: str, value: Any, length: int, ignores_case: bool) -> tuple[float, float]:
    """Returns the ways and steps of one node."""
    inner = partial(match_cost, length=length, ignores_case=ignores_case)
    if name == "BRANCH":
        costs = [inner(alternative) for alternative in value[1]]
        all_ways = [ways for ways, _ in costs]
        # If alternatives begin with different letters, at most one can match at a position.
        is_exclusive = not ignores_case and _have_distinct_starts(value[1])
        return max(all_ways) if is_exclusive else sum(all_ways), sum(steps for _, steps in costs)
    if name in REPEATS:
        least, most = value[0], min(int(value[1]), length + 1)
        ways, steps = inner(value[2])
        if most <= 1:
            return ways + (least == 0), 1 + steps
        if ways == 1:
            return max(most - least, 0) + 1, steps * most
        if most > _REPEATED:
            return float("inf"), float("inf")
        total = sum(ways**n for n in range(most + 1))
        return total, total * steps
    parts = [inner(child) for child in _children(name, value)]
    ways, steps = max((w for w, _ in parts), default=1.0), sum(part for _, part in parts)
    # The engine does not backtrack into an assertion that has matched.
    return (1.0 if name.startswith(("ASSERT", "ATOMIC")) else ways), 1 + steps


def _has_unique_end(nodes: Sequence[Any]) -> bool:
    r"""Whether a repeated character class can end at only one position, as in ``\d+\.``."""
    if len(nodes) < 2 or str(nodes[1][0]) != "LITERAL":
        return False
    op, value = nodes[0]
    while str(op) == "SUBPATTERN" and len(value[-1]) == 1:
        op, value = value[-1][0]
    if str(op) not in REPEATS or [str(inner) for inner, _ in value[2]] != ["IN"]:
        return False
    return not is_in(tuple(value[2][0][1]), chr(nodes[1][1]))


def _have_distinct_starts(trees: Sequence[Any]) -> bool:
    """Whether all alternatives begin with different letters."""
    firsts = [tree[0] if len(tree) else None for tree in trees]
    letters = [first[1] for first in firsts if first and str(first[0]) == "LITERAL"]
    return len(set(letters)) == len(trees)


def _children(name: str, value: Any) -> Sequence[Any]:
    """Returns the trees in a node that is neither a choice nor a repeat."""
    if name in ("SUBPATTERN", "ASSERT", "ASSERT_NOT"):
        return (value[-1],)
    if name == "ATOMIC_GROUP":
        return (value,)
    if name == "GROUPREF_EXISTS":
        return tuple(child for child in value[1:] if child is not None)
    return ()


@cache
def is_in(members: tuple[Any, ...], character: str) -> bool:
    """Whether a character is in a character class.

    Args:
        members: The class, from Python's parser.
        character: The character.

    Returns:
        Whether it is in the class.
    """
    negated = str(members[0][0]) == "NEGATE"
    for op, value in members[1:] if negated else members:
        name, code = str(op), ord(character)
        if (
            (name == "LITERAL" and code == value)
            or (name == "RANGE" and value[0] <= code <= value[1])
            or (name == "CATEGORY" and _is_category(str(value), character))
        ):
            return not negated
    return negated


def _is_category(name: str, character: str) -> bool:
    r"""Whether a character is in a category: ``\d``, ``\s``, ``\w`` or the negation of one."""
    category = name.removeprefix("CATEGORY_").removeprefix("NOT_")
    letter = {"DIGIT": "d", "SPACE": "s", "WORD": "w"}[category]
    return (re.match(rf"\{letter}", character) is not None) is ("NOT_" not in name)
