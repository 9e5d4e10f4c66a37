"""Names from foreign files are displayed as they are, and do nothing else."""

import io

import pytest
from rich.console import Console

from jaxmix.converters.files.terminal import escape, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Bär 🐻 日本", "Bär 🐻 日本"),
        ("a\tb\x00\x7f\x9b", "a\\tb\\x00\\x7f\\x9b"),
        ("a\u202eb\u2066\u200b\ufeff", "a\\u202eb\\u2066\\u200b\\ufeff"),
        ("a\u2028b\u2029", "a\\u2028b\\u2029"),
        ("a\ud800\U000e0041", "a\\ud800\\U000e0041"),
        ("", ""),
    ],
)
def test_what_a_terminal_would_interpret_is_escaped(text: str, shown: str) -> None:
    """Controls, directions, separators, surrogates and tags; nothing else, and once is enough."""
    assert printable(text) == shown == printable(shown)


def test_kept_characters_are_not_escaped() -> None:
    """Only these."""
    assert printable("a\n\tb", keep="\n") == "a\n\\tb"


def test_escaped_name_is_no_markup() -> None:
    """Rich displays it, also after a backslash."""
    for name in ("[red]x[/]", "a\\[b]", "x[0].y", "[bold"):
        console = Console(file=io.StringIO(), width=80, emoji=False)
        console.print(escape(name), highlight=False)
        assert console.file.getvalue() == f"{name}\n"  # pyright: ignore
