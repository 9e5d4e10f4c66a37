"""``jaxmix convert``."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxmix.converters.cli.adapters import (
    AdapterArguments,
    Filenames,
    Ignored,
    Parts,
    Revision,
    Subfolder,
    check_apart,
    load_each,
    parse_adapters,
    strengths_data,
    strengths_text,
)
from jaxmix.converters.cli.bases import BaseOption, Conv1d, Variant, base_params
from jaxmix.converters.cli.choices import READ
from jaxmix.converters.cli.console import (
    AsJson,
    Force,
    choice_of,
    count,
    print_json,
    print_lines,
    steps_bar,
)
from jaxmix.converters.cli.export_options import BaseName, Patterns, Task, peft_options
from jaxmix.converters.cli.ranks import Energy, Rank, error_lines, rank_of
from jaxmix.converters.files.terminal import escape
from jaxmix.errors import UnsupportedError

if TYPE_CHECKING:  # help and shell completion do without JAX
    from jaxmix.adapter import Adapter
    from jaxmix.mixing import Mix

__all__ = ["convert"]


@dataclass(frozen=True)
class _Writer:
    """A format that can be written.

    Args:
        module: The module of converters/adapters with the function.
        function: ``function(adapter, path, force=…)``, also with the arguments that `takes` names.
        takes_mix: Whether the format holds several adapters.
        takes: The arguments, of prefix, names and base.
    """

    module: str
    function: str
    takes_mix: bool = False
    takes: tuple[str, ...] = ("prefix", "names", "base")

    def write(self, *args: Any, **options: Any) -> Path:
        """Imports the function and calls it."""
        module = import_module(f"jaxmix.converters.adapters.{self.module}")
        return getattr(module, self.function)(*args, **options)


_WRITERS: dict[str, _Writer] = {
    "peft": _Writer("peft.export", "export_peft", takes_mix=True, takes=("names",)),
    "kohya": _Writer("kohya", "export_kohya"),
    "diffusers": _Writer("diffusers", "export_diffusers"),
    "comfyui": _Writer("comfyui", "export_comfyui"),
    "original": _Writer("comfyui", "export_original"),
    "mix": _Writer("mixfile", "save", takes_mix=True, takes=()),
}
# A recipe holds only the paths of adapters, so they are not read.
_RECIPE = "recipe"
_WRITTEN = (*_WRITERS, _RECIPE)


def convert(
    adapters: AdapterArguments,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help=f"The format to write: {', '.join(_WRITTEN)}.",
            **choice_of(_WRITTEN),
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
            help=f"The format to read, if its files do not determine it: {', '.join(READ)}.",
            **choice_of(READ),
        ),
    ] = None,
    base: BaseOption = None,
    variant: Variant = None,
    part: Parts = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", help="The alpha, if the file has none (qwix).")
    ] = None,
    axis: Annotated[
        int | None, typer.Option("--axis", help="The axis of stacked layers (qwix).")
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option("--scale", help="The scale, if the file does not state it (mlx)."),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            "--prefix",
            metavar="PREFIX",
            help="The prefix of the modules' names, instead of the usual one: lora_te1, lycoris "
            "(kohya); transformer, unet (diffusers).",
        ),
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(
            "--names",
            metavar="MODEL",
            help="The model, if its modules' names are those of several: sdxl, flux, wan, … for "
            "kohya, diffusers, comfyui and original; '' keeps the names as they are. For peft, the "
            "type of a model whose modules have other names in memory, such as mixtral.",
        ),
    ] = None,
    rank: Rank = None,
    energy: Energy = None,
    conv1d: Conv1d = None,
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
    """Convert adapters from one format to another; several are written as a mix.

    The format of the input is recognized by its files. Modules of image and video models get the
    names that the program reads: those of the original project (kohya, comfyui, original) or of
    diffusers. Updates that a format can't hold are refused, with a list of the sites; with `--rank`
    or `--energy`, all adapters together are approximated by one LoRA. kohya's names lack dots, so
    finding their modules requires `--base`, unless they are those of a known image model.

    **Examples**

    - `jaxmix convert style.safetensors --base base --to peft -o style-peft`
    - `jaxmix convert my-lora --to kohya --prefix lora_te1 -o my-lora.safetensors`
    - `jaxmix convert flux.safetensors --to diffusers -o pytorch_lora_weights.safetensors`
    - `jaxmix convert lora:0.6 loha --base flux-dev --rank 32 --to comfyui -o both.safetensors`
    - `jaxmix convert lora:0.6 owner/loha --to mix -o both`: a mix as a folder
    - `jaxmix convert lora:0.6 owner/loha --to recipe -o both.json`: only their paths
    """
    from jaxmix.combining import look_alikes, look_alikes_text
    from jaxmix.converters.adapters.common.base_model import base_model
    from jaxmix.low_rank import to_lora
    from jaxmix.mixing import mix

    writer_options: dict[str, Any] = peft_options(base_name, task, patterns, to=to)
    limit = rank_of(rank, energy)
    if to == _RECIPE:
        if limit is not None:
            raise typer.BadParameter(
                "a recipe holds the paths of adapters, so --rank and --energy do not apply to it."
            )
        if ignore or filename or subfolder or revision:
            raise typer.BadParameter(
                "a recipe is written without reading its adapters. Instead of --ignore, "
                "--filename, --subfolder and --revision, edit its parts: "
                '"ignore": "…", "filename": "…".'
            )
        _recipe(adapters, out, force=force, as_json=as_json)
        return
    given = {"format": source, "alpha": alpha, "axis": axis, "scale": scale}
    options = {name: value for name, value in given.items() if value is not None}
    read = load_each(
        adapters,
        base,
        variant=variant,
        part=part,
        ignore=ignore,
        filename=filename,
        subfolder=subfolder,
        revision=revision,
        **options,
    )
    parts = [adapter for _, own_parts in read for adapter in own_parts]
    check_apart(out, adapters)
    writer = _WRITERS[to]
    for option, value in (("prefix", prefix), ("names", names)):
        if value is not None and option not in writer.takes:
            reason = "have no prefix" if option == "prefix" else "are those of the sites"
            raise typer.BadParameter(f"--{option} does not apply to {to}, whose names {reason}.")
        if option in writer.takes:
            writer_options[option] = value
    if "base" in writer.takes:
        writer_options["base"] = base if variant is None else base_model(base, variant)
    errors: dict[str, float] = {}
    if limit is None:
        adapter = _joined(parts, to)
    else:
        mixed = mix(*parts)
        params, layout = base_params(mixed, base, conv1d, variant)
        with steps_bar("decomposing", "sites", as_json=as_json) as progress:
            adapter, errors = to_lora(
                mixed, params, rank=limit, layout=layout, with_errors=True, progress=progress
            )
    target = writer.write(adapter, out, force=force, **writer_options)
    pairs = look_alikes(adapter.parts) if base is None else []
    if as_json:
        sites = {part.name: list(part.sites) for part in adapter.parts}
        data = {"adapters": strengths_data(adapter), "format": to, "out": target}
        data |= {"sites": sites, **({"look_alikes": pairs} if pairs else {})}
        print_json({**data, **({"errors": errors} if limit is not None else {})})
    else:
        sites = count(len({site for part in adapter.parts for site in part.sites}), "site")
        print_lines(
            f"[bold]{escape(str(target))}[/]: {to}, {escape(strengths_text(adapter))}, {sites}"
        )
        if errors:
            print_lines(*error_lines(errors))
        if pairs:
            print_lines(
                escape(f"note: {look_alikes_text(pairs)} They are written as different modules.")
            )


def _joined(parts: "Sequence[Adapter]", to: str) -> "Adapter | Mix":
    """Returns the only adapter, or a mix of several if the format can hold one."""
    from jaxmix.mixing import mix

    if len(parts) == 1:
        return parts[0]
    if not _WRITERS[to].takes_mix:
        able = ", ".join(name for name, writer in _WRITERS.items() if writer.takes_mix)
        raise UnsupportedError(
            f"a file of {to} holds one adapter, but {len(parts)} are given. Convert them one by "
            f"one, or to a mix ({able}, {_RECIPE}). `--rank` makes one LoRA of them."
        )
    return mix(*parts)


def _recipe(adapters: Sequence[str], out: Path, *, force: bool, as_json: bool) -> None:
    """Writes a recipe."""
    from jaxmix.converters.adapters.mixfile.recipe import save_recipe

    parsed = parse_adapters(adapters)
    target = save_recipe(parsed, out, force=force)
    parts = [{"source": path, "strength": strength} for path, strength in parsed]
    if as_json:
        print_json({"adapters": parts, "format": _RECIPE, "out": target})
    else:
        names = ", then ".join(f"{path} × {strength:g}" for path, strength in parsed)
        print_lines(f"[bold]{escape(str(target))}[/]: recipe, {escape(names)}")
