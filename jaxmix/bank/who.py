"""Which member each row of a batch is for: names, numbers, or a strength for each member."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxmix.errors import AdapterError, listing

__all__ = ["as_array", "is_array", "read", "wrong_number"]

_EXPECTED = (
    "expected for each row a member's name or None, a whole number (-1 for the base), or a "
    "strength for each member"
)


def read(who: Any, names: Sequence[str | None]) -> Any:
    """Whatever a user says as an array.

    Args:
        who: A sequence of names and Nones, or of ``{name: strength}``; whole numbers (rows,); or
            floats (rows, members).
        names: The members' names, in order; None where there is none.

    Returns:
        Whole numbers (rows,), int32, or floats (rows, members).

    Raises:
        AdapterError: If it is nothing of that, a name or number is of no member, or a strength is
            not finite.
    """
    if isinstance(who, str | Mapping) or who is None:
        raise AdapterError(f"who is {who!r}, {_EXPECTED}. One row for one name is [{who!r}].")
    if not is_array(who):
        rows = list(who)
        if rows and all(row is None or isinstance(row, str) for row in rows):
            return np.asarray(_numbers(rows, names), np.int32)
        if rows and all(row is None or isinstance(row, str | Mapping) for row in rows):
            return _strengths(rows, names)
        try:
            who = np.asarray(rows) if rows else np.zeros(0, np.int32)
        except ValueError:
            who = np.asarray(None)
    return as_array(who, names)


def is_array(who: Any) -> bool:
    """Whether it is an array of numbers; one of names is a list of names."""
    return isinstance(who, jax.Array | np.ndarray) and who.dtype.kind not in "OUT"


def _numbers(rows: Sequence[Any], names: Sequence[str | None]) -> list[int]:
    """The members' numbers; names that are of none are listed."""
    known = {name: i for i, name in enumerate(names) if name is not None} | {None: -1}
    unknown = Counter(row for row in rows if row not in known)
    if unknown:
        lines = [f"{name!r} (rows {_where(rows, name)})" for name in unknown]
        there = ", ".join(repr(name) for name in names if name is not None) or "none"
        raise AdapterError(f"names that the bank does not have:{listing(lines)}\nIt has {there}.")
    return [known[row] for row in rows]


def _where(rows: Sequence[Any], name: Any) -> str:
    at = [str(i) for i, row in enumerate(rows) if row == name]
    return ", ".join(at[:5]) + (", …" if len(at) > 5 else "")


def _strengths(rows: Sequence[Any], names: Sequence[str | None]) -> np.ndarray:
    """Strengths by name as an array."""
    every = [row if isinstance(row, Mapping) else {} if row is None else {row: 1.0} for row in rows]
    _numbers([name for row in every for name in row], names)
    out = np.zeros((len(rows), len(names)), np.float32)
    for i, row in enumerate(every):
        for name, strength in row.items():
            out[i, list(names).index(name)] = strength
    return as_array(out, names)


def as_array(who: Any, names: Sequence[str | None] | None) -> Any:
    """An array as `read` gives it, looked at as far as it can be.

    Args:
        who: whole numbers (rows,), or floats (rows, members).
        names: The members' names; None where nobody knows them.

    Raises:
        AdapterError: As `read`.
    """
    is_whole, is_float = (jnp.issubdtype(who.dtype, kind) for kind in (jnp.integer, jnp.floating))
    if is_whole and who.ndim == 1:
        wrong = [] if names is None or isinstance(who, Tracer) else _wrong(who, names)
        if names is not None and len(wrong):
            lines = [f"row {i}: {int(who[i])}" for i in wrong]
            there = ", ".join(f"{i} {name!r}" for i, name in enumerate(names) if name is not None)
            raise AdapterError(
                f"numbers of members that the bank does not have:{listing(lines)}\nIt has "
                f"{there or 'none'}; -1 is the base."
            )
        return who.astype(np.int32)
    if is_float and who.ndim == 2 and (names is None or who.shape[1] == len(names)):
        if not isinstance(who, Tracer) and not np.isfinite(np.asarray(who, np.float64)).all():
            raise AdapterError("who has a strength that is not finite, expected real numbers.")
        return who
    count = "members" if names is None else str(len(names))
    raise AdapterError(
        f"who is an array {who.dtype} {who.shape}, expected whole numbers (rows,) or floats (rows, "
        f"{count}): a strength for each member of the bank."
    )


def _wrong(who: Any, names: Sequence[str | None]) -> np.ndarray:
    taken = np.asarray([name is not None for name in names], bool)
    return np.flatnonzero(wrong_number(np.asarray(who), taken))


def wrong_number(who: Any, taken: Any) -> Any:
    """Where a whole number is of no member and not -1.

    Args:
        who: whole numbers (rows,), traced or not.
        taken: Whether there is a member of each number (n,), likewise.
    """
    size = taken.shape[0]
    inside = (who >= 0) & (who < size)
    there = inside & taken[who * inside.astype(who.dtype)] if size else inside
    return ~(there | (who == -1))
