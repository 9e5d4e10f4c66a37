"""Adapters on the command line: ``path:strength``, each under a name of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.loading import load
from jaxmix.converters.adapters.peft import peft_stack
from jaxmix.converters.cli.strengths import NUMBER, check_word
from jaxmix.converters.files.mistaken import is_adapter, is_model
from jaxmix.errors import CheckpointError
from jaxmix.mixing import Mix, mix
from jaxmix.untrusted.files import local_path, output_path

__all__ = [
    "AdapterArguments",
    "AdapterOptions",
    "Filenames",
    "Ignored",
    "PeftOrder",
    "Revision",
    "Subfolder",
    "Told",
    "check_apart",
    "check_roles",
    "load_each",
    "load_mix",
    "load_told",
    "parse_adapter",
    "parse_adapters",
    "strengths_data",
    "strengths_text",
]

_HELP = (
    "A PEFT folder, a file of another format, a saved mix, a recipe (.json) or a hub id, with a "
    "strength if a number follows the last colon: `lora`, `owner/lora:0.6`, `lora:-1`. A folder "
    "whose own name ends so needs another: `run:2:1`."
)
_METAVAR = "ADAPTER[:STRENGTH]"

AdapterArguments = Annotated[
    list[str], typer.Argument(metavar=_METAVAR, help=_HELP, show_default=False)
]
AdapterOptions = Annotated[
    list[str],
    typer.Option(
        "--adapter",
        "-a",
        metavar=_METAVAR,
        help=f"{_HELP} Once for each adapter, the one to apply first first.",
        show_default=False,
    ),
]
Ignored = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore",
        metavar="FILE",
        help="A file of weights beside an adapter to leave out, by its name or a glob (`*.bin`); "
        "may be given several times. Without it a file that can't be read is an error.",
        show_default=False,
    ),
]
Filenames = Annotated[
    list[str] | None,
    typer.Option(
        "--filename",
        metavar="FILE",
        help="Which file of a folder or repository holds the adapter, where there are several: "
        'once for all adapters, or once for each in their order ("" for none).',
        show_default=False,
    ),
]
Subfolder = Annotated[
    str | None,
    typer.Option(
        "--subfolder",
        metavar="FOLDER",
        help="Where in its folder or repository an adapter lies; for all that are named.",
        show_default=False,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision",
        metavar="REVISION",
        help="The branch, tag or commit of an adapter on the hub; for all that are named.",
        show_default=False,
    ),
]
PeftOrder = Annotated[
    bool,
    typer.Option("--peft-order", help="The order of PEFT's forward: it turns runs of OFT around."),
]


class Told(NamedTuple):
    """An adapter on the command line."""

    path: str
    strength: float


def parse_adapter(text: str) -> Told:
    """``path:strength``, where a number follows the last colon; else a path, of strength 1."""
    path, colon, tail = text.rpartition(":")
    if colon and path and NUMBER.fullmatch(tail):
        return Told(path, float(tail))
    return Told(text, 1.0)


def parse_adapters(texts: Sequence[str]) -> list[Told]:
    """The adapters of a command line.

    Args:
        texts: The words of the command line.

    Returns:
        Each word's path and strength.

    Raises:
        typer.BadParameter: If a strength is misspelled, or a word may mean two things.
    """
    for text in texts:
        check_word(text)
    return [parse_adapter(text) for text in texts]


def load_told(
    texts: Sequence[str],
    base: Any = None,
    *,
    ignore: Sequence[str] | None = None,
    filename: Sequence[str] | None = None,
    weighted: bool = False,
    **options: Any,
) -> list[tuple[Told, Adapter | Mix]]:
    """What the command line names, each read once.

    Args:
        texts: The words of the command line.
        base: The base, for the readers that ask for it.
        ignore: The files beside the adapters to leave out.
        filename: The file that holds the adapter: one for all, or one for each.
        weighted: Whether the numbers after the colons are weights, so that strengths are 1.
        **options: What else `jaxmix.load` is given.

    Returns:
        Each word's path and number, and its adapter or mix.

    Raises:
        typer.BadParameter: If there are several file names, and not one for each adapter.
    """
    filename = filename or [""]
    if len(filename) not in (1, len(texts)):
        raise typer.BadParameter(
            f"--filename is given {len(filename)} times for {len(texts)} adapters, expected once, "
            "or once for each in their order."
        )
    names = filename if len(filename) > 1 else [*filename] * len(texts)
    found = []
    for told, name in zip(parse_adapters(texts), names, strict=True):
        strength = 1.0 if weighted else told.strength
        given = {"base": base, "filename": name or None, "ignore": list(ignore or ()), **options}
        found.append((told, load(told.path, strength=strength, **given)))
    return found


def load_each(
    texts: Sequence[str], base: Any = None, **options: Any
) -> list[tuple[Told, list[Adapter]]]:
    """What the command line names, each with its adapters: of a mix or a recipe its parts.

    Args:
        texts: the words of the command line.
        base: the base, for the readers that ask for it.
        **options: what else `load_told` takes.

    Returns:
        Adapters under names that are all different.
    """
    taken: set[str] = set()
    found = []
    for told, loaded in load_told(texts, base, **options):
        parts = []
        for adapter in loaded.parts:
            name, count = adapter.name, 1
            while name in taken:
                count += 1
                name = f"{adapter.name}-{count}"
            taken.add(name)
            parts.append(adapter.renamed(name))
        found.append((told, parts))
    return found


def load_mix(
    texts: Sequence[str], base: Any = None, *, peft_order: bool = False, **options: Any
) -> Mix:
    """What the command line names as one mix, in order."""
    parts = [part for _, parts in load_each(texts, base, **options) for part in parts]
    return peft_stack(parts) if peft_order else mix(*parts)


def check_apart(out: Path, texts: Sequence[str]) -> None:
    """Whether the output would replace an adapter, or lie in it."""
    place = output_path(out).resolve()
    for told in map(parse_adapter, texts):
        folder = local_path(told.path, "adapter")
        here = folder.resolve()
        if folder.is_dir() and (here.is_relative_to(place) or place.is_relative_to(here)):
            raise CheckpointError(
                f"the output {out} and the adapter {told.path} lie one in the other. Give a folder "
                "apart from it."
            )


def check_roles(base: Path, texts: Sequence[str]) -> None:
    """Whether the base and an adapter were given in each other's place."""
    models = [told.path for told in map(parse_adapter, texts) if is_model(Path(told.path))]
    if is_adapter(base) and models:
        raise typer.BadParameter(
            f"{base} is an adapter, and {models[0]} is a model. The model comes first: "
            f"jaxmix merge {models[0]} -a {base} …"
        )


def strengths_text(mixed: Adapter | Mix) -> str:
    """Names and strengths for people: ``lora × 0.6, then oft × 1``."""
    return ", then ".join(f"{part.name} × {float(part.strength):g}" for part in mixed.parts)


def strengths_data(mixed: Adapter | Mix) -> list[dict[str, Any]]:
    """Names and strengths for machines."""
    return [{"name": part.name, "strength": float(part.strength)} for part in mixed.parts]
