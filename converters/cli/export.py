"""``jaxmix export``."""

from typing import TYPE_CHECKING, Annotated, Any

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
    load_mix,
    strengths_data,
    strengths_text,
)
from jaxmix.converters.cli.bases import BaseOption, Conv1d, Variant, base_params
from jaxmix.converters.cli.console import (
    AsJson,
    Force,
    Out,
    count,
    print_json,
    print_lines,
    steps_bar,
)
from jaxmix.converters.cli.export_options import BaseName, Patterns, Task, peft_options
from jaxmix.converters.cli.ranks import Energy, Rank, error_lines, rank_of
from jaxmix.converters.files.terminal import escape

if TYPE_CHECKING:  # help and shell completion do without JAX
    from jaxmix.adapter import Adapter

__all__ = ["export"]


def export(
    adapters: AdapterOptions,
    out: Out,
    base: BaseOption = None,
    variant: Variant = None,
    rank: Rank = None,
    energy: Energy = None,
    names: Annotated[
        str | None,
        typer.Option(
            "--names",
            metavar="TYPE",
            help="Write sites by the names that modules have in memory, as PEFT needs them for "
            "models whose checkpoints have others: the model type, such as `mixtral`. LoRAs of "
            "experts are joined.",
        ),
    ] = None,
    conv1d: Conv1d = None,
    base_name: BaseName = None,
    task: Task = None,
    patterns: Patterns = False,
    force: Force = False,
    peft_order: PeftOrder = False,
    part: Parts = None,
    ignore: Ignored = None,
    filename: Filenames = None,
    subfolder: Subfolder = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Write any mix as a folder that PEFT loads: as one LoRA, or as its parts.

    With `--rank` or `--energy` the mix is approximated by one LoRA: the truncated singular value
    decomposition of its effect at each site. The error ‖Δ − BA‖ / ‖Δ‖ is reported. Adapters that
    read or rotate the base (DoRA, OFT) require `--base`.

    Without these options, adapters are not changed: a single adapter becomes one folder; several
    become a folder each, with a script that loads them into PEFT in order.

    The LoRA has one rank and one alpha for all sites, as llama.cpp and other programs require:
    factors of smaller ranks are padded with zeros, unless `--patterns` is given.

    **Examples**

    - `jaxmix export -a lora:0.6 -a oft --base Llama-3.2-1B --rank 16 -o one-lora`
    - `jaxmix export -a recipe.json --base base --energy 0.99 -o one-lora`
    - `jaxmix export -a lora:0.6 -a loha -o for-peft`: the parts, and load_in_peft.py
    """
    from jaxmix.converters.adapters.peft.export import export_peft
    from jaxmix.low_rank import to_lora

    limit = rank_of(rank, energy)
    mixed = load_mix(
        adapters,
        base,
        variant=variant,
        peft_order=peft_order,
        part=part,
        ignore=ignore,
        filename=filename,
        subfolder=subfolder,
        revision=revision,
    )
    check_apart(out, adapters)
    data: dict[str, Any] = {"adapters": strengths_data(mixed)}
    options = {**peft_options(base_name, task, patterns), "names": names, "force": force}
    if limit is None:
        content = mixed.parts[0] if len(mixed.parts) == 1 else mixed
        target = export_peft(content, out, **options)
        folders = sorted(path.name for path in target.iterdir() if path.is_dir())
        lines = [f"{len(folders)} folders and load_in_peft.py" if folders else "one folder"]
        data |= {"out": target, "folders": folders}
    else:
        params, layout = base_params(mixed, base, conv1d, variant)
        with steps_bar("decomposing", "sites", as_json=as_json) as progress:
            lora, errors = to_lora(
                mixed, params, rank=limit, layout=layout, with_errors=True, progress=progress
            )
        target = export_peft(lora, out, errors=errors, **options)
        lines = _errors(lora, errors)
        data |= {"out": target, "ranks": _ranks(lora), "errors": errors}
    if as_json:
        print_json(data)
    else:
        print_lines(f"[bold]{escape(str(target))}[/]: {escape(strengths_text(mixed))}", *lines)


def _ranks(lora: "Adapter") -> dict[str, int]:
    """Returns the rank at each site that has one."""
    return {site: int(u.a.shape[0]) for site, u in lora.updates.items() if u.family == "LoRA"}  # pyright: ignore[reportAttributeAccessIssue]


def _errors(lora: "Adapter", errors: dict[str, float]) -> list[str]:
    """Describes the LoRA and its errors in lines."""
    ranks = sorted(set(_ranks(lora).values()))
    spread = "–".join(str(rank) for rank in dict.fromkeys((ranks[0], ranks[-1]))) if ranks else "0"
    lines = [f"one LoRA of rank {spread} at {count(len(lora.sites), 'site')}"]
    return [*lines, *error_lines(errors)]
