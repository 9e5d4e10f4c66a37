"""The program's commands, each imported when it runs: their help needs neither JAX nor the rest."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

__all__ = ["SUMMARIES", "Commands", "register"]

# Each command with the first line of its help. The command is the function of this name in the
# module of this name.
SUMMARIES = {
    "demo": "Run a small language model with three PEFT adapters: each alone, and all mixed.",
    "inspect": "Show adapters' kinds and sizes, and the modules that they touch.",
    "merge": "Merge adapters into a model or a pipeline of diffusers, and write the result.",
    "convert": "Convert adapters from one format to another; several are written as a mix.",
    "export": "Write any mix as a folder that PEFT loads: as one LoRA, or as its parts.",
    "fit": "Learn the strengths of a mix on a text, and save the mix with them.",
    "combine": "Combine several adapters of any kinds into one, by TIES, DARE, slerp and others.",
}

_PACKAGE = __name__.rpartition(".")[0]


class Commands(TyperGroup):
    """A group whose commands are outlines until one of them is needed."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Imports the command that runs, or whose options are completed."""
        if args and args[0] in SUMMARIES:
            self.load(args[0])
        return super().resolve_command(ctx, args)

    def load(self, name: str) -> Any:
        """Returns a command with its options."""
        with _gc_paused():
            function = getattr(import_module(f"{_PACKAGE}.{name}"), name)
        self.commands[name] = _command(function)
        return self.commands[name]


def register(app: typer.Typer) -> None:
    """Adds an outline of each command: its name and its summary."""
    for name, summary in SUMMARIES.items():
        app.command(name, help=summary)(_outline)


@contextmanager
def _gc_paused() -> Iterator[None]:
    """Pauses the search for garbage, which takes an eighth of the time of JAX's import."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _outline() -> None:
    """Stands for a command that was not imported."""


def _command(function: Callable[..., None]) -> Any:
    """Makes one command from its function."""
    single = typer.Typer(rich_markup_mode="markdown", add_completion=False)
    single.command(context_settings={"help_option_names": ["-h", "--help"]})(function)
    return typer.main.get_command(single)
