"""The program ``jaxmix``: `demo`, `merge`, `inspect`. What it does is done elsewhere."""

import json
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from jaxmix.adapter import Adapter
from jaxmix.converters.loading import load
from jaxmix.converters.merging import Merged, merge_checkpoint
from jaxmix.converters.peft import peft_stack
from jaxmix.converters.tables import adapter_data, adapter_table
from jaxmix.errors import CheckpointError, JaxmixError
from jaxmix.mix import mix

__all__ = ["app", "load_all", "main", "parse_adapter"]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_ADAPTER = (
    "A PEFT folder, a saved mix, a recipe or a hub id, with a strength if a number follows the "
    "last colon: `lora`, `owner/lora:0.6`, `lora:-1`. A folder whose own name ends so needs "
    "another: `run:2:1`."
)

app = typer.Typer(
    name="jaxmix",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program.

    Args:
        arguments: the words of the command line; those of this process by default.

    Returns:
        The exit code: 0, 1 for what jaxmix refuses, 2 for a command line that makes no sense.
    """
    try:
        app(arguments, prog_name="jaxmix")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except JaxmixError as error:
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        console.print(f"[bold red]error:[/] {escape(str(error))}")
        return 1
    return 0


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jaxmix {installed_version('jaxmix-peft')}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_tell_version),
    ] = False,
) -> None:
    """Mix adapters of different kinds that PEFT saved: LoRA, LoHa, LoKr, AdaLoRA, OFT, SHiRA.

    Begin with `jaxmix demo`. Then look at an adapter of yours with `jaxmix inspect`, and put
    several of them into a model with `jaxmix merge`. `jaxmix COMMAND --help` shows examples.
    """


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to put the picture.")
    ] = None,
) -> None:
    """A real language model with three PEFT adapters: each alone, and all mixed.

    **Examples**

    - `jaxmix demo`
    - `jaxmix demo --out pictures`
    """
    from jaxmix.demo.run import main as run

    raise typer.Exit(run(out=out))


@app.command()
def merge(
    base: Annotated[
        Path, typer.Argument(metavar="BASE", help="A Hugging Face folder with safetensors.")
    ],
    adapters: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER[:STRENGTH]...", help=_ADAPTER, show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace OUT; it stays until the new one is whole.")
    ] = False,
    untie: Annotated[
        bool, typer.Option("--untie", help="Give a tied head a tensor of its own where need be.")
    ] = False,
    peft_order: Annotated[
        bool,
        typer.Option(
            "--peft-order", help="The order of PEFT's forward: it turns runs of OFT around."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Tell it as one JSON document.")] = False,
) -> None:
    """Put adapters into a model: a Hugging Face folder in, a merged one out.

    Adapters are applied from left to right. OUT has the same shards, dtypes and side files as
    BASE; what no adapter touches is copied byte for byte. It is written into OUT.partial and takes
    its place at the end; if the program is killed, that is all that is left, and can be removed.

    **Examples**

    - `jaxmix merge Llama-3.2-1B my-lora --out merged`
    - `jaxmix merge base lora:0.6 owner/loha oft:-1 --out merged`: three kinds, with strengths
    - `jaxmix merge base oft-1 oft-2 --peft-order --out merged`: what PEFT's forward computes
    - `jaxmix merge base lora --out merged --force --json`
    """
    told = [parse_adapter(text) for text in adapters]
    loaded = load_all(told, base)
    _check_apart(out, told)
    mixed = peft_stack(loaded) if peft_order else mix(*loaded)
    with _terminable(), _progress(hidden=as_json) as progress:
        merged = merge_checkpoint(base, mixed, out, force=force, untie=untie, progress=progress)
    if as_json:
        data = {**asdict(merged), "out": str(merged.out)}
        parts = [{"name": part.name, "strength": float(part.strength)} for part in mixed.parts]
        typer.echo(json.dumps({"base": str(base), "adapters": parts, **data}, indent=2))
    else:
        _tell_merged(merged, [f"{part.name} × {float(part.strength):g}" for part in mixed.parts])


@app.command()
def inspect(
    adapters: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER[:STRENGTH]...", help=_ADAPTER, show_default=False),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Tell it as one JSON document.")] = False,
) -> None:
    """Show what adapters are: kinds, sizes, and the modules that they touch.

    **Examples**

    - `jaxmix inspect my-lora`
    - `jaxmix inspect my-lora owner/loha --json`
    """
    told = [parse_adapter(text) for text in adapters]
    loaded = _each(told)
    if as_json:
        data = [{"path": one.path, **adapter_data(adapter)} for one, adapter in loaded]
        typer.echo(json.dumps({"adapters": data}, indent=2))
    else:
        Console(highlight=False).print(adapter_table(adapter for _, adapter in loaded))


# ---------------------------------------------------------------- adapters


class _Told(NamedTuple):
    """An adapter on the command line."""

    path: str
    strength: float


def parse_adapter(text: str) -> _Told:
    """``path:strength``, where a number follows the last colon; else a path, of strength 1."""
    path, colon, tail = text.rpartition(":")
    if colon and path and _NUMBER.fullmatch(tail):
        return _Told(path, float(tail))
    return _Told(text, 1.0)


def load_all(told: Sequence[_Told], base: Any = None) -> list[Adapter]:
    """The adapters, each under a name of its own; of a saved mix or a recipe its parts."""
    return [adapter for _, adapter in _each(told, base)]


def _each(told: Sequence[_Told], base: Any = None) -> list[tuple[_Told, Adapter]]:
    """The adapters, each with what told of it."""
    taken: set[str] = set()
    found = []
    for one in told:
        for adapter in load(one.path, strength=one.strength, base=base).parts:
            name, count = adapter.name, 1
            while name in taken:
                count += 1
                name = f"{adapter.name}-{count}"
            taken.add(name)
            found.append((one, adapter.renamed(name)))
    return found


def _check_apart(out: Path, told: Sequence[_Told]) -> None:
    """Whether the output would replace an adapter, or lie in it."""
    place = out.expanduser().resolve()
    for one in told:
        folder = Path(one.path).expanduser()
        here = folder.resolve()
        if folder.is_dir() and (here.is_relative_to(place) or place.is_relative_to(here)):
            raise CheckpointError(
                f"the output {out} and the adapter {one.path} lie one in the other. Give a folder "
                "apart from it."
            )


# ---------------------------------------------------------------- what is seen of a merge


@contextmanager
def _progress(*, hidden: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr, for `merge_checkpoint` to call."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=hidden) as bar:
        task = bar.add_task("", visible=False)

        def tell(done: int, size: int, shard: str) -> None:
            bar.update(task, completed=done, total=size, description=shard, visible=True)

        yield tell


@contextmanager
def _terminable() -> Iterator[None]:
    """Lets SIGTERM end the program as an exception does, so that what was begun is removed."""

    def end(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _tell_merged(merged: Merged, adapters: Sequence[str]) -> None:
    """What was written, in a few lines."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{escape(str(merged.out))}[/]: {escape(', then '.join(adapters))}")
    console.print(
        f"{_count(len(merged.changed), 'tensor')} changed, {merged.copied:,} copied as they are, "
        f"{_count(merged.size, 'byte')} in {_count(len(merged.shards), 'file')}"
    )
    if merged.untied:
        console.print(
            f"untied: {merged.untied} is a tensor of its own now, made from the base's embedding, "
            "and config.json says tie_word_embeddings = false"
        )
    for line in merged.left_out:
        console.print(f"[dim]left out {escape(line)}[/]")
