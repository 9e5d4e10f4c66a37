"""Escapes text from foreign files, so it can't move a terminal's cursor or reverse its text."""

import unicodedata

from rich.markup import escape as _escape_markup

__all__ = ["escape", "printable"]

# Controls (C0, DEL, C1), formats (e.g. bidirectional), surrogates, line and paragraph separators.
_UNPRINTABLE = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def printable(text: str, *, keep: str = "") -> str:
    r"""Escapes characters that a terminal would interpret, as in Python's string literals.

    Args:
        text: The string.
        keep: Characters that are not escaped, such as newlines.

    Returns:
        The escaped string.

    Example:
        >>> printable("a\x1b[2Jb\u202ec\ud800")
        'a\\x1b[2Jb\\u202ec\\ud800'

    Source: https://trojansource.codes; ECMA-48 for C1.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode("ascii")
        if unicodedata.category(char) in _UNPRINTABLE and char not in keep
        else char
        for char in text
    )


def escape(text: str) -> str:
    """Escapes a name for rich's markup and for the terminal.

    Args:
        text: The name.

    Returns:
        Markup that displays the name.
    """
    return _escape_markup(printable(text))
