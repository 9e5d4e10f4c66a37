"""``jaxmix merge``."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from jaxmix.adapter import Adapter
from jaxmix.converters.cli.adapters import (
    AdapterOptions,
    Filenames,
    Ignored,
    PeftOrder,
    Revision,
    Subfolder,
    check_apart,
    check_roles,
    load_mix,
    strengths_data,
    strengths_text,
)
from jaxmix.converters.cli.bases import Conv1d
from jaxmix.converters.cli.telling import AsJson, bytes_bar, count, say, tell_json
from jaxmix.converters.files.hub import base_folder
from jaxmix.converters.files.terminal import escape
from jaxmix.converters.merging import Merged, Verified, merge_checkpoint
from jaxmix.mixing import Mix
from jaxmix.placement.layout import LAYOUTS, libraries, named

__all__ = ["merge"]

# So many of the tensors of which nothing can be told are named.
_SHOWN = 5


def merge(
    base: Annotated[
        Path,
        typer.Argument(
            metavar="BASE",
            help="A Hugging Face folder with safetensors, one such file, or a hub id.",
        ),
    ],
    adapters: AdapterOptions,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="OUT", help="The folder to write, or the file, as BASE is."
        ),
    ],
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace OUT, which stays until the new one is whole; begin anew where a merge "
            "was broken off.",
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on where a merge of the same was broken off."),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read the output back, and prove by replay and by residual that it is base plus "
            "mix; if not, it is not put into its place, and the exit code is 3.",
        ),
    ] = False,
    dequantize: Annotated[
        bool,
        typer.Option(
            "--dequantize",
            help="Write packed weights (fp8, bitsandbytes, GPTQ, AWQ, MXFP4) in bfloat16.",
        ),
    ] = False,
    resize: Annotated[
        bool,
        typer.Option(
            "--resize",
            help="Give embedding and heads the adapters' rows where those were trained with more "
            "tokens, fewer, or other labels.",
        ),
    ] = False,
    new_head: Annotated[
        bool,
        typer.Option(
            "--new-head",
            help="Write a head that the adapters bring and BASE has not (a classifier on a "
            "language model) as new tensors, and the class that has it into config.json.",
        ),
    ] = False,
    head_class: Annotated[
        str | None,
        typer.Option(
            "--head-class",
            metavar="CLASS",
            help="The class of that head, where its leaves do not tell it: "
            "`BertForTokenClassification`. Implies --new-head.",
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout",
            metavar="NAME",
            help="Where the modules lie among the tensors; by their names if it is left out. One "
            f"of {', '.join(LAYOUTS)}, or a model library's.",
            autocompletion=lambda: [*LAYOUTS, *libraries()],
        ),
    ] = None,
    conv1d: Conv1d = None,
    untie: Annotated[
        bool, typer.Option("--untie", help="Give a tied head a tensor of its own where need be.")
    ] = False,
    peft_order: PeftOrder = False,
    ignore: Ignored = None,
    filename: Filenames = None,
    subfolder: Subfolder = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Put adapters into a model: a Hugging Face folder in, a merged one out.

    Adapters are applied in their order. OUT has the same shards, dtypes and side files as BASE;
    what no adapter touches is copied byte for byte. It grows in OUT.partial and takes its place at
    the end; if the program is killed, that is all that is left, and `--resume` goes on from it.

    With `--verify` each tensor is proven to be base plus mix, or the base's own. Where the rounding
    to 16 bits hides most of what the mix does nothing can be told: those tensors are named as
    inconclusive, and the exit code is 0.

    **Examples**

    - `jaxmix merge Llama-3.2-1B -a my-lora -o merged`
    - `jaxmix merge base -a lora:0.6 -a owner/loha -a oft:-1 -o merged`: three kinds, with strengths
    - `jaxmix merge base -a recipe.json -o merged`: a mix that a file names
    - `jaxmix merge base -a oft-1 -a oft-2 --peft-order -o merged`: what PEFT's forward computes
    - `jaxmix merge base -a lora -o merged --resume --verify`
    - `jaxmix merge model.safetensors -a lora -o merged.safetensors --force --json`
    """
    check_roles(base, adapters)
    folder = base_folder(base)
    mixed = load_mix(
        adapters,
        folder,
        peft_order=peft_order,
        ignore=ignore,
        filename=filename,
        subfolder=subfolder,
        revision=revision,
    )
    check_apart(out, adapters)
    with bytes_bar(as_json=as_json) as progress:
        merged = merge_checkpoint(
            folder,
            mixed,
            out,
            layout=layout if conv1d is None else replace(named(layout), conv1d=conv1d),
            force=force,
            untie=untie,
            resume=resume,
            verify=verify,
            dequantize=dequantize,
            resize=resize,
            new_head=head_class or new_head,
            progress=progress,
        )
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
    if merged.resumed:
        say(f"{count(merged.resumed, 'file')} were whole from a run before")
    if merged.dequantized:
        say(f"{count(merged.dequantized, 'tensor')} dequantized to bfloat16")
    if merged.new_head:
        say(f"new head: it is a {escape(merged.new_head)} now, and config.json says so")
    for name, (before, now) in merged.resized.items():
        say(f"resized: {escape(name)} has {now:,} rows now, {before:,} before")
    if merged.rounding is not None:
        say(
            f"rounded once to 16 bits: {_share(merged.rounding.of_weight)} of the weights, "
            f"{_share(merged.rounding.of_effect)} of what the mix does"
        )
    if merged.verified is not None:
        _tell_verified(merged.verified)
    for line in merged.left_out:
        say(f"[dim]left out {escape(line)}[/]")


def _share(number: float | None) -> str:
    return "nothing" if number is None else f"{number:.2%}"


def _tell_verified(verified: Verified) -> None:
    """What reading the output back showed."""
    say(
        f"verified: {count(verified.proven, 'tensor')} proven"
        + (f", {verified.inconclusive:,} inconclusive:" if verified.inconclusive else "")
    )
    open_ones = [one for one in verified.tensors if one.verdict == "inconclusive"]
    say(*(f"  {escape(one.tensor)}: {escape(one.reason)}" for one in open_ones[:_SHOWN]))
    if (more := len(open_ones) - _SHOWN) > 0:
        say(f"  … and {more:,} more")
