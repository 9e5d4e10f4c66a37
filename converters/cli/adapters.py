"""Reads the adapters of a command line, ``path:strength``, and gives them distinct names."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from jaxmix.converters.cli.strengths import NUMBER, check_strength_spelling
from jaxmix.converters.files.wrong_inputs import is_adapter, is_model
from jaxmix.errors import CheckpointError
from jaxmix.untrusted.files import local_path, output_path

if TYPE_CHECKING:  # help and shell completion do without JAX
    from jaxmix.adapter import Adapter
    from jaxmix.mixing import Mix

__all__ = [
    "AdapterArguments",
    "AdapterOptions",
    "Filenames",
    "Ignored",
    "ParsedAdapter",
    "Parts",
    "PeftOrder",
    "Revision",
    "Subfolder",
    "check_apart",
    "check_roles",
    "load_arguments",
    "load_each",
    "load_mix",
    "parse_adapter",
    "parse_adapters",
    "strengths_data",
    "strengths_text",
]

_HELP = (
    "A PEFT folder, a file of another format, a saved mix, a recipe (.json) or a hub id, with an "
    "optional strength after a colon: `lora`, `owner/lora:0.6`, `lora:-1`. A path that itself ends "
    "in a colon and a number needs a strength: `run:2:1`."
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
        help=f"{_HELP} Repeat it for several adapters, in order of application.",
        show_default=False,
    ),
]
Ignored = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore",
        metavar="FILE",
        help="A file of weights next to an adapter to ignore, by its name or a glob (`*.bin`); may "
        "be repeated. Otherwise a file that can't be read is an error.",
        show_default=False,
    ),
]
Filenames = Annotated[
    list[str] | None,
    typer.Option(
        "--filename",
        metavar="FILE",
        help="The adapter's file in a folder or repository with several: given once for all "
        'adapters, or once for each in order ("" for none).',
        show_default=False,
    ),
]
Parts = Annotated[
    list[str] | None,
    typer.Option(
        "--part",
        metavar="PART",
        help="The part to read of a file for several models, by the prefix of its names "
        "(`lora_unet`, `text_encoder`); or the component of a pipeline for which an adapter was "
        "trained, where its names fit several (`transformer_2`). Given once for all adapters, or "
        'once for each in order ("" for none).',
        show_default=False,
    ),
]
Subfolder = Annotated[
    str | None,
    typer.Option(
        "--subfolder",
        metavar="FOLDER",
        help="The adapter's subfolder in its folder or repository; applies to all adapters.",
        show_default=False,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision",
        metavar="REVISION",
        help="The branch, tag or commit on the hub; applies to all adapters.",
        show_default=False,
    ),
]
PeftOrder = Annotated[
    bool,
    typer.Option(
        "--peft-order",
        help="Apply adapters in the order of PEFT's forward, which reverses consecutive OFTs.",
    ),
]


class ParsedAdapter(NamedTuple):
    """An adapter of the command line: its path or hub id, and its strength."""

    path: str
    strength: float


def parse_adapter(text: str) -> ParsedAdapter:
    """Parses ``path:strength``; without a number after the last colon the strength is 1."""
    path, colon, tail = text.rpartition(":")
    if colon and path and NUMBER.fullmatch(tail):
        return ParsedAdapter(path, float(tail))
    return ParsedAdapter(text, 1.0)


def parse_adapters(texts: Sequence[str]) -> list[ParsedAdapter]:
    """Parses the adapters of a command line.

    Args:
        texts: The arguments, as the user wrote them.

    Returns:
        The path and strength of each adapter.

    Raises:
        typer.BadParameter: If a strength is misspelled, or an argument is ambiguous.
    """
    for text in texts:
        check_strength_spelling(text)
    return [parse_adapter(text) for text in texts]


def load_arguments(
    texts: Sequence[str],
    base: Any = None,
    *,
    ignore: Sequence[str] | None = None,
    filename: Sequence[str] | None = None,
    part: Sequence[str] | None = None,
    weighted: bool = False,
    **options: Any,
) -> "list[tuple[ParsedAdapter, Adapter | Mix]]":
    """Loads the adapters of a command line.

    Args:
        texts: The arguments, as the user wrote them.
        base: The base, for the readers that need it.
        ignore: The files next to the adapters to ignore.
        filename: The adapter's file: one for all, or one for each.
        part: The part of each file, or the component for which it is read, in the same way.
        weighted: Whether the numbers after the colons are weights; strengths are then 1.
        **options: Further arguments of `jaxmix.load`.

    Returns:
        The path and number of each argument, and its adapter or mix.

    Raises:
        typer.BadParameter: If the number of file names or parts is neither 1 nor that of the
            adapters.
    """
    from jaxmix.converters.adapters.loading import load

    names = _one_each("--filename", filename, len(texts))
    components = _one_each("--part", part, len(texts))
    loaded = []
    for parsed, name, component in zip(parse_adapters(texts), names, components, strict=True):
        strength = 1.0 if weighted else parsed.strength
        given = {"base": base, "filename": name or None, "ignore": list(ignore or ()), **options}
        if component:
            given["part"] = component
        loaded.append((parsed, load(parsed.path, strength=strength, **given)))
    return loaded


def _one_each(flag: str, values: Sequence[str] | None, count: int) -> list[str]:
    """Returns a value for each adapter of an option that is given once, or once for each."""
    values = values or [""]
    if len(values) not in (1, count):
        raise typer.BadParameter(
            f"{flag} is given {len(values)} times for {count} adapters, expected once, or once for "
            "each adapter in order."
        )
    return list(values) if len(values) > 1 else [*values] * count


def load_each(
    texts: Sequence[str], base: Any = None, **options: Any
) -> "list[tuple[ParsedAdapter, list[Adapter]]]":
    """Loads the adapters of a command line, a mix or recipe as a list of its parts.

    Args:
        texts: The arguments, as the user wrote them.
        base: The base, for the readers that need it.
        **options: Further arguments of `load_arguments`.

    Returns:
        The path and number of each argument, and its adapters, under distinct names.
    """
    taken: set[str] = set()
    arguments = []
    for parsed, loaded in load_arguments(texts, base, **options):
        parts = []
        for adapter in loaded.parts:
            name, count = adapter.name, 1
            while name in taken:
                count += 1
                name = f"{adapter.name}-{count}"
            taken.add(name)
            parts.append(adapter.renamed(name))
        arguments.append((parsed, parts))
    return arguments


def load_mix(
    texts: Sequence[str], base: Any = None, *, peft_order: bool = False, **options: Any
) -> "Mix":
    """Loads the adapters of a command line as one mix, in order."""
    from jaxmix.converters.adapters.peft import peft_stack
    from jaxmix.mixing import mix

    parts = [part for _, parts in load_each(texts, base, **options) for part in parts]
    return peft_stack(parts) if peft_order else mix(*parts)


def check_apart(out: Path, texts: Sequence[str]) -> None:
    """Refuses an output that overlaps an adapter's folder."""
    output = output_path(out).resolve()
    for parsed in map(parse_adapter, texts):
        folder = local_path(parsed.path, "adapter")
        source = folder.resolve()
        if folder.is_dir() and (source.is_relative_to(output) or output.is_relative_to(source)):
            raise CheckpointError(
                f"the output {out} and the adapter {parsed.path} overlap: one contains the other. "
                "Choose a separate folder for the output."
            )


def check_roles(base: Path, texts: Sequence[str]) -> None:
    """Refuses a base and an adapter that were given in each other's place."""
    models = [parsed.path for parsed in map(parse_adapter, texts) if is_model(Path(parsed.path))]
    if is_adapter(base) and models:
        raise typer.BadParameter(
            f"{base} is an adapter, and {models[0]} is a model. The model comes first: "
            f"jaxmix merge {models[0]} -a {base} …"
        )


def strengths_text(mixed: "Adapter | Mix") -> str:
    """Formats names and strengths as text: ``lora × 0.6, then oft × 1``."""
    return ", then ".join(f"{part.name} × {float(part.strength):g}" for part in mixed.parts)


def strengths_data(mixed: "Adapter | Mix") -> list[dict[str, Any]]:
    """Returns names and strengths as data for JSON."""
    return [{"name": part.name, "strength": float(part.strength)} for part in mixed.parts]
