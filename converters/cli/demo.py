"""``jaxmix demo``."""

import shlex
import shutil
from pathlib import Path
from typing import Annotated

import typer

from jaxmix.converters.cli.console import AsJson, print_json, print_lines
from jaxmix.converters.files.output import checked_output, new_folder
from jaxmix.converters.files.terminal import escape

__all__ = ["demo"]

_COPIED = ("base", "lora", "loha", "oft", "text")


def demo(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The picture to write.")
    ] = None,
    copy: Annotated[
        Path | None,
        typer.Option(
            "--copy",
            metavar="DIR",
            help="Instead of running the demo, copy its model, adapters and texts to a new folder "
            "on which to try the other commands.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a small language model with three PEFT adapters: each alone, and all mixed.

    **Examples**

    - `jaxmix demo`
    - `jaxmix demo --out table.png`
    - `jaxmix demo --copy try`: then `jaxmix inspect try/lora try/oft --base try/base --measure`
    """
    from jaxmix.demo.run import main as run

    if copy is None:
        raise typer.Exit(run(out=out, as_json=as_json))
    if out is not None:
        raise typer.BadParameter(
            "--copy does not run the demo, so there is no picture to write to --out."
        )
    from jaxmix.demo import ASSETS

    target = checked_output(copy, ())
    with new_folder(target) as folder:
        for name in _COPIED:
            shutil.copytree(ASSETS / name, folder / name)
    if as_json:
        print_json({"out": target, "folders": _COPIED})
    else:
        base, lora, oft = (
            escape(shlex.quote(str(copy / name))) for name in ("base", "lora", "oft")
        )
        print_lines(
            f"[bold]{escape(str(target))}[/]: {', '.join(_COPIED)}",
            f"Try: jaxmix inspect {lora} {oft} --base {base} --measure",
        )
