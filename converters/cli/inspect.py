"""``jaxmix inspect``."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from jaxmix.converters.cli.adapters import (
    AdapterArguments,
    Filenames,
    Ignored,
    Parts,
    Revision,
    Subfolder,
    load_each,
)
from jaxmix.converters.cli.bases import BaseOption, Conv1d, Variant, base_params, needs_base
from jaxmix.converters.cli.console import AsJson, print_json, print_lines, steps_bar
from jaxmix.converters.files.terminal import escape
from jaxmix.pictures import checked_picture

if TYPE_CHECKING:  # help and shell completion do without JAX
    from jaxmix.adapter import Adapter
    from jaxmix.measures import Measures

__all__ = ["inspect"]


def inspect(
    adapters: AdapterArguments,
    base: BaseOption = None,
    variant: Variant = None,
    measured: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Measure the effect of each adapter (norm, effective rank, share of the mix), and "
            "the agreement of each pair.",
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Plot the measures by module and layer to a .png, .svg or .pdf file.",
        ),
    ] = None,
    part: Parts = None,
    ignore: Ignored = None,
    filename: Filenames = None,
    conv1d: Conv1d = None,
    subfolder: Subfolder = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Show adapters' kinds and sizes, and the modules that they touch.

    With `--measure` or `--plot`, also measure their effects Δ = W' − W as a mix in this order: for
    each adapter the norm, the effective rank and the share of the mix's effect; for each pair the
    cosine of the effects, the share of entries with equal signs, and the overlap of output and
    input spaces. Adapters that read or rotate the base (DoRA, OFT) require `--base`; without it
    they are listed and not measured.

    **Examples**

    - `jaxmix inspect my-lora`
    - `jaxmix inspect my-lora:0.5 owner/loha --json`
    - `jaxmix inspect recipe.json --base Llama-3.2-1B --measure`
    - `jaxmix inspect lora loha oft --base base --plot effects.png`
    """
    from jaxmix.converters.cli.tables import adapter_data, adapter_lines
    from jaxmix.measures import draw_measures

    if plot is not None:
        checked_picture(plot)
    each = load_each(
        adapters,
        base,
        variant=variant,
        part=part,
        ignore=ignore,
        filename=filename,
        subfolder=subfolder,
        revision=revision,
    )
    parts = [part for _, adapters_read in each for part in adapters_read]
    result, left_out = None, []
    if measured or plot is not None:
        result, left_out = _measured(parts, base, conv1d, variant, as_json=as_json)
    if result is not None and plot is not None:
        draw_measures(result, plot)
    if as_json:
        data = [
            {"path": named.path, **adapter_data(part)}
            for named, adapters_read in each
            for part in adapters_read
        ]
        measures = {} if result is None else {**_data(result), "needs_base": left_out}
        picture = {} if plot is None else {"picture": plot}
        print_json({"adapters": data, **measures, **picture})
        return
    console = Console(highlight=False, emoji=False)
    titles, *lines = adapter_lines(parts, console.width)
    print_lines(f"[bold]{titles}[/]", *map(escape, lines))
    for table in () if result is None else (_sites(result), _pairs(result)):
        if table.row_count:
            console.print()
            console.print(table)
    if result is not None and result.pairs:
        print_lines("outputs, inputs: overlap of the output and input spaces; 0 is that of chance")
    if left_out:
        print_lines("", "not measured without the base (--base FOLDER):")
        print_lines(*(f"  {escape(line)}" for line in left_out))
    if plot is not None:
        print_lines("", f"plot of the measures: {escape(str(plot))}")


def _measured(
    parts: "list[Adapter]",
    base: str | None,
    conv1d: str | None,
    variant: str | None,
    *,
    as_json: bool,
) -> "tuple[Measures, list[str]]":
    """Returns the measures, and a description of the adapters that need the base."""
    from jaxmix.measures import measure
    from jaxmix.mixing import mix

    needy = {} if base is not None else {part.name: needs_base(part) for part in parts}
    mixed = mix(*(part for part in parts if not needy.get(part.name)))
    left_out = [line for lines in needy.values() for line in lines]
    if not mixed.parts:
        base_params(mix(*parts), None)  # raises an error that lists them
    params, layout = base_params(mixed, base, conv1d, variant)
    with steps_bar("measuring", "sites", as_json=as_json) as progress:
        return measure(mixed, params, layout=layout, progress=progress), left_out


def _data(result: "Measures") -> dict[str, Any]:
    """Returns the measures as data for JSON."""
    measures = [
        {
            "adapter": name,
            "norm": result.norm(name),
            "share": result.share(name),
            "sites": {site: asdict(values) for site, values in sites.items()},
        }
        for name, sites in result.sites.items()
    ]
    pairs = [
        {"adapters": list(names), "sites": {site: asdict(values) for site, values in sites.items()}}
        for names, sites in result.pairs.items()
    ]
    return {"measures": measures, "pairs": pairs}


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(titles):
        table.add_column(title, justify="right" if i else "left", overflow="fold")
    return table


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else float("nan")


def _sites(result: "Measures") -> Table:
    """Tabulates the effect of each adapter over all of its sites."""
    table = _table("adapter", "sites", "norm", "effective rank", "share")
    table.add_column("largest norm", overflow="fold", ratio=1)
    for name, sites in result.sites.items():
        if not sites:
            continue
        ranks = [values.rank for values in sites.values()]
        most = max(sites, key=lambda site: sites[site].norm)
        spread = f"{_mean(ranks):.1f} ({min(ranks):.1f}–{max(ranks):.1f})"
        cells = (str(len(sites)), f"{result.norm(name):.4g}", spread, f"{result.share(name):.0%}")
        table.add_row(escape(name), *cells, f"{sites[most].norm:.4g} at {escape(most)}")
    return table


def _pairs(result: "Measures") -> Table:
    """Tabulates the agreement of each pair: means over the sites that both change."""
    titles = ("cosine", "equal signs", "outputs", "inputs", "smallest angles")
    table = _table("pair", "sites", *titles)
    for names, sites in result.pairs.items():
        if not sites:
            continue
        each = list(sites.values())
        signs = [values.signs for values in each if values.signs is not None]
        table.add_row(
            escape(" and ".join(names)),
            str(len(each)),
            f"{_mean([values.cosine for values in each]):.3f}",
            f"{_mean(signs):.1%}",
            f"{_mean([values.outputs for values in each]):.3f}",
            f"{_mean([values.inputs for values in each]):.3f}",
            f"{min(values.output_angle for values in each):.0f}° and "
            f"{min(values.input_angle for values in each):.0f}°",
        )
    return table
