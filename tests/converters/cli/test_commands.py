"""Commands are outlines until one of them is needed."""

import gc
from typing import Any

import pytest
import typer

from jaxmix.converters.cli import program
from jaxmix.converters.cli.commands import SUMMARIES, Commands, register


def test_summaries_are_those_of_the_commands() -> None:
    """The program's help shows them without importing the commands."""
    found = {name: command.help for name, command in program.commands().items()}
    assert {
        name: " ".join(text.split("\n\n")[0].split()) for name, text in found.items()
    } == SUMMARIES


def test_loaded_command_replaces_its_outline() -> None:
    """Its options are known then; garbage collection goes on as before."""
    app = typer.Typer(cls=Commands)
    register(app)
    group: Any = typer.main.get_command(app)
    outline = group.commands["inspect"]
    was_enabled = gc.isenabled()
    try:
        for set_collecting in (gc.disable, gc.enable):
            set_collecting()
            is_enabled = gc.isenabled()
            command = group.load("inspect")
            assert gc.isenabled() is is_enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()
    assert group.commands["inspect"] is command is not outline
    options = {name for parameter in command.params for name in parameter.opts}
    assert "--json" in options and not outline.params
    # An unknown command is left to the group, which reports it.
    with pytest.raises(Exception, match=r"\ANo such command 'x'\.\Z"):
        group.resolve_command(group.make_context("jaxmix", ["x"]), ["x"])
