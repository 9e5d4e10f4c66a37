"""Options of the commands that write adapters for other programs."""

from typing import Annotated, Any

import typer

from jaxmix.converters.cli.choices import TASKS
from jaxmix.converters.cli.console import choice_of

__all__ = ["BaseName", "Patterns", "Task", "peft_options"]

BaseName = Annotated[
    str | None,
    typer.Option(
        "--base-name",
        metavar="NAME",
        help="The base's path or hub id, for PEFT's base_model_name_or_path; by default that of "
        "the adapter's own file.",
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task-type",
        metavar="TASK",
        help=f"PEFT's task, which AutoPeftModel needs: {', '.join(TASKS)}; by default that of the "
        "adapter's own file.",
        **choice_of(TASKS),
    ),
]
Patterns = Annotated[
    bool,
    typer.Option(
        "--patterns",
        help="Keep each site's own rank and alpha of a LoRA, as rank_pattern and alpha_pattern "
        "(peft, diffusers). Files are smaller where ranks differ, but some programs misread them.",
    ),
]


def peft_options(
    base_name: str | None, task: str | None, patterns: bool, *, to: str = "peft"
) -> dict[str, Any]:
    """Returns the keyword arguments of a format's writer; refuses options that do not apply."""
    about = {"base_model_name_or_path": base_name, "task_type": task} if to == "peft" else {}
    rank_options = {"patterns": patterns} if to in ("peft", "diffusers") else {}
    given = {
        "--base-name": not about and base_name,
        "--task-type": not about and task,
        "--patterns": not rank_options and patterns,
    }
    if unused := [name for name, value in given.items() if value]:
        raise typer.BadParameter(f"{', '.join(unused)} does not apply to the format {to}.")
    return {**about, **rank_options}
