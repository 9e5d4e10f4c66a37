"""`jaxmix demo`: adapters of three kinds, alone and mixed, beside what PEFT published for them."""

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
        out: the PNG file; ``jaxmix-demo.png`` in the current folder by default.
        as_json: whether all that is said goes to stderr, and to stdout one JSON document.

    Returns:
        The exit code: 0, or 1 if a loss differs from PEFT's by more than rounding.

    Raises:
        CheckpointError: if an asset is missing or damaged.
    """
    console, start = Console(stderr=as_json), time.perf_counter()
    demo = read_demo()
    console.print("A Llama of 2.5M parameters that was trained on Jane Austen, bytes as tokens.")
    console.print("PEFT trained three adapters for it:")
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
        # Text that was drawn may well hold what rich would read as a tag.
        text = escape(passage(demo, order, domain))
        console.print(f"[dim]{escape(prompt)}[/]{text}\n", highlight=False)
    found_times = times(demo)
    console.print(
        f"compose of {', '.join(demo.adapters)}: {1e3 * found_times.compose:.1f} ms "
        f"({found_times.compose_first:.1f} s the first time, with compilation); "
        f"a token: {1e3 * found_times.token:.2f} ms"
    )
    picture = _picture(found, out or Path(PICTURE), console)
    console.print(f"{time.perf_counter() - start:.0f} s in all")
    if worst > 1e-4:
        console.print("[red]That is more than rounding: please report it.[/]")
    if as_json:
        losses = [{**asdict(row), "difference": row.difference} for row in found]
        told = {"losses": losses, "seconds": asdict(found_times), "picture": picture}
        print(json.dumps({**told, "largest_difference": worst}, indent=2))
    return 0 if worst <= 1e-4 else 1


def _table(found: list[Row]) -> Table:
    """The table of losses."""
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
    """The picture, where matplotlib is there to draw it."""
    if find_spec("matplotlib") is None:
        console.print("No picture: install matplotlib (the extra 'plot') to have one.")
        return None
    from jaxmix.demo.picture import draw

    draw(found, path)
    console.print(f"The table as a picture: {path}")
    return str(path)
