"""``jaxmix combine``."""

import warnings
from typing import Annotated, Any

import typer

from jaxmix.converters.cli.adapters import (
    AdapterOptions,
    Filenames,
    Ignored,
    Parts,
    Revision,
    Subfolder,
    check_apart,
    load_arguments,
)
from jaxmix.converters.cli.bases import BaseOption, Conv1d, Variant, base_layout, map_tensors
from jaxmix.converters.cli.choices import MAJORITY_SIGNS, METHODS
from jaxmix.converters.cli.console import (
    AsJson,
    Force,
    Out,
    choice_of,
    print_json,
    print_lines,
    steps_bar,
)
from jaxmix.converters.cli.export_options import BaseName, Patterns, Task, peft_options
from jaxmix.converters.cli.ranks import Energy, Rank, rank_of
from jaxmix.converters.files.terminal import escape

__all__ = ["combine"]

_FORMATS = ("mix", "peft")


def combine(
    adapters: AdapterOptions,
    out: Out,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            "-m",
            metavar="METHOD",
            help=f"One of {', '.join(METHODS)}.",
            **choice_of(METHODS),
        ),
    ],
    base: BaseOption = None,
    variant: Variant = None,
    density: Annotated[
        float | None,
        typer.Option(
            "--density", metavar="SHARE", help="The share of entries to keep of each adapter: 0.3."
        ),
    ] = None,
    majority_sign: Annotated[
        str | None,
        typer.Option(
            "--majority-sign",
            metavar="RULE",
            help="How TIES elects a sign: total (the default) or frequency.",
            **choice_of(MAJORITY_SIGNS),
        ),
    ] = None,
    outliers: Annotated[
        float | None,
        typer.Option(
            "--outliers",
            metavar="SHARE",
            help="The share of the largest entries that breadcrumbs drops, by default 0.01.",
        ),
    ] = None,
    rank: Rank = None,
    energy: Energy = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="NUMBER", help="The seed for dropping entries at random (DARE)."
        ),
    ] = None,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="mix: jaxmix's own format, for any result. peft: a folder that PEFT loads.",
            **choice_of(_FORMATS),
        ),
    ] = _FORMATS[0],
    part: Parts = None,
    ignore: Ignored = None,
    filename: Filenames = None,
    conv1d: Conv1d = None,
    base_name: BaseName = None,
    task: Task = None,
    patterns: Patterns = False,
    subfolder: Subfolder = None,
    revision: Revision = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Combine several adapters of any kinds into one, by TIES, DARE, slerp and others.

    The number after an adapter's colon is its weight; for sce and model_stock, which compute
    weights themselves, it is the adapter's strength. LoRAs are combined as in PEFT; other kinds by
    their effects on the base, which requires `--base`. A mix or a recipe counts as one adapter.

    **Examples**

    - `jaxmix combine -a lora-1:0.7 -a lora-2:0.3 -m linear -o both --to peft`
    - `jaxmix combine -a lora -a loha -m ties --density 0.3 --base base --rank 16 -o both`
    - `jaxmix combine -a lora -a oft -m dare_ties --density 0.5 --seed 0 --base base -o both`
    """
    # Not at the top, since help and shell completion do without JAX.
    from jaxmix import combining
    from jaxmix.converters.adapters.mixfile import save
    from jaxmix.converters.adapters.peft.export import export_peft

    limit = rank_of(rank, energy)
    written = peft_options(base_name, task, patterns, to=to)
    weighted = combining.METHODS[method].weighted
    if combining.METHODS[method].random and seed is None:
        raise typer.BadParameter(f"{method} drops random entries, so it needs a seed: --seed 0.")
    read = load_arguments(
        adapters,
        base,
        variant=variant,
        part=part,
        ignore=ignore,
        filename=filename,
        subfolder=subfolder,
        revision=revision,
        weighted=weighted,
    )
    named = [parsed for parsed, _ in read]
    groups = [group for _, group in read]
    check_apart(out, adapters)
    options: dict[str, Any] = {"density": density, "majority_sign": majority_sign, "rank": limit}
    weights = [strength for _, strength in named]
    partial = combining.partial_sites(groups) if base is None else {}
    pairs = combining.look_alikes(groups) if base is None else []
    bar = steps_bar(f"combining by {method}", "sites", as_json=as_json)
    with bar as progress, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "combine without a base")  # reported below
        adapter = combining.combine(
            groups,
            None if base is None else map_tensors(base, variant),
            method=method,
            layout=None if base is None else base_layout(base, conv1d, variant),
            weights=weights if weighted else None,
            key=None if seed is None else _key(seed),
            outliers=outliers,
            name=out.name or "combined",
            progress=progress,
            **options,
        )
    target = (save if to == "mix" else export_peft)(adapter, out, force=force, **written)
    if as_json:
        print_json(
            {
                "adapters": [{"path": path, "weight": weight} for path, weight in named],
                "method": method,
                "out": target,
                "format": to,
                "sites": list(adapter.sites),
                **({"partial": partial} if partial else {}),
                **({"look_alikes": pairs} if pairs else {}),
                "is": adapter.summary(),
            }
        )
    else:
        names = ", ".join(f"{path} × {weight:g}" for path, weight in named)
        print_lines(
            f"[bold]{escape(str(target))}[/]: {method} of {escape(names)}",
            escape(adapter.summary()),
        )
        if partial:
            print_lines(escape(f"note: {combining.partial_text(partial, len(adapter.sites))}"))
        if pairs:
            print_lines(escape(f"note: {combining.look_alikes_text(pairs)}"))


def _key(seed: int) -> Any:
    """Returns a JAX PRNG key."""
    import jax

    return jax.random.key(seed)
