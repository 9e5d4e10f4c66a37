"""``jaxmix merge``."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxmix.converters.cli.adapters import (
    AdapterOptions,
    Filenames,
    Ignored,
    Parts,
    PeftOrder,
    Revision,
    Subfolder,
    check_apart,
    check_roles,
    load_mix,
    strengths_data,
    strengths_text,
)
from jaxmix.converters.cli.bases import Conv1d, Names, Variant
from jaxmix.converters.cli.choices import LAYOUTS, LIBRARIES
from jaxmix.converters.cli.console import (
    AsJson,
    bytes_bar,
    choice_of,
    count,
    print_json,
    print_lines,
)
from jaxmix.converters.files.terminal import escape

if TYPE_CHECKING:  # help and shell completion do without JAX
    from jaxmix.adapter import Adapter
    from jaxmix.converters.merging import Merged, Verified
    from jaxmix.mixing import Mix

__all__ = ["merge"]

# The number of inconclusive tensors that are listed.
_SHOWN = 5


def merge(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE",
            help="A model's folder with safetensors, of transformers or diffusers; a pipeline's "
            "folder (model_index.json); one safetensors file; or a hub id.",
        ),
    ],
    adapters: AdapterOptions,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="OUT", help="The folder to write; a file if BASE is a file."
        ),
    ],
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace OUT once the new one is complete; start over if an earlier merge was "
            "interrupted.",
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue an interrupted merge with the same arguments."),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read the output back, and prove by replay and by residual that it is base plus "
            "mix; if it is not, OUT is not written, and the exit code is 3.",
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
            help="Resize embedding and heads to the adapters' rows, if the adapters were trained "
            "with more or fewer tokens, or with other labels.",
        ),
    ] = False,
    new_head: Annotated[
        bool | None,
        typer.Option(
            "--new-head/--no-new-head",
            help="Write a head that the adapters have and BASE lacks (a classifier on a language "
            "model) as new tensors, and its class to config.json; or refuse. By default it is "
            "written if exactly one class has it. --new-head also requires that the other tensors "
            "of the class exist.",
            show_default=False,
        ),
    ] = None,
    head_class: Annotated[
        str | None,
        typer.Option(
            "--head-class",
            metavar="CLASS",
            help="The class of the new head, if its leaves do not determine it: "
            "`BertForTokenClassification`. Implies --new-head.",
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout",
            metavar="NAME",
            help="Where the modules are among the tensors; by default found by name. One of "
            f"{', '.join(LAYOUTS)}, or a model library's.",
            **choice_of((*LAYOUTS, *LIBRARIES)),
        ),
    ] = None,
    names: Names = None,
    variant: Variant = None,
    conv1d: Conv1d = None,
    untie: Annotated[
        bool,
        typer.Option(
            "--untie", help="Give a tied head a separate tensor where adapters require it."
        ),
    ] = False,
    peft_order: PeftOrder = False,
    part: Parts = None,
    ignore: Ignored = None,
    filename: Filenames = None,
    subfolder: Subfolder = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Merge adapters into a model or a pipeline of diffusers, and write the result.

    Adapters are applied in the given order. OUT has the same shards, dtypes and side files as BASE;
    tensors that no adapter touches are copied byte for byte. The output is written to OUT.partial
    and renamed to OUT at the end. If the program is killed, `--resume` continues from OUT.partial.

    With `--verify` each tensor is proven to be base plus mix, or equal to the base. Tensors for
    which rounding to 16 bits hides most of the mix's effect are listed as inconclusive; the exit
    code is then 0.

    Of a pipeline, each component that an adapter names is merged, and the others are copied.

    **Examples**

    - `jaxmix merge Llama-3.2-1B -a my-lora -o merged`
    - `jaxmix merge base -a lora:0.6 -a owner/loha -a oft:-1 -o merged`: three kinds, with strengths
    - `jaxmix merge base -a recipe.json -o merged`: the mix that a recipe describes
    - `jaxmix merge base -a oft-1 -a oft-2 --peft-order -o merged`: in the order of PEFT's forward
    - `jaxmix merge base -a lora -o merged --resume --verify`
    - `jaxmix merge model.safetensors -a lora -o merged.safetensors --force --json`
    - `jaxmix merge sdxl -a style.safetensors:0.8 -o merged`: UNet and text encoders
    - `jaxmix merge wan -a high.safetensors -a low.safetensors --part transformer --part
      transformer_2 -o merged`
    """
    from jaxmix.converters.files.hub import base_folder
    from jaxmix.converters.merging import merge_checkpoint
    from jaxmix.placement.layout import named

    check_roles(Path(base), adapters)
    folder = base_folder(base, variant)
    mixed = load_mix(
        adapters,
        folder,
        variant=variant,
        peft_order=peft_order,
        part=part,
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
            names=names,
            variant=variant,
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
        print_json({"base": base, "adapters": strengths_data(mixed), **asdict(merged)})
    else:
        _report(merged, mixed)


def _report(merged: "Merged", mixed: "Adapter | Mix") -> None:
    """Prints a summary of the merge."""
    from jaxmix.converters.cli.opening import opening

    print_lines(
        f"[bold]{escape(str(merged.out))}[/]: {escape(strengths_text(mixed))}",
        f"{count(len(merged.changed), 'tensor')} changed, {merged.copied:,} copied unchanged, "
        f"{count(merged.size, 'byte')} in {count(len(merged.shards), 'file')}",
    )
    if merged.untied:
        print_lines(
            f"untied: {merged.untied} is now a separate tensor, a copy of the base's embedding, "
            "and tie_word_embeddings is false in config.json"
        )
        if more := merged.copies[1:]:
            print_lines(f"untied with it: {escape(', '.join(more))}")
    if merged.resumed:
        print_lines(f"{count(merged.resumed, 'file')} complete from an earlier run")
    if merged.dequantized:
        print_lines(f"{count(merged.dequantized, 'tensor')} dequantized to bfloat16")
    if merged.new_head:
        print_lines(
            f"new head: the model is now a {escape(merged.new_head)}, as named in config.json"
        )
    for name, (before, after) in merged.resized.items():
        print_lines(f"resized: {escape(name)} from {before:,} to {after:,} rows")
    if merged.rounding is not None:
        print_lines(
            f"error of rounding to 16 bits: {_share(merged.rounding.of_weight)} of the weights, "
            f"{_share(merged.rounding.of_effect)} of the mix's effect"
        )
    if merged.verified is not None:
        _report_verified(merged.verified)
    for line in merged.left_out:
        print_lines(f"[dim]left out {escape(line)}[/]")
    if call := opening(merged.out):
        print_lines(f"open it: {escape(call)}")


def _share(number: float | None) -> str:
    return "nothing" if number is None else f"{number:.2%}"


def _report_verified(verified: "Verified") -> None:
    """Prints a summary of the verification."""
    print_lines(
        f"verified: {count(verified.proven, 'tensor')} proven"
        + (f", {verified.inconclusive:,} inconclusive:" if verified.inconclusive else "")
    )
    undecided = [verdict for verdict in verified.tensors if verdict.verdict == "inconclusive"]
    print_lines(*(f"  {escape(v.tensor)}: {escape(v.reason)}" for v in undecided[:_SHOWN]))
    if (more := len(undecided) - _SHOWN) > 0:
        print_lines(f"  … and {more:,} more")
