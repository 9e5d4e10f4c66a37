"""``jaxmix combine``."""

import warnings
from typing import Annotated, Any, get_args

import typer

from jaxmix.combining import (
    METHODS,
    look_alikes,
    look_alikes_text,
    partial_sites,
    partial_text,
)
from jaxmix.combining import combine as combined
from jaxmix.combining.formulas import MajoritySign
from jaxmix.converters.adapters.mixfile import save
from jaxmix.converters.adapters.peft.export import export_peft
from jaxmix.converters.cli.adapters import (
    AdapterOptions,
    Filenames,
    Ignored,
    Revision,
    Subfolder,
    check_apart,
    load_told,
)
from jaxmix.converters.cli.bases import BaseOption, Conv1d, layout_of, mapped
from jaxmix.converters.cli.ranks import Energy, Rank, rank_of
from jaxmix.converters.cli.telling import AsJson, Force, Out, one_of, say, tell_json, waiting
from jaxmix.converters.cli.written import BaseName, Patterns, Task, peft_options
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
            **one_of(tuple(METHODS)),
        ),
    ],
    base: BaseOption = None,
    density: Annotated[
        float | None,
        typer.Option(
            "--density", metavar="SHARE", help="The share of entries that each keeps: 0.3."
        ),
    ] = None,
    majority_sign: Annotated[
        str | None,
        typer.Option(
            "--majority-sign",
            metavar="RULE",
            help="What elects a sign in TIES: total (by default) or frequency.",
            **one_of(get_args(MajoritySign)),
        ),
    ] = None,
    outliers: Annotated[
        float | None,
        typer.Option(
            "--outliers",
            metavar="SHARE",
            help="The share of entries that breadcrumbs drops as too large, 0.01 by default.",
        ),
    ] = None,
    rank: Rank = None,
    energy: Energy = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="NUMBER", help="For what drops entries at random (DARE)."),
    ] = None,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="mix: jaxmix's own, which holds any result. peft: a folder that PEFT loads.",
            **one_of(_FORMATS),
        ),
    ] = _FORMATS[0],
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
    """Make one adapter of several: TIES, DARE, slerp and others, over any kinds.

    The number after an adapter's colon is its weight; for sce and model_stock, which find their own
    weights, it is the strength at which it goes in. LoRAs alone are combined as PEFT does it; other
    kinds by what they change in the base, for which they need `--base`. A mix or a recipe counts as
    one adapter.

    **Examples**

    - `jaxmix combine -a lora-1:0.7 -a lora-2:0.3 -m linear -o both --to peft`
    - `jaxmix combine -a lora -a loha -m ties --density 0.3 --base base --rank 16 -o both`
    - `jaxmix combine -a lora -a oft -m dare_ties --density 0.5 --seed 0 --base base -o both`
    """
    limit = rank_of(rank, energy)
    written = peft_options(base_name, task, patterns, to=to)
    weighted = METHODS[method].weighted
    read = load_told(
        adapters,
        base,
        ignore=ignore,
        filename=filename,
        subfolder=subfolder,
        revision=revision,
        weighted=weighted,
    )
    told = [each for each, _ in read]
    groups = [group for _, group in read]
    check_apart(out, adapters)
    options: dict[str, Any] = {"density": density, "majority_sign": majority_sign, "rank": limit}
    weights = [strength for _, strength in told]
    partial = partial_sites(groups) if base is None else {}
    pairs = look_alikes(groups) if base is None else []
    with waiting(f"combining by {method}", as_json=as_json), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "combine without a base")  # the program reports it itself
        made = combined(
            groups,
            None if base is None else mapped(base),
            method=method,
            layout=None if base is None else layout_of(base, conv1d),
            weights=weights if weighted else None,
            key=None if seed is None else _key(seed),
            outliers=outliers,
            name=out.name or "combined",
            **options,
        )
    place = (save if to == "mix" else export_peft)(made, out, force=force, **written)
    if as_json:
        tell_json(
            {
                "adapters": [{"path": path, "weight": weight} for path, weight in told],
                "method": method,
                "out": place,
                "format": to,
                "sites": list(made.sites),
                **({"partial": partial} if partial else {}),
                **({"look_alikes": pairs} if pairs else {}),
                "is": made.summary(),
            }
        )
    else:
        names = ", ".join(f"{path} × {weight:g}" for path, weight in told)
        say(f"[bold]{escape(str(place))}[/]: {method} of {escape(names)}", escape(made.summary()))
        if partial:
            say(escape(f"note: {partial_text(partial, len(made.sites))}"))
        if pairs:
            say(escape(f"note: {look_alikes_text(pairs)}"))


def _key(seed: int) -> Any:
    """A key of JAX's."""
    import jax

    return jax.random.key(seed)
