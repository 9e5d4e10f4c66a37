"""The errors of jaxmix: one base class, one kind for each thing that can be wrong.

A message says where, what was found, what was expected and what to do, and lists all offenders at
once. Every kind is also a ``ValueError``, so that code which does not know jaxmix can catch it.
"""

from collections.abc import Iterable

__all__ = [
    "AdapterError",
    "CheckpointError",
    "JaxmixError",
    "LayoutError",
    "ShapeError",
    "UnsupportedError",
    "VerificationError",
]


class JaxmixError(ValueError):
    """Anything that jaxmix refuses. Catch this one to catch them all."""


class AdapterError(JaxmixError):
    """An adapter or a mix that makes no sense: names, strengths, parts, non-finite factors."""


class LayoutError(JaxmixError):
    """A site that finds no leaf, or more than one, or a leaf that can't take an update."""


class ShapeError(JaxmixError):
    """A factor whose shape does not fit the weight that it is for."""


class CheckpointError(JaxmixError):
    """A file that is missing, damaged, incomplete, or that holds what nobody asked for."""


class VerificationError(CheckpointError):
    """An output that was read back, and is not what it should be."""


class UnsupportedError(JaxmixError):
    """Something well-formed that jaxmix does not do; the message says why and what to do."""


def listing(lines: Iterable[str], limit: int = 20) -> str:
    """Lays offenders out one a line, the first ``limit`` of them, and counts the rest.

    Args:
        lines: one offender each.
        limit: how many to show.

    Returns:
        Indented lines, each after a newline, so that the text can follow a colon.
    """
    lines = list(lines)
    shown = "".join(f"\n  {line}" for line in lines[:limit])
    rest = len(lines) - limit
    return shown + (f"\n  … and {rest} more" if rest > 0 else "")
