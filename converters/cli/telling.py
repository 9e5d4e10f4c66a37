"""What the program says: results on stdout, as text or as one JSON document; the rest on stderr."""

import json
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
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
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from jaxmix.converters.files.reaching import log as hub_log
from jaxmix.converters.files.terminal import printable

__all__ = [
    "AsJson",
    "Force",
    "Out",
    "bytes_bar",
    "count",
    "one_of",
    "say",
    "steps_bar",
    "tell_error",
    "tell_json",
    "telling_of_the_hub",
    "waiting",
]

# Characters of a message that are its own, such as lists have.
_LINES = "\n"

AsJson = Annotated[bool, typer.Option("--json", help="Tell it as one JSON document, errors too.")]
Force = Annotated[
    bool, typer.Option("--force", help="Replace OUT; it stays until the new one is whole.")
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The folder to write.")]


def say(*lines: str) -> None:
    """Lines on stdout, in rich's markup."""
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    for line in lines:
        console.print(line)


def tell_json(data: Mapping[str, Any]) -> None:
    """One JSON document on stdout. What is no number is null there."""
    typer.echo(json.dumps(_plain(data), indent=2, allow_nan=False))


def _plain(data: Any) -> Any:
    """Data that JSON can hold."""
    if isinstance(data, Mapping):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return str(data) if isinstance(data, Path) else data


def tell_error(text: str, kind: str, *, as_json: bool) -> None:
    """What went wrong: a line on stderr, or a JSON document on stdout."""
    if as_json:
        tell_json({"error": text, "kind": kind})
    else:
        console = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
        console.print(f"[bold red]error:[/] {escape_markup(printable(text, keep=_LINES))}")


@contextmanager
def telling_of_the_hub(*, as_json: bool) -> Iterator[None]:
    """Shows on stderr that the hub is asked, which may take a while; not with ``--json``."""
    if as_json:
        yield
        return
    console = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = printable(record.getMessage())
            console.print(f"[dim]{escape_markup(text)} …[/]")

    handler, level = Lines(), hub_log.level
    hub_log.addHandler(handler)
    hub_log.setLevel(logging.INFO)
    try:
        yield
    finally:
        hub_log.removeHandler(handler)
        hub_log.setLevel(level)


def count(number: int, what: str) -> str:
    """``1 tensor``, ``2,000 tensors``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def one_of(names: Collection[str]) -> dict[str, Any]:
    """What makes an option one of some names: the check, and completion in the shell."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in names:
            raise typer.BadParameter(f"{value!r} is none of {', '.join(names)}.")
        return value

    # typer leaves out those that do not begin as the word does.
    return {"autocompletion": lambda: list(names), "callback": check}


# ---------------------------------------------------------------- progress, on stderr


@contextmanager
def _bar(*columns: Any, as_json: bool) -> Iterator[Progress]:
    """A bar; with --json only where a person looks on."""
    console = Console(stderr=True, emoji=False)
    with Progress(*columns, console=console, disable=as_json and not console.is_terminal) as bar:
        yield bar


@contextmanager
def bytes_bar(*, as_json: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A bar for `merge_checkpoint` to call: bytes, bytes per second, time left."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with _bar(*columns, as_json=as_json) as bar:
        task = bar.add_task("", visible=False)

        def tell(done: int, size: int, shard: str) -> None:
            bar.update(task, completed=done, total=size, description=printable(shard), visible=True)

        yield tell


@contextmanager
def steps_bar(what: str, *, as_json: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar of steps with the time left: what is called with those done, and those in all."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with _bar(*columns, as_json=as_json) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def waiting(what: str, *, as_json: bool) -> Iterator[None]:
    """A sign of life, and the time that has passed, where nobody knows how long it takes."""
    with _bar(SpinnerColumn(), TextColumn(what), TimeElapsedColumn(), as_json=as_json) as bar:
        bar.add_task(what, total=None)
        yield
