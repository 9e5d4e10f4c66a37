"""How messages name an option on the command line, where the Python world says ``name=value``."""

import ast
import shlex
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["spelled"]

# Python's names of options that are called otherwise here.
_FLAGS = {"format": "--from"}
_ELSEWHERE = "convert"


def spelled(command: str, options: Mapping[str, Mapping[str, str]]) -> Callable[[str, str], str]:
    """How options are spelled while a command runs.

    Args:
        command: the command that runs.
        options: for each command its flags, and what stands for their value in its help.

    Returns:
        From an option's name in Python and the literal of its value to what to write; where the
        command does not have it, that ``jaxmix convert`` does.

    Example:
        >>> flags = {"merge": {"--subfolder": "FOLDER"}, "convert": {"--part": "PREFIX"}}
        >>> spelled("merge", flags)("subfolder", "'a b'")
        "--subfolder 'a b'"
        >>> spelled("merge", flags)("part", "'…'")
        '--part PREFIX to `jaxmix convert`, and take what it writes'
    """

    def spell(name: str, literal: str) -> str:
        flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
        own = options.get(command, {})
        there = own if flag in own else options.get(_ELSEWHERE, {})
        text = f"{flag} {_value(literal) or there.get(flag, '…')}"
        if literal == "True":
            text = flag
        if flag in own or flag not in there:
            return text
        return f"{text} to `jaxmix {_ELSEWHERE}`, and take what it writes"

    return spell


def _value(literal: str) -> str:
    """A value as the shell takes it; "" if only the user knows it."""
    value: Any = literal if literal == "…" else ast.literal_eval(literal)
    return "" if value == "…" else shlex.quote(str(value))
