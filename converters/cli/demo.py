"""``jaxmix demo``."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from jaxmix.converters.cli.telling import AsJson, say, tell_json
from jaxmix.converters.files.output import checked_output, new_folder

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
            help="Run nothing, but put the demo's model, adapters and texts into a new folder, to "
            "try the other commands on.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """A real language model with three PEFT adapters: each alone, and all mixed.

    **Examples**

    - `jaxmix demo`
    - `jaxmix demo --out table.png`
    - `jaxmix demo --copy try`: then `jaxmix inspect try/lora try/oft --base try/base --measure`
    """
    from jaxmix.demo.run import main as run

    if copy is None:
        raise typer.Exit(run(out=out, as_json=as_json))
    if out is not None:
        raise typer.BadParameter("--copy runs nothing, so that there is no picture for --out.")
    from jaxmix.demo.measure import ASSETS

    place = checked_output(copy, ())
    with new_folder(place) as beside:
        for name in _COPIED:
            shutil.copytree(ASSETS / name, beside / name)
    if as_json:
        tell_json({"out": place, "folders": _COPIED})
    else:
        say(f"{place}: {', '.join(_COPIED)}")
