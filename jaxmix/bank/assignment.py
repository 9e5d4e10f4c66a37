"""The assignment of rows to members: by names, by numbers, or by a strength for each member."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxmix.errors import AdapterError, UnsupportedError, listing

__all__ = ["check_array", "is_array", "is_unknown", "number_of", "parse", "resolve"]

_EXPECTED = (
    "expected one entry per row: a member's name or None, a member's number (-1 for the base), or "
    "a strength for each member"
)


def parse(who: Any, names: Sequence[str | None]) -> Any:
    """Converts an assignment to an array.

    Args:
        who: A sequence of names and Nones, or of ``{name: strength}``; integers (rows,); or floats
            (rows, members).
        names: The members' names, in order; None for a free number.

    Returns:
        Members' numbers (rows,) int32, or strengths (rows, members).

    Raises:
        AdapterError: If `who` is none of these, a name or number is unknown, or a strength is not
            finite.
    """
    if isinstance(who, str | Mapping) or who is None:
        raise AdapterError(f"who is {who!r}, {_EXPECTED}. For a single row write [{who!r}].")
    if not is_array(who):
        rows = list(who)
        if rows and all(row is None or isinstance(row, str) for row in rows):
            return np.asarray(_numbers(rows, names), np.int32)
        if rows and all(row is None or isinstance(row, str | Mapping) for row in rows):
            return _strengths(rows, names)
        try:
            who = np.asarray(rows) if rows else np.zeros(0, np.int32)
        except ValueError:
            raise AdapterError(f"who has rows of different lengths, {_EXPECTED}.") from None
    return check_array(who, names)


def resolve(who: Any, names: Sequence[str | None], is_traced: bool) -> Any:
    """Converts an assignment to an array as `parse` does, also in a traced function.

    Args:
        who: The assignment.
        names: The members' names, in order; None for a free number.
        is_traced: Whether the bank is an argument of a traced function.

    Raises:
        AdapterError: As `parse`.
        UnsupportedError: If names are used and the bank is traced.
    """
    if not is_traced:
        return parse(who, names)
    if not is_array(who):
        raise UnsupportedError(
            "names of members can't be used in a traced function that has the bank as an "
            "argument: it also runs with other members. Call bank.who([...]) outside and "
            "pass the result."
        )
    return check_array(who, None)


def number_of(name: str, names: Sequence[str | None], method: str) -> int:
    """Returns the number of a member.

    Args:
        name: The member's name.
        names: All members' names, in order; None for a free number.
        method: The bank's method that needs it.

    Raises:
        AdapterError: If there is no such member.
    """
    if name in names and name is not None:
        return names.index(name)
    present = ", ".join(repr(old) for old in names if old is not None) or "no members"
    raise AdapterError(f"Bank.{method}: there is no member {name!r}. The bank has {present}.")


def is_array(who: Any) -> bool:
    """Whether it is an array of numbers. Arrays of names count as lists of names."""
    return isinstance(who, jax.Array | np.ndarray) and who.dtype.kind not in "OUT"


def _numbers(rows: Sequence[Any], names: Sequence[str | None]) -> list[int]:
    """Returns the members' numbers, -1 for None."""
    _check_names([() if row is None else (row,) for row in rows], names)
    known = {name: i for i, name in enumerate(names) if name is not None} | {None: -1}
    return [known[row] for row in rows]


def _check_names(rows: Sequence[Iterable[Any]], names: Sequence[str | None]) -> None:
    """Raises an error that lists unknown names and their rows.

    Args:
        rows: The names in each row.
        names: The members' names.
    """
    known = {name for name in names if name is not None}
    unknown: dict[Any, list[int]] = {}
    for i, row in enumerate(rows):
        for name in row:
            if name not in known:
                unknown.setdefault(name, []).append(i)
    if unknown:
        lines = [f"{name!r} (rows {_first(at)})" for name, at in unknown.items()]
        present = ", ".join(repr(name) for name in names if name is not None) or "no members"
        raise AdapterError(
            f"the bank has no members of these names:{listing(lines)}\nIt has {present}."
        )


def _first(rows: Sequence[int]) -> str:
    """Lists the first rows."""
    return ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")


def _strengths(rows: Sequence[Any], names: Sequence[str | None]) -> np.ndarray:
    """Converts strengths by name to an array."""
    each = [row if isinstance(row, Mapping) else {} if row is None else {row: 1.0} for row in rows]
    _check_names(each, names)
    out = np.zeros((len(rows), len(names)), np.float32)
    for i, row in enumerate(each):
        for name, strength in row.items():
            out[i, list(names).index(name)] = strength
    return check_array(out, names)


def check_array(who: Any, names: Sequence[str | None] | None) -> Any:
    """Checks an array and returns it as `parse` does. Traced values are not checked.

    Args:
        who: Integers (rows,), or floats (rows, members).
        names: The members' names; None if unknown.

    Raises:
        AdapterError: As `parse`.
    """
    is_integer, is_float = (jnp.issubdtype(who.dtype, t) for t in (jnp.integer, jnp.floating))
    if is_integer and who.ndim == 1:
        wrong = [] if names is None or isinstance(who, Tracer) else _wrong(who, names)
        if names is not None and len(wrong):
            lines = [f"row {i}: {int(who[i])}" for i in wrong]
            present = ", ".join(f"{i} {name!r}" for i, name in enumerate(names) if name is not None)
            raise AdapterError(
                f"the bank has no members of these numbers:{listing(lines)}\nIt has "
                f"{present or 'no members'}; -1 is the base."
            )
        return who.astype(np.int32)
    if is_float and who.ndim == 2 and (names is None or who.shape[1] == len(names)):
        if not isinstance(who, Tracer) and not np.isfinite(np.asarray(who, np.float64)).all():
            raise AdapterError("who has a strength that is not finite, expected finite numbers.")
        return who
    count = "members" if names is None else str(len(names))
    raise AdapterError(
        f"who is an array of {who.dtype} with shape {who.shape}, expected integers (rows,) or "
        f"floats (rows, {count}), a strength for each member of the bank."
    )


def _wrong(who: Any, names: Sequence[str | None]) -> np.ndarray:
    """Returns the rows whose numbers belong to no member."""
    taken = np.asarray([name is not None for name in names], bool)
    return np.flatnonzero(is_unknown(np.asarray(who), taken))


def is_unknown(who: Any, taken: Any) -> Any:
    """Returns a mask of numbers that belong to no member and are not -1.

    Args:
        who: Integers (rows,), traced or not.
        taken: Whether each number belongs to a member (capacity,), traced or not.
    """
    # Comparisons with all members are fewer kernels on accelerators than a gather.
    numbers = np.arange(taken.shape[0], dtype=who.dtype)
    is_member = ((who[:, None] == numbers[None]) & taken[None]).any(1)
    return ~(is_member | (who == -1))
