"""What a command that writes PEFT's folders may be told of them."""

from typing import Annotated, Any

import typer

from jaxmix.converters.cli.telling import one_of
from jaxmix.converters.peft.about import TASKS

__all__ = ["BaseName", "Patterns", "Task", "peft_options"]

BaseName = Annotated[
    str | None,
    typer.Option(
        "--base-name",
        metavar="NAME",
        help="The base's path or hub id, for PEFT's base_model_name_or_path; by default what the "
        "adapter's own file says.",
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task-type",
        metavar="TASK",
        help=f"PEFT's task, which AutoPeftModel asks for: {', '.join(TASKS)}; by default what the "
        "adapter's own file says.",
        **one_of(tuple(TASKS)),
    ),
]
Patterns = Annotated[
    bool,
    typer.Option(
        "--patterns",
        help="Keep each site's own rank and alpha of a LoRA, as PEFT's rank_pattern and "
        "alpha_pattern: smaller where ranks differ, but only PEFT reads it.",
    ),
]


def peft_options(
    base_name: str | None, task: str | None, patterns: bool, *, to: str = "peft"
) -> dict[str, Any]:
    """The options as `jaxmix.export_peft` takes them; for another format there are none."""
    if to == "peft":
        return {
            "base_model_name_or_path": base_name,
            "task_type": task,
            "patterns": patterns,
        }
    given = {"--base-name": base_name, "--task-type": task, "--patterns": patterns}
    if unused := [name for name, value in given.items() if value]:
        raise typer.BadParameter(f"{', '.join(unused)}: only for peft, and {to} is written.")
    return {}
