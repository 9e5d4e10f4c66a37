"""Text for a terminal: what others wrote into a file can't move the cursor or turn text around."""

import unicodedata

from rich.markup import escape as _escape_markup

__all__ = ["escape", "printable"]

# Controls (C0, DEL, C1), formats (the bidirectional ones), halves of surrogates, odd line ends.
_UNPRINTABLE = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def printable(text: str, *, keep: str = "") -> str:
    r"""A text in which whatever a terminal would act on is escaped, as Python's literals have it.

    Args:
        text: the text.
        keep: characters that stay, such as newlines.

    Returns:
        The text.

    Example:
        >>> printable("a\x1b[2Jb\u202ec\ud800")
        'a\\x1b[2Jb\\u202ec\\ud800'

    Source: https://trojansource.codes; ECMA-48 for C1.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        one.encode("unicode_escape").decode("ascii")
        if unicodedata.category(one) in _UNPRINTABLE and one not in keep
        else one
        for one in text
    )


def escape(text: str) -> str:
    """A name for rich's markup: nothing in it is markup, nor acts on the terminal.

    Args:
        text: the name.

    Returns:
        Markup that shows it.
    """
    return _escape_markup(printable(text))
