"""docs/command_line.md matches the program's own help."""

import re
from typing import Any

import pytest

from jaxmix.converters.cli.program import commands

from .command_line import PAGE, PICTURE, RUNS, help_texts, versions

TEXT = PAGE.read_text(encoding="utf-8")
# Boxes, lines and columns of options, which depend on typer's version, are ignored.
LETTERS = re.compile(r"[^\w]+")


def letters(text: str) -> str:
    """Returns the letters and digits of a text."""
    return LETTERS.sub("", text)


def section(command: str) -> str:
    """Returns the help of a command on the page."""
    title = f"jaxmix {command}".rstrip()
    match = re.search(rf"```\n\$ {title} --help\n(.*?)\n```", TEXT, re.DOTALL)
    assert match, f"no help of {title}; run make pages"
    return match[1]


def test_page_has_the_help_of_the_program() -> None:
    """The page's help is exact if the versions that laid it out are installed."""
    if f"Laid out by {versions()}." not in TEXT:
        pytest.skip(f"the page is not of {versions()}; the words are compared below")
    for command, text in help_texts().items():
        assert section(command) == text, f"{command}: run make pages"


def missing(page: str, command: Any) -> list[str]:
    """Returns the parts of a command's help that a page lacks."""
    page_letters = letters(page)
    parts = [*re.split(r"\n\s*\n|\n *- ", command.help)]
    for option in command.params:
        parts += [*option.opts[option.param_type_name == "argument" :], option.help or ""]
    return [text for text in parts if letters(text) not in page_letters]


COMMANDS = commands()


@pytest.mark.parametrize("name", COMMANDS)
def test_page_has_every_help_text(name: str) -> None:
    """The page has each paragraph, example and option of a command, in any layout."""
    command = COMMANDS[name]
    assert len(command.params) > 2 and not missing(section(name), command), "run make pages"


def test_missing_word_is_detected() -> None:
    """The check above can fail."""
    command, page = COMMANDS["merge"], section("merge")
    for cut in (
        "--untie",
        "byte for byte",
        "--peft-order -o merged",
        "Replace OUT once",
    ):
        assert cut in page and missing(page.replace(cut, ""), command), cut


def test_page_has_every_run() -> None:
    """The page has each run with its output, and no paths of the machine."""
    for line, _ in RUNS:
        assert re.search(rf"\n\$ {re.escape(line)}\n[^`$]", TEXT), line
    assert "/tmp" not in TEXT and "Traceback" not in TEXT
    assert PICTURE.stat().st_size <= 150_000 and f"({PICTURE.name})" in TEXT
