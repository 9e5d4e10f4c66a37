"""The errors of jaxmix: one base class, one kind for each thing that can be wrong.

A message says where, what was found, what was expected and what to do, and lists all offenders at
once. Every kind is also a ``ValueError``, so that code which does not know jaxmix can catch it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = [
    "AdapterError",
    "CheckpointError",
    "DenseWeightWarning",
    "JaxmixError",
    "LayoutError",
    "ShapeError",
    "UnsupportedError",
    "VerificationError",
    "option",
    "spelling",
]

# From an option's name and the literal of its value to how the reader of a message writes it.
_spelling: ContextVar[Callable[[str, str], str] | None] = ContextVar("spelling", default=None)


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


class DenseWeightWarning(UserWarning):
    """A weight that `jaxmix.factored` makes dense because a use of it has no factored form."""


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


def option(name: str, value: object = True, *, of: str = "") -> str:
    """An option as the reader of a message writes it.

    Args:
        name: the option's name in Python.
        value: what to give it; ``...`` for what only the user knows.
        of: in Python, the start of the call that takes it, such as ``"load(path"``.

    Returns:
        ``name=value``, or the whole call; on the command line ``--name value``.

    Example:
        >>> option("force"), option("subfolder", "final"), option("scale", ..., of="load(path")
        ('force=True', "subfolder='final'", 'load(path, scale=…)')
    """
    literal = "…" if value is ... else repr(value)
    if spell := _spelling.get():
        return spell(name, literal)
    return f"{of}, {name}={literal})" if of else f"{name}={literal}"


@contextmanager
def spelling(spell: Callable[[str, str], str]) -> Iterator[None]:
    """Makes `option` spell options in another way within a ``with`` block.

    Args:
        spell: from an option's name and the Python literal of its value to what to write.

    Yields:
        Nothing.
    """
    before = _spelling.set(spell)
    try:
        yield
    finally:
        _spelling.reset(before)
