"""Assignments of rows to members: names, numbers and strengths become arrays."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.bank.assignment import is_unknown, number_of, parse, resolve
from jaxmix.errors import AdapterError

from ..messages import full_text

# The second number is free, since its member was removed.
NAMES = ("a", None, "b")


@pytest.mark.parametrize(
    ("who", "expected"),
    [
        (["b", None, "a"], [2, -1, 0]),
        ((name for name in ("b", None)), [2, -1]),
        (np.array(["b", "a"]), [2, 0]),
        ([2, -1], [2, -1]),
        (np.array([0, 2], np.int8), [0, 2]),
        ([], []),
        ([{"b": 2, "a": -0.5}, None, "b", {}], [[-0.5, 0, 2], [0, 0, 0], [0, 0, 1], [0, 0, 0]]),
        ([[0.5, 0.0, 1.0]], [[0.5, 0, 1]]),
    ],
    ids=["names", "iterator", "array of names", "list", "int8", "none", "by name", "strengths"],
)
def test_every_spelling_becomes_numbers_or_strengths(who: Any, expected: Any) -> None:
    """Integers are int32, so the program is one for all of them."""
    parsed = parse(who, NAMES)
    assert parsed.tolist() == expected
    assert parsed.dtype == np.int32 or parsed.ndim == 2


@pytest.mark.parametrize(
    ("who", "message"),
    [
        (
            ["no", "a", *["x"] * 6],
            "the bank has no members of these names:\n  'no' (rows 0)\n"
            "  'x' (rows 2, 3, 4, 5, 6, …)\nIt has 'a', 'b'.",
        ),
        (
            [{"a": 1, "b": 1}, {"b": 1, "no": 2}, {None: 1}],
            "the bank has no members of these names:\n  'no' (rows 1)\n  None (rows 2)\n"
            "It has 'a', 'b'.",
        ),
        (
            [1, -1, -2],
            "the bank has no members of these numbers:\n  row 0: 1\n  row 2: -2\n"
            "It has 0 'a', 2 'b'; -1 is the base.",
        ),
        (
            [[1.0], [1.0, 2.0]],
            "who has rows of different lengths, expected one entry per row: a member's name or "
            "None, a member's number (-1 for the base), or a strength for each member.",
        ),
        (
            [True, False],
            "who is an array of bool with shape (2,), expected integers (rows,) or floats "
            "(rows, 3), a strength for each member of the bank.",
        ),
        (
            [{"a": float("inf")}],
            "who has a strength that is not finite, expected finite numbers.",
        ),
    ],
    ids=["names", "strengths by name", "free numbers", "ragged", "bools", "infinity"],
)
def test_wrong_rows_are_listed(who: Any, message: str) -> None:
    with pytest.raises(AdapterError, match=full_text(message)):
        parse(who, NAMES)


def test_a_bank_of_no_members_has_only_the_base() -> None:
    assert parse([None, None], ()).tolist() == [-1, -1]
    message = "the bank has no members of these names:\n  'a' (rows 0)\nIt has no members."
    with pytest.raises(AdapterError, match=full_text(message)):
        parse(["a"], ())
    message = "Bank.replace: there is no member 'a'. The bank has no members."
    with pytest.raises(AdapterError, match=full_text(message)):
        number_of("a", (None, None), "replace")


def test_arrays_are_not_compared_with_members_of_a_traced_bank() -> None:
    """The names may be others when the program runs, so numbers are masked there instead."""
    assert resolve(np.array([9, 0]), NAMES, is_traced=True).tolist() == [9, 0]
    taken = np.array([True, False, True])
    unknown = is_unknown(jnp.array([0, 1, 2, 3, -1, -2], np.int32), taken)
    assert unknown.tolist() == [False, True, False, True, False, True]
