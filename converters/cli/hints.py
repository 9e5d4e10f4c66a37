"""Spells options in messages as on the command line, instead of Python's ``name=value``."""

import ast
import shlex
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["spelled"]

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
        >>> spelled("convert", flags)("rank", "0.99")
        '--energy 0.99'
        >>> spelled("merge", flags)("part", "'…'")
        '--part PREFIX with `jaxmix convert`, and use its output'
    """

    def spell(name: str, literal: str) -> str:
        value: Any = "…" if literal == "…" else ast.literal_eval(literal)
        flag, value = _on_command_line(name, value)
        of_command = options.get(command, {})
        known = of_command if flag in of_command else options.get(_FALLBACK, {})
        shown = known.get(flag, "…") if value == "…" else shlex.quote(str(value))
        text = flag if value is True else f"{flag} {shown}"
        if flag in of_command or flag not in known:
            return text
        return f"{text} with `jaxmix {_FALLBACK}`, and use its output"

    return spell


def _on_command_line(name: str, value: Any) -> tuple[str, Any]:
    """Returns the flag and the value of an option, which may differ from those in Python."""
    match name, value:
        case "format", _:
            return "--from", value
        case "new_head", str():
            return "--head-class", value
        case "rank", "exact":
            return "--energy", 1
        case "rank", float():
            return "--energy", value
        case _:
            return f"--{name.replace('_', '-')}", value
