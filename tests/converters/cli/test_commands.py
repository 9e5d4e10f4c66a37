"""Commands are outlines until one of them is needed."""

from jaxmix.converters.cli import program
from jaxmix.converters.cli.commands import SUMMARIES


def test_summaries_are_those_of_the_commands() -> None:
    """The program's help shows them without importing the commands."""
    found = {name: command.help for name, command in program.commands().items()}
    assert {
        name: " ".join(text.split("\n\n")[0].split()) for name, text in found.items()
    } == SUMMARIES
