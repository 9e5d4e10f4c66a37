"""Detects misspelled strengths of adapters on the command line."""

import os
import re
from pathlib import Path

import typer

from jaxmix.converters.files.terminal import printable

__all__ = ["NUMBER", "check_strength_spelling"]

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# Separators that users may write between a path and its strength.
_SIGNS = re.compile(r"\s*[:=@*×]\s*|\s+x\s+|\s+")
_NUMBER_LIKE = re.compile(
    r"[-+−]?[\d.,_/%]+([eE][-+−]?\d*)?%?|[+-]?(nan|inf|infinity)", re.IGNORECASE
)


def check_strength_spelling(text: str) -> None:
    """Refuses an argument whose strength is misspelled.

    Args:
        text: ``path:strength``, as the user wrote it.

    Raises:
        typer.BadParameter: If the argument is ambiguous, or the strength is not a number.
    """
    from jaxmix.converters.files.hub import is_hub_id  # not for help and completion: NumPy

    path, colon, tail = text.rpartition(":")
    has_strength = bool(colon and path and NUMBER.fullmatch(tail))
    if has_strength and _exists(text):
        other = f"{path}:{float(tail)!r}" if f"{float(tail)!r}" != tail else f"{path}:{tail}.0"
        raise typer.BadParameter(
            f"{printable(text)} is ambiguous: it is an existing path, and could mean "
            f"{printable(path)} at strength {tail}. Write {printable(text)}:1 for the path, or "
            f"{printable(other)} for the strength."
        )
    path = path if has_strength else text
    if _exists(path) or is_hub_id(path) or re.match(r"[A-Za-z]:\\", path):
        return
    for sign in _SIGNS.finditer(path):
        stem, rest = path[: sign.start()], path[sign.end() :]
        if stem and (_exists(stem) or (is_hub_id(stem) and _is_strength(sign[0], rest))):
            raise typer.BadParameter(_message(text, stem, sign[0], rest, has_strength))


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(Path(path).expanduser())
    except (OSError, RuntimeError, ValueError):
        return False


def _is_strength(sign: str, rest: str) -> bool:
    """Whether the text after a hub id is meant as a strength, as it always is after a colon."""
    return sign == ":" or _NUMBER_LIKE.fullmatch(rest) is not None


def _message(text: str, stem: str, sign: str, rest: str, has_strength: bool) -> str:
    """Says what is wrong with a strength, and how to write it."""
    text, stem, rest = printable(text), printable(stem), printable(rest)
    expected = "expected ADAPTER:STRENGTH with a number"
    if has_strength and sign == ":":
        return f"{text} has two strengths, {expected} such as {stem}:0.5."
    number = rest.replace(",", ".").replace("−", "-")
    if sign == ":":
        better = number if NUMBER.fullmatch(number) and number != rest else "0.5"
        problem = (
            f"{rest!r} is not a strength" if rest else "the strength after the colon is missing"
        )
        return f"{text}: {problem}, {expected} such as {stem}:{better}."
    better = number if NUMBER.fullmatch(number) else "0.5"
    colon = "the colon without spaces" if ":" in sign else "a colon"
    return f"{text}: a strength must follow {colon}, {expected} such as {stem}:{better}."
