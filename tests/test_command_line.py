"""docs/command_line.md is the program's own help."""

import re
from typing import Any

import pytest

from jaxmix.converters.cli.program import commands

from .command_line import PAGE, PICTURE, RUNS, help_texts, versions

TEXT = PAGE.read_text(encoding="utf-8")
# Whatever the version of typer: an option's boxes, lines and columns count for nothing.
LETTERS = re.compile(r"[^\w]+")


def letters(text: str) -> str:
    """Letters, digits and nothing else."""
    return LETTERS.sub("", text)


def section(command: str) -> str:
    """The help of a command on the page."""
    title = f"jaxmix {command}".rstrip()
    found = re.search(rf"```\n\$ {title} --help\n(.*?)\n```", TEXT, re.DOTALL)
    assert found, f"no help of {title}; run make pages"
    return found[1]


def test_the_help_is_the_programs() -> None:
    """To the letter, where it is laid out by the versions that wrote the page."""
    if f"Laid out by {versions()}." not in TEXT:
        pytest.skip(f"the page is not of {versions()}; the words are compared below")
    for command, text in help_texts().items():
        assert section(command) == text, f"{command}: run make pages"


def missing(page: str, command: Any) -> list[str]:
    """What a command says of itself that is not on a page."""
    page_letters = letters(page)
    parts = [*re.split(r"\n\s*\n|\n *- ", command.help)]
    for option in command.params:
        parts += [*option.opts[option.param_type_name == "argument" :], option.help or ""]
    return [text for text in parts if letters(text) not in page_letters]


COMMANDS = commands()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_word_is_there(name: str) -> None:
    """Each paragraph, example, option and option's help, however they are laid out."""
    command = COMMANDS[name]
    assert len(command.params) > 2 and not missing(section(name), command), "run make pages"


def test_a_missing_word_is_seen() -> None:
    """The check can fail."""
    command, page = COMMANDS["merge"], section("merge")
    for cut in (
        "--untie",
        "byte for byte",
        "--peft-order -o merged",
        "Replace OUT once",
    ):
        assert cut in page and missing(page.replace(cut, ""), command), cut


def test_every_run_is_there() -> None:
    """With its output, and without paths of the machine."""
    for line, _ in RUNS:
        assert re.search(rf"\n\$ {re.escape(line)}\n[^`$]", TEXT), line
    assert "/tmp" not in TEXT and "Traceback" not in TEXT
    assert PICTURE.stat().st_size <= 150_000 and f"({PICTURE.name})" in TEXT
