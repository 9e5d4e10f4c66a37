"""Prints results to stdout, as text or as one JSON document, and everything else to stderr."""

import json
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from jaxmix.converters.files.hub_connection import log as hub_log
from jaxmix.converters.files.terminal import printable

__all__ = [
    "AsJson",
    "Force",
    "Out",
    "bytes_bar",
    "choice_of",
    "count",
    "print_error",
    "print_json",
    "print_lines",
    "show_hub_requests",
    "steps_bar",
]

# Characters of a message that are not escaped.
_LINES = "\n"

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, also for errors.")]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT once the new one is complete.")]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The folder to write.")]


def print_lines(*lines: str) -> None:
    """Prints lines of rich's markup to stdout."""
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    for line in lines:
        console.print(line)


def print_json(data: Mapping[str, Any]) -> None:
    """Prints a JSON document to stdout, with null for NaN and infinity."""
    typer.echo(json.dumps(_plain(data), indent=2, allow_nan=False))


def _plain(data: Any) -> Any:
    """Converts data to what JSON can hold."""
    if isinstance(data, Mapping):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return str(data) if isinstance(data, Path) else data


def print_error(text: str, kind: str, *, as_json: bool) -> None:
    """Prints an error: a line on stderr, or a JSON document on stdout."""
    if as_json:
        print_json({"error": text, "kind": kind})
    else:
        console = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
        console.print(f"[bold red]error:[/] {escape_markup(printable(text, keep=_LINES))}")


@contextmanager
def show_hub_requests(*, as_json: bool) -> Iterator[None]:
    """Prints requests to the hub, which may take a while, to stderr, except with ``--json``."""
    if as_json:
        yield
        return
    console = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)

    class ConsoleHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = printable(record.getMessage())
            console.print(f"[dim]{escape_markup(text)} …[/]")

    handler, level = ConsoleHandler(), hub_log.level
    hub_log.addHandler(handler)
    hub_log.setLevel(logging.INFO)
    try:
        yield
    finally:
        hub_log.removeHandler(handler)
        hub_log.setLevel(level)


def count(number: int, noun: str) -> str:
    """Returns ``1 tensor`` or ``2,000 tensors``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def choice_of(names: Collection[str]) -> dict[str, Any]:
    """Returns the arguments of an option with a choice of names: a check, and shell completion."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in names:
            near = get_close_matches(value, names, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(names)}.{hint}")
        return value

    # typer filters the completions by what was typed.
    return {"autocompletion": lambda: list(names), "callback": check}


# ---------------------------------------------------------------- progress, on stderr


@contextmanager
def _bar(*columns: Any, as_json: bool) -> Iterator[Progress]:
    """Yields a progress bar to start; with --json it is shown only if stderr is a terminal."""
    console = Console(stderr=True, emoji=False)
    bar = Progress(*columns, console=console, disable=as_json and not console.is_terminal)
    try:
        yield bar
    except BaseException:
        bar.live.transient = True  # an error is not preceded by an unfinished bar
        raise
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def bytes_bar(*, as_json: bool) -> Iterator[Callable[[int, int, str], None]]:
    """Yields the ``progress`` argument of `merge_checkpoint`: a bar of bytes, speed, time left."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with _bar(*columns, as_json=as_json) as bar:
        task = bar.add_task("", visible=False)

        def update(done: int, size: int, shard: str) -> None:
            bar.start()  # not before: an error without progress would have an empty line above it
            bar.update(task, completed=done, total=size, description=printable(shard), visible=True)

        yield update


class _RateColumn(ProgressColumn):
    """The number of steps per second: ``3.1 sites/s``."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> str:
        """Returns the rate of a task, "" while it is unknown."""
        speed = task.finished_speed or task.speed
        return "" if speed is None else f"{speed:.1f} {self.unit}/s"


@contextmanager
def steps_bar(title: str, unit: str, *, as_json: bool) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of the steps done and the total steps, which updates a bar.

    Args:
        title: The text before the bar.
        unit: What is counted, in the plural.
        as_json: Whether a JSON document is printed.
    """
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(unit),
        TimeRemainingColumn(),
    )
    with _bar(*columns, as_json=as_json) as bar:
        task = bar.add_task(title, total=None)
        if bar.console.is_terminal:
            bar.start()  # elsewhere an error without progress would have an empty line above it

        def update(done: int, total: int) -> None:
            bar.start()
            bar.update(task, completed=done, total=total)

        yield update
