"""The cost of a regular expression: the ways and steps of a backtracking engine."""

from re import _parser as parser  # pyright: ignore[reportAttributeAccessIssue]

import pytest

from jaxmix.untrusted.pattern_cost import MOST_STEPS, is_in, match_cost

INFINITE = float("inf")


@pytest.mark.parametrize(
    ("pattern", "ways"),
    [
        ("abc", 1),
        ("a?", 2),
        ("a*", 10),  # at least the 9 numbers of repeats in 8 letters
        ("a{2,5}", 4),
        ("a*b*", 100),
        ("a|b", 1),  # at most one alternative matches
        ("a|a", 2),
        ("ab|cd|ce", 3),
        ("(?:a|a){2}", 7),  # 1 + 2 + 4
        ("(a?)*", 1023),  # 1 + 2 + … + 2⁹
        (r"\d+\.", 1),  # the digits end where the dot is
        (r"(\d+)\.", 1),
        (r"\d+5", 9),
        ("(?=a*)", 1),  # the engine does not backtrack into an assertion
        ("(?>a*)", 1),
        ("(a)?(?(1)b*|c*)", 20),
    ],
)
def test_ways_of_a_match_are_bounded(pattern: str, ways: int) -> None:
    """The cost counts the ways to match a string of 8 letters."""
    assert match_cost(parser.parse(pattern), 8)[0] == ways


def test_letters_of_both_cases_are_alternatives() -> None:
    """If case is ignored, alternatives that begin with different letters may both match."""
    tree = parser.parse("ab|Ab")
    assert match_cost(tree, 8)[0] == 1
    assert match_cost(tree, 8, ignores_case=True)[0] == 2


def test_steps_grow_with_ambiguity() -> None:
    """Steps exceed the limit for nested repeats, and stay small for a plain name."""
    plain, nested = (parser.parse(pattern) for pattern in (r".*\.q_proj", "(?:a|a)*b"))
    assert match_cost(plain, 100)[1] < 1000 < MOST_STEPS
    assert match_cost(nested, 10)[1] > 2**10
    assert match_cost(nested, 100) == (INFINITE, INFINITE)


@pytest.mark.parametrize(
    ("pattern", "members", "others"),
    [
        ("[a-f7]", "af7", "g8A"),
        ("[^a-f7]", "g8A", "af7"),
        (r"[\d_]", "09_", "a "),
        (r"[\W]", " .", "a_9"),
        (r"[^\s]", "a.", " \n"),
    ],
)
def test_members_of_a_class_match_it(pattern: str, members: str, others: str) -> None:
    """`is_in` agrees with Python's engine."""
    ((_, node),) = parser.parse(pattern + "+")[0][1][2]
    assert all(is_in(tuple(node), character) for character in members)
    assert not any(is_in(tuple(node), character) for character in others)
