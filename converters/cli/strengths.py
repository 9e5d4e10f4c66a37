"""What is wrong with an adapter's strength on the command line, where no such path exists."""

import os
import re
from pathlib import Path

import typer

from jaxmix.converters.adapters.finding import is_hub_id
from jaxmix.converters.files.terminal import printable

__all__ = ["NUMBER", "check_word"]

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# What people write between a path and its strength.
_SIGNS = re.compile(r"\s*[:=@*×]\s*|\s+x\s+|\s+")
_NUMBER_LIKE = re.compile(r"[-+−]?[\d.,_/%eE]+%?|[+-]?(nan|inf|infinity)", re.IGNORECASE)


def check_word(text: str) -> None:
    """Refuses a word of the command line whose strength is misspelled.

    Args:
        text: ``path:strength``, as it was written.

    Raises:
        typer.BadParameter: if the path may mean two things, or what follows it is no strength.
    """
    path, colon, tail = text.rpartition(":")
    has_strength = bool(colon and path and NUMBER.fullmatch(tail))
    if has_strength and _exists(text):
        other = f"{path}:{float(tail)!r}" if f"{float(tail)!r}" != tail else f"{path}:{tail}.0"
        raise typer.BadParameter(
            f"{printable(text)} is a folder or file here, and also means {printable(path)} at "
            f"strength {tail}. Write {printable(text)}:1 for the first, {printable(other)} for the "
            "second."
        )
    path = path if has_strength else text
    if _exists(path) or is_hub_id(path) or re.match(r"[A-Za-z]:\\", path):
        return
    for sign in _SIGNS.finditer(path):
        stem, rest = path[: sign.start()], path[sign.end() :]
        if stem and (_exists(stem) or (is_hub_id(stem) and _is_meant(sign[0], rest))):
            raise typer.BadParameter(_wrong(text, stem, sign[0], rest, has_strength))


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(Path(path).expanduser())
    except (OSError, RuntimeError, ValueError):
        return False


def _is_meant(sign: str, rest: str) -> bool:
    """Whether what follows a hub id is meant as a strength; after a colon nothing else can be."""
    return sign == ":" or _NUMBER_LIKE.fullmatch(rest) is not None


def _wrong(text: str, stem: str, sign: str, rest: str, has_strength: bool) -> str:
    """What is wrong, and how to write it."""
    text, stem, rest = printable(text), printable(stem), printable(rest)
    expected = "expected ADAPTER:STRENGTH with a number"
    if has_strength and sign == ":":
        return f"{text} has two strengths, {expected} such as {stem}:0.5."
    number = rest.replace(",", ".").replace("−", "-")
    if sign == ":":
        better = number if NUMBER.fullmatch(number) and number != rest else "0.5"
        found = f"{rest!r} is no strength" if rest else "there is no strength after the colon"
        return f"{text}: {found}, {expected} such as {stem}:{better}."
    better = number if NUMBER.fullmatch(number) else "0.5"
    return f"{text}: the strength follows a colon, {expected} such as {stem}:{better}."
