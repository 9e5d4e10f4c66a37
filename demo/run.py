"""`jaxmix demo`: adapters of three kinds, alone and mixed, compared with PEFT's recorded losses."""

import json
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from jaxmix.demo.measure import ORDERS, Row, passage, read_demo, rows, times

__all__ = ["main"]

PASSAGES = (
    ((), "austen"), (("lora",), "bible"), (("loha",), "jargon"), (("oft",), "devil"),
    (("lora", "loha"), "bible"), (("lora", "loha"), "jargon"), (("lora", "loha", "oft"), "devil"),
)  # fmt: skip
PICTURE = "jaxmix-demo.png"


def main(out: Path | None = None, *, as_json: bool = False) -> int:
    """Runs the demo on its own small Llama and writes a picture.

    Args:
        out: The PNG file; by default ``jaxmix-demo.png`` in the current folder.
        as_json: Whether to print one JSON document to stdout, and everything else to stderr.

    Returns:
        The exit code: 0, or 1 if a loss differs from PEFT's by more than rounding.

    Raises:
        CheckpointError: If an asset is missing or damaged.
    """
    console, start = Console(stderr=as_json), time.perf_counter()
    demo = read_demo()
    console.print(
        "A Llama with 2.5M parameters, trained on Jane Austen's novels with bytes as tokens."
    )
    console.print("Three adapters, trained for it with PEFT:")
    for adapter in demo.adapters.values():
        domain = demo.recorded["adapters"][adapter.name]["trained_on"]
        console.print(f"  {adapter!r}, trained on [italic]{domain}[/]", highlight=False)
    found: list[Row] = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("held-out loss", total=(len(ORDERS) + 1) * len(demo.windows))
        for row in rows(demo, lambda: progress.advance(task)):
            found.append(row)
    console.print(_table(found))
    worst = max(row.difference or 0.0 for row in found)
    console.print(f"Largest difference from PEFT's forward: {worst:.1e} nats per byte.\n")
    for order, domain in PASSAGES:
        prompt = demo.recorded["prompts"][domain]
        console.print(f"[bold]{' → '.join(order) or 'base'}[/] ({domain})", highlight=False)
        # Sampled text may contain what rich would read as a tag.
        text = escape(passage(demo, order, domain))
        console.print(f"[dim]{escape(prompt)}[/]{text}\n", highlight=False)
    found_times = times(demo)
    console.print(
        f"compose of {', '.join(demo.adapters)}: {1e3 * found_times.compose:.1f} ms "
        f"({found_times.compose_first:.1f} s the first time, with compilation); "
        f"a token: {1e3 * found_times.token:.2f} ms"
    )
    picture = _picture(found, out or Path(PICTURE), console)
    console.print(f"{time.perf_counter() - start:.0f} s in total")
    if worst > 1e-4:
        console.print("[red]The difference from PEFT is larger than rounding: please report it.[/]")
    if as_json:
        losses = [{**asdict(row), "difference": row.difference} for row in found]
        data = {"losses": losses, "seconds": asdict(found_times), "picture": picture}
        print(json.dumps({**data, "largest_difference": worst}, indent=2))
    return 0 if worst <= 1e-4 else 1


def _table(found: list[Row]) -> Table:
    """Builds the table of losses."""
    table = Table(title="Held-out loss, nats per byte (adapters are applied from left to right)")
    table.add_column("model")
    for domain in found[0].losses:
        table.add_column(domain, justify="right")
    table.add_column("PEFT's forward", justify="right")
    table.add_column("difference", justify="right")
    base = found[0].losses
    for row in found:
        cells = [
            f"[green]{loss:.4f}[/]" if loss < base[domain] - 0.01 else f"{loss:.4f}"
            for domain, loss in row.losses.items()
        ]
        peft = " ".join(f"{row.peft[domain]:.3f}" for domain in row.peft)
        off = "" if row.difference is None else f"{row.difference:.0e}"
        table.add_row(row.label, *cells, peft or "has no strengths", off)
    return table


def _picture(found: list[Row], path: Path, console: Console) -> str | None:
    """Plots the table and returns the file's path; None without matplotlib."""
    if find_spec("matplotlib") is None:
        console.print("No plot: it requires matplotlib (the extra 'plot').")
        return None
    from jaxmix.demo.picture import draw

    draw(found, path)
    console.print(f"plot of the table: {path}")
    return str(path)
