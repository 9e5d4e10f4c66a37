"""``jaxmix convert``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxmix.adapter import Adapter
from jaxmix.combining import look_alikes, look_alikes_text
from jaxmix.converters.adapters.diffusers import export_diffusers
from jaxmix.converters.adapters.kohya import export_kohya
from jaxmix.converters.adapters.loading import FORMATS
from jaxmix.converters.adapters.mixfile import save
from jaxmix.converters.adapters.mixfile.recipe import save_recipe
from jaxmix.converters.adapters.peft.export import export_peft
from jaxmix.converters.cli.adapters import (
    AdapterArguments,
    Filenames,
    Ignored,
    Revision,
    Subfolder,
    Told,
    check_apart,
    load_each,
    parse_adapters,
    strengths_data,
    strengths_text,
)
from jaxmix.converters.cli.bases import BaseOption
from jaxmix.converters.cli.telling import AsJson, Force, count, one_of, say, tell_json
from jaxmix.converters.cli.written import BaseName, Patterns, Task, peft_options
from jaxmix.converters.files.terminal import escape
from jaxmix.errors import UnsupportedError
from jaxmix.mixing import Mix, mix

__all__ = ["convert"]


@dataclass(frozen=True)
class _Writer:
    """A format that can be written.

    Args:
        write: ``write(adapter, path, force=…)``, with ``prefix=`` where it takes one.
        takes_mix: whether it holds several adapters.
        takes_prefix: whether names get a prefix.
    """

    write: Callable[..., Path]
    takes_mix: bool = False
    takes_prefix: bool = False


_WRITERS: dict[str, _Writer] = {
    "peft": _Writer(export_peft, takes_mix=True),
    "kohya": _Writer(export_kohya, takes_prefix=True),
    "diffusers": _Writer(export_diffusers, takes_prefix=True),
    "mix": _Writer(save, takes_mix=True),
}
# It holds no adapters, but says where they are; so nothing need be read.
_RECIPE = "recipe"
_READ = tuple(one.name for one in FORMATS)
_WRITTEN = (*_WRITERS, _RECIPE)


def convert(
    adapters: AdapterArguments,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help=f"What to write: {', '.join(_WRITTEN)}.",
            **one_of(_WRITTEN),
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            help="The folder to write (peft, mix), or the file (.safetensors, a recipe's .json).",
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FORMAT",
            help=f"What is read, where its files do not say so: {', '.join(_READ)}.",
            **one_of(_READ),
        ),
    ] = None,
    base: BaseOption = None,
    part: Annotated[
        str | None,
        typer.Option(
            "--part",
            metavar="PREFIX",
            help="Of a file for several models the one to read: lora_unet, text_encoder.",
        ),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", help="Where a file has none (qwix).")
    ] = None,
    axis: Annotated[
        int | None, typer.Option("--axis", help="The axis of stacked layers (qwix).")
    ] = None,
    scale: Annotated[
        float | None, typer.Option("--scale", help="Where a file leaves it open (mlx).")
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            "--prefix",
            metavar="PREFIX",
            help="What to write before the modules' names: lora_unet, lycoris (kohya); "
            "transformer, unet (diffusers).",
        ),
    ] = None,
    ignore: Ignored = None,
    filename: Filenames = None,
    base_name: BaseName = None,
    task: Task = None,
    patterns: Patterns = False,
    subfolder: Subfolder = None,
    revision: Revision = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Turn adapters from one format into another; several go out as a mix.

    The format that is read is told by its files. Nothing of an adapter is changed: what can't be
    said in a format is refused, with the sites; `jaxmix export --rank` makes a LoRA of anything.
    kohya's names have lost their dots, for which `--base` is asked.

    **Examples**

    - `jaxmix convert style.safetensors --base base --to peft -o style-peft`
    - `jaxmix convert my-lora --to kohya --prefix lora_te1 -o my-lora.safetensors`
    - `jaxmix convert my-lora --to diffusers --prefix transformer -o my-lora.safetensors`
    - `jaxmix convert lora:0.6 owner/loha --to mix -o both`: a mix as a folder
    - `jaxmix convert lora:0.6 owner/loha --to recipe -o both.json`: only where they are
    """
    named: dict[str, Any] = peft_options(base_name, task, patterns, to=to)
    if to == _RECIPE:
        if ignore or filename or subfolder or revision:
            raise typer.BadParameter(
                "a recipe is written without reading its adapters: write --ignore and --filename "
                'into its parts, as "ignore": "…" and "filename": "…".'
            )
        _recipe(adapters, out, force=force, as_json=as_json)
        return
    given = {"format": source, "part": part, "alpha": alpha, "axis": axis, "scale": scale}
    options = {name: value for name, value in given.items() if value is not None}
    read = load_each(
        adapters,
        base,
        ignore=ignore,
        filename=filename,
        subfolder=subfolder,
        revision=revision,
        **options,
    )
    parts = [part for _, own in read for part in own]
    check_apart(out, adapters)
    made = _written(parts, to)
    if prefix is not None:
        if not _WRITERS[to].takes_prefix:
            raise typer.BadParameter(f"--prefix is nothing to {to}, whose names have none.")
        named["prefix"] = prefix
    place = _WRITERS[to].write(made, out, force=force, **named)
    pairs = look_alikes(made.parts) if base is None else []
    if as_json:
        sites = {one.name: list(one.sites) for one in made.parts}
        told = {"adapters": strengths_data(made), "format": to, "out": place}
        tell_json({**told, "sites": sites, **({"look_alikes": pairs} if pairs else {})})
    else:
        sites = count(len({site for one in made.parts for site in one.sites}), "site")
        say(f"[bold]{escape(str(place))}[/]: {to}, {escape(strengths_text(made))}, {sites}")
        if pairs:
            say(escape(f"note: {look_alikes_text(pairs)} They are written as different modules."))


def _written(parts: Sequence[Adapter], to: str) -> Adapter | Mix:
    """What is to be written: one adapter, or a mix where the format holds one."""
    if len(parts) == 1:
        return parts[0]
    if not _WRITERS[to].takes_mix:
        able = ", ".join(name for name, one in _WRITERS.items() if one.takes_mix)
        raise UnsupportedError(
            f"{len(parts)} adapters, and a file of {to} holds one. Write them one by one, or as a "
            f"mix ({able}, {_RECIPE}); `jaxmix export --rank` makes one LoRA of them."
        )
    return mix(*parts)


def _recipe(adapters: Sequence[str], out: Path, *, force: bool, as_json: bool) -> None:
    """Writes a recipe."""
    told: list[Told] = parse_adapters(adapters)
    place = save_recipe(told, out, force=force)
    parts = [{"source": path, "strength": strength} for path, strength in told]
    if as_json:
        tell_json({"adapters": parts, "format": _RECIPE, "out": place})
    else:
        names = ", then ".join(f"{path} × {strength:g}" for path, strength in told)
        say(f"[bold]{escape(str(place))}[/]: recipe, {escape(names)}")
