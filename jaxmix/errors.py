"""The exceptions of jaxmix: one base class, and a subclass for each kind of problem.

A message states where the problem is, what was found, what was expected and what to do, and lists
all offenders at once. All exceptions are also ``ValueError``.
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
    "remedy",
    "spelling",
    "to_lora_call",
]

# From an option's name and the literal of its value to its spelling in messages.
_spelling: ContextVar[Callable[[str, str], str] | None] = ContextVar("spelling", default=None)


class JaxmixError(ValueError):
    """Base class of all exceptions that jaxmix raises on purpose."""


class AdapterError(JaxmixError):
    """An invalid adapter or mix: names, strengths, parts, non-finite factors."""


class LayoutError(JaxmixError):
    """A site that matches no leaf, or more than one, or a leaf that can't take an update."""


class ShapeError(JaxmixError):
    """A factor whose shape does not fit its weight."""


class CheckpointError(JaxmixError):
    """A file that is missing, damaged, incomplete, or has unexpected contents."""


class VerificationError(CheckpointError):
    """An output that differs from what should have been written."""


class UnsupportedError(JaxmixError):
    """Valid input that jaxmix does not support; the message says why and what to do."""


class DenseWeightWarning(UserWarning):
    """A weight that `factored` or `fit` makes dense because a use of it has no factored form."""


def listing(lines: Iterable[str], limit: int = 20) -> str:
    """Formats offenders as one line each, up to ``limit``, and counts the rest.

    Args:
        lines: One offender each.
        limit: The number of lines to show.

    Returns:
        Indented lines, each after a newline, to follow a colon.
    """
    lines = list(lines)
    shown = "".join(f"\n  {line}" for line in lines[:limit])
    rest = len(lines) - limit
    return shown + (f"\n  … and {rest} more" if rest > 0 else "")


def option(name: str, value: object = True, *, of: str = "") -> str:
    """Returns an option as the user would write it, for messages.

    Args:
        name: The option's name in Python.
        value: Its value; ``...`` for a value that only the user knows.
        of: In Python, the start of the call that takes it, such as ``"load(path"``.

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


def remedy(python: str, command_line: str) -> str:
    """Returns what the user can do, for messages, if it is not the same option in both interfaces.

    Args:
        python: What to write in Python.
        command_line: What to type instead in the terminal, where a command of jaxmix runs.

    Example:
        >>> remedy("jaxmix.save", "`jaxmix convert --to mix`")
        'jaxmix.save'
    """
    return python if _spelling.get() is None else command_line


def to_lora_call(subject: str = "adapter") -> str:
    """Returns how the user makes a LoRA of an adapter or a mix, for messages.

    Example:
        >>> to_lora_call("mix")
        'jaxmix.to_lora(mix, params)'
    """
    return remedy(f"jaxmix.to_lora({subject}, params)", option("rank", ...))


@contextmanager
def spelling(spell: Callable[[str, str], str]) -> Iterator[None]:
    """Changes how `option` spells options inside a ``with`` block.

    Args:
        spell: Returns the spelling for an option's name and the Python literal of its value.

    Yields:
        Nothing.
    """
    before = _spelling.set(spell)
    try:
        yield
    finally:
        _spelling.reset(before)
