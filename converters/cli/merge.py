"""``jaxmix merge``."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from jaxmix.adapter import Adapter
from jaxmix.converters.cli.adapters import (
    AdapterOptions,
    PeftOrder,
    check_apart,
    load_mix,
    strengths_data,
    strengths_text,
)
from jaxmix.converters.cli.telling import AsJson, Force, Out, bytes_bar, count, say, tell_json
from jaxmix.converters.merging import Merged, merge_checkpoint
from jaxmix.mix import Mix

__all__ = ["merge"]


def merge(
    base: Annotated[
        Path, typer.Argument(metavar="BASE", help="A Hugging Face folder with safetensors.")
    ],
    adapters: AdapterOptions,
    out: Out,
    force: Force = False,
    untie: Annotated[
        bool, typer.Option("--untie", help="Give a tied head a tensor of its own where need be.")
    ] = False,
    peft_order: PeftOrder = False,
    as_json: AsJson = False,
) -> None:
    """Put adapters into a model: a Hugging Face folder in, a merged one out.

    Adapters are applied in their order. OUT has the same shards, dtypes and side files as BASE;
    what no adapter touches is copied byte for byte. It is written into OUT.partial-… and renamed at
    the end; if the program is killed, that is all that is left, and can be removed.

    **Examples**

    - `jaxmix merge Llama-3.2-1B -a my-lora -o merged`
    - `jaxmix merge base -a lora:0.6 -a owner/loha -a oft:-1 -o merged`: three kinds, with strengths
    - `jaxmix merge base -a recipe.json -o merged`: a mix that a file names
    - `jaxmix merge base -a oft-1 -a oft-2 --peft-order -o merged`: what PEFT's forward computes
    - `jaxmix merge base -a lora -o merged --force --json`
    """
    mixed = load_mix(adapters, base, peft_order=peft_order)
    check_apart(out, adapters)
    with bytes_bar(as_json=as_json) as progress:
        merged = merge_checkpoint(base, mixed, out, force=force, untie=untie, progress=progress)
    if as_json:
        tell_json({"base": base, "adapters": strengths_data(mixed), **asdict(merged)})
    else:
        _tell(merged, mixed)


def _tell(merged: Merged, mixed: Adapter | Mix) -> None:
    """What was written, in a few lines."""
    say(
        f"[bold]{escape(str(merged.out))}[/]: {escape(strengths_text(mixed))}",
        f"{count(len(merged.changed), 'tensor')} changed, {merged.copied:,} copied as they are, "
        f"{count(merged.size, 'byte')} in {count(len(merged.shards), 'file')}",
    )
    if merged.untied:
        say(
            f"untied: {merged.untied} is a tensor of its own now, made from the base's embedding, "
            "and config.json says tie_word_embeddings = false"
        )
    for line in merged.left_out:
        say(f"[dim]left out {escape(line)}[/]")
