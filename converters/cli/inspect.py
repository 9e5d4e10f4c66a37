"""``jaxmix inspect``."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from jaxmix.adapter import Adapter
from jaxmix.converters.cli.adapters import (
    AdapterArguments,
    Filenames,
    Ignored,
    Revision,
    Subfolder,
    load_each,
)
from jaxmix.converters.cli.bases import BaseOption, Conv1d, needs_base, params_of
from jaxmix.converters.cli.tables import adapter_data, adapter_table
from jaxmix.converters.cli.telling import AsJson, say, steps_bar, tell_json
from jaxmix.converters.files.terminal import escape
from jaxmix.measures import Measures, draw_measures, measure
from jaxmix.mixing import mix
from jaxmix.pictures import checked_picture

__all__ = ["inspect"]


def inspect(
    adapters: AdapterArguments,
    base: BaseOption = None,
    measured: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Measure what each changes: norm, effective rank, its share in the mix; and how "
            "far two agree.",
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="Draw the measures, module by layer: .png, .svg or .pdf."
        ),
    ] = None,
    ignore: Ignored = None,
    filename: Filenames = None,
    conv1d: Conv1d = None,
    subfolder: Subfolder = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Show what adapters are: kinds, sizes, and the modules that they touch.

    With `--measure` or `--plot` also what they do, as one mix in this order: the norm of the effect
    Δ = W' − W, its effective rank, and the share of each in what the mix changes; for each two the
    cosine of their effects, how many entries have equal signs, and how far the spaces overlap that
    they write to and read. Rotations, DoRAs and all else that reads or turns the base need
    `--base`; without it they are left out of the measures, and named.

    **Examples**

    - `jaxmix inspect my-lora`
    - `jaxmix inspect my-lora:0.5 owner/loha --json`
    - `jaxmix inspect recipe.json --base Llama-3.2-1B --measure`
    - `jaxmix inspect lora loha oft --base base --plot effects.png`
    """
    if plot is not None:
        checked_picture(plot)
    each = load_each(
        adapters, base, ignore=ignore, filename=filename, subfolder=subfolder, revision=revision
    )
    parts = [part for _, several in each for part in several]
    found, left_out = None, []
    if measured or plot is not None:
        found, left_out = _measured(parts, base, conv1d, as_json=as_json)
    if found is not None and plot is not None:
        draw_measures(found, plot)
    if as_json:
        data = [{"path": told.path, **adapter_data(part)} for told, own in each for part in own]
        measures = {} if found is None else {**_data(found), "needs_base": left_out}
        drawn = {} if plot is None else {"picture": plot}
        tell_json({"adapters": data, **measures, **drawn})
        return
    console = Console(highlight=False, emoji=False)
    console.print(adapter_table(parts))
    for table in () if found is None else (_sites(found), _pairs(found)):
        if table.row_count:
            console.print()
            console.print(table)
    if left_out:
        say("", "not measured, since it needs the base (--base FOLDER):")
        say(*(f"  {escape(line)}" for line in left_out))
    if plot is not None:
        say("", f"The measures as a picture: {escape(str(plot))}")


def _measured(
    parts: list[Adapter], base: Path | None, conv1d: str | None, *, as_json: bool
) -> tuple[Measures, list[str]]:
    """The measures of those that can be measured, and why the others can't be."""
    needy = {} if base is not None else {part.name: needs_base(part) for part in parts}
    mixed = mix(*(part for part in parts if not needy.get(part.name)))
    left_out = [line for lines in needy.values() for line in lines]
    if not mixed.parts:
        params_of(mix(*parts), None)  # which says what it needs
    params, layout = params_of(mixed, base, conv1d)
    with steps_bar("measuring", as_json=as_json) as progress:
        return measure(mixed, params, layout=layout, progress=progress), left_out


def _data(found: Measures) -> dict[str, Any]:
    """The measures for machines."""
    own = [
        {
            "adapter": name,
            "norm": found.norm(name),
            "share": found.share(name),
            "sites": {site: asdict(one) for site, one in sites.items()},
        }
        for name, sites in found.sites.items()
    ]
    pairs = [
        {"adapters": list(names), "sites": {site: asdict(one) for site, one in sites.items()}}
        for names, sites in found.pairs.items()
    ]
    return {"measures": own, "pairs": pairs}


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(titles):
        table.add_column(title, justify="right" if i else "left", overflow="fold")
    return table


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else float("nan")


def _sites(found: Measures) -> Table:
    """What each changes, over all of its sites."""
    table = _table("adapter", "sites", "norm", "effective rank", "share")
    table.add_column("largest norm", overflow="fold", ratio=1)
    for name, sites in found.sites.items():
        if not sites:
            continue
        ranks = [one.rank for one in sites.values()]
        most = max(sites, key=lambda site: sites[site].norm)
        spread = f"{_mean(ranks):.1f} ({min(ranks):.1f}–{max(ranks):.1f})"
        cells = (str(len(sites)), f"{found.norm(name):.4g}", spread, f"{found.share(name):.0%}")
        table.add_row(escape(name), *cells, f"{sites[most].norm:.4g} at {escape(most)}")
    return table


def _pairs(found: Measures) -> Table:
    """How each two agree: means over the sites that both change."""
    titles = ("cosine", "equal signs", "outputs", "inputs", "smallest angles")
    table = _table("pair", "sites", *titles)
    table.caption = "outputs, inputs: how far what they write to, and read, overlaps; 0 is chance"
    table.caption_justify = "left"
    for names, sites in found.pairs.items():
        if not sites:
            continue
        each = list(sites.values())
        signs = [one.signs for one in each if one.signs is not None]
        table.add_row(
            escape(" and ".join(names)),
            str(len(each)),
            f"{_mean([one.cosine for one in each]):.3f}",
            f"{_mean(signs):.1%}",
            f"{_mean([one.outputs for one in each]):.3f}",
            f"{_mean([one.inputs for one in each]):.3f}",
            f"{min(one.output_angle for one in each):.0f}° and "
            f"{min(one.input_angle for one in each):.0f}°",
        )
    return table
