"""Spells options in messages as on the command line, instead of Python's ``name=value``."""

import ast
import shlex
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["spelled"]

# Flags that differ from their names in Python.
_FLAGS = {"format": "--from"}
_FALLBACK = "convert"


def spelled(command: str, options: Mapping[str, Mapping[str, str]]) -> Callable[[str, str], str]:
    """Returns a function that spells options for the messages of a command.

    Args:
        command: The command that runs.
        options: For each command its flags, and the placeholder of their value in the help.

    Returns:
        A function of an option's name in Python and the literal of its value; for an option that
        the command lacks, it refers to ``jaxmix convert``.

    Example:
        >>> flags = {"merge": {"--subfolder": "FOLDER"}, "convert": {"--part": "PREFIX"}}
        >>> spelled("merge", flags)("subfolder", "'a b'")
        "--subfolder 'a b'"
        >>> spelled("merge", flags)("part", "'…'")
        '--part PREFIX with `jaxmix convert`, and use its output'
    """

    def spell(name: str, literal: str) -> str:
        flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
        own = options.get(command, {})
        known = own if flag in own else options.get(_FALLBACK, {})
        text = f"{flag} {_value(literal) or known.get(flag, '…')}"
        if literal == "True":
            text = flag
        if flag in own or flag not in known:
            return text
        return f"{text} with `jaxmix {_FALLBACK}`, and use its output"

    return spell


def _value(literal: str) -> str:
    """Quotes a value for the shell; "" for a placeholder."""
    value: Any = literal if literal == "…" else ast.literal_eval(literal)
    return "" if value == "…" else shlex.quote(str(value))
