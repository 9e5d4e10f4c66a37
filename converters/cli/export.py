"""``jaxmix export``."""

from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.peft.export import export_peft
from jaxmix.converters.cli.adapters import (
    AdapterOptions,
    Filenames,
    Ignored,
    PeftOrder,
    Revision,
    Subfolder,
    check_apart,
    load_mix,
    strengths_data,
    strengths_text,
)
from jaxmix.converters.cli.bases import BaseOption, Conv1d, params_of
from jaxmix.converters.cli.ranks import Energy, Rank, rank_of
from jaxmix.converters.cli.telling import AsJson, Force, Out, count, say, tell_json, waiting
from jaxmix.converters.cli.written import BaseName, Patterns, Task, peft_options
from jaxmix.converters.files.terminal import escape
from jaxmix.low_rank import to_lora

__all__ = ["export"]

# So many of the sites with the largest errors are named.
_SHOWN = 3


def export(
    adapters: AdapterOptions,
    out: Out,
    base: BaseOption = None,
    rank: Rank = None,
    energy: Energy = None,
    conv1d: Conv1d = None,
    base_name: BaseName = None,
    task: Task = None,
    patterns: Patterns = False,
    force: Force = False,
    peft_order: PeftOrder = False,
    ignore: Ignored = None,
    filename: Filenames = None,
    subfolder: Subfolder = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Write any mix as a folder that PEFT loads: one LoRA, or its parts.

    With `--rank` or `--energy` it becomes one LoRA: the singular value decomposition of what the
    mix changes at each site, cut there; the error that this makes is told, ‖Δ − BA‖ / ‖Δ‖. What
    reads or turns the base (rotations, DoRA) needs `--base` for it.

    Without, nothing is changed: one adapter becomes one folder, and several a folder for each, with
    a script that loads them into PEFT one after the other.

    A LoRA has one rank and one alpha for all sites, as llama.cpp and others need it: factors of
    smaller ranks are filled with zeros, unless `--patterns` is given.

    **Examples**

    - `jaxmix export -a lora:0.6 -a oft --base Llama-3.2-1B --rank 16 -o one-lora`
    - `jaxmix export -a recipe.json --base base --energy 0.99 -o one-lora`
    - `jaxmix export -a lora:0.6 -a loha -o for-peft`: the parts, and load_in_peft.py
    """
    limit = rank_of(rank, energy)
    mixed = load_mix(
        adapters,
        base,
        peft_order=peft_order,
        ignore=ignore,
        filename=filename,
        subfolder=subfolder,
        revision=revision,
    )
    check_apart(out, adapters)
    told: dict[str, Any] = {"adapters": strengths_data(mixed)}
    options = {**peft_options(base_name, task, patterns), "force": force}
    if limit is None:
        alone = mixed.parts[0] if len(mixed.parts) == 1 else mixed
        place = export_peft(alone, out, **options)
        folders = sorted(path.name for path in place.iterdir() if path.is_dir())
        lines = [f"{len(folders)} folders and load_in_peft.py" if folders else "one folder"]
        told |= {"out": place, "folders": folders}
    else:
        params, layout = params_of(mixed, base, conv1d)
        with waiting("decomposing", as_json=as_json):
            made = to_lora(mixed, params, rank=limit, layout=layout, with_errors=True)
        lora, errors = made
        place = export_peft(lora, out, errors=errors, **options)
        lines = _errors(lora, errors)
        told |= {"out": place, "ranks": _ranks(lora), "errors": errors}
    if as_json:
        tell_json(told)
    else:
        say(f"[bold]{escape(str(place))}[/]: {escape(strengths_text(mixed))}", *lines)


def _ranks(lora: Adapter) -> dict[str, int]:
    """The rank at each site that has one."""
    return {site: int(u.a.shape[0]) for site, u in lora.updates.items() if u.family == "LoRA"}  # pyright: ignore[reportAttributeAccessIssue]


def _errors(lora: Adapter, errors: dict[str, float]) -> list[str]:
    """What was cut off, in lines."""
    ranks = sorted(set(_ranks(lora).values()))
    spread = "–".join(str(rank) for rank in dict.fromkeys((ranks[0], ranks[-1]))) if ranks else "0"
    lines = [f"one LoRA of rank {spread} at {count(len(lora.sites), 'site')}"]
    if errors:
        worst = sorted(errors, key=lambda site: -errors[site])[:_SHOWN]
        mean = sum(errors.values()) / len(errors)
        lines.append(f"error ‖Δ − BA‖ / ‖Δ‖: mean {mean:.2%}, largest")
        lines += [f"  {errors[site]:.2%} at {escape(site)}" for site in worst]
    return lines
