"""A file format of adapters, as `jaxmix.load` needs it: its name, its files and its reader."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.common.extra_weights import unread_error
from jaxmix.converters.files.torch_files import is_torch_file, torch_tensors
from jaxmix.converters.files.wrong_inputs import describe_non_adapter
from jaxmix.errors import CheckpointError, UnsupportedError, option
from jaxmix.mixing import Mix

__all__ = [
    "Finders",
    "Format",
    "LocatedAdapter",
    "format_named",
    "is_folder_file",
    "recognized_format",
]


@dataclass(frozen=True)
class Format:
    """A format of adapters: a row of the table in `jaxmix.converters.adapters.loading`.

    Args:
        name: The value of ``format=`` that selects it.
        description: A folder or file of this format, for messages: ``"a folder with …"``.
        recognizes: Whether an existing folder or file is of this format, from names, keys and
            metadata. Errors in the file are reported by ``read``.
        read: ``read(path, name, strength, **options)`` returns the adapter in a folder or file.
        options: The keyword arguments of ``read``.
        files: The files to fetch from a repository on the hub; each adapter of the format has the
            first one. If empty, the format is not looked for on the hub.
        optional_files: Further files, to fetch where a repository has them.
        missing_hint: Ends the message about one of ``files`` that a repository lacks.
        alternatives: For one of ``files``, the names to try in order where a repository lacks it.
        is_own_file: Whether the reader reads a file of that name, or the file is a copy of such a
            file. Other files of weights in the folder are extra weights. None if an adapter is one
            file, whose neighbors are unrelated.
        is_single_file: Whether an adapter is a single file, to be chosen among those of a folder or
            repository.
        takes_extra_weights: Whether the reader takes the names of extra weights, as ``beside=``.
        names_parts: Whether the file itself states names and sources. ``name`` is then "" if the
            user gave none, and ``read`` may return a mix.
    """

    name: str
    description: str
    recognizes: Callable[[Path], bool]
    read: Callable[..., Adapter | Mix]
    options: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    optional_files: tuple[str, ...] = ()
    missing_hint: Callable[[str], str] = lambda file: "."
    alternatives: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    is_own_file: Callable[[str], bool] | None = None
    is_single_file: bool = False
    takes_extra_weights: bool = False
    names_parts: bool = False


@dataclass(frozen=True)
class LocatedAdapter:
    """An adapter that was found and is not read yet.

    Args:
        path: Its folder or file.
        format: Its format.
        default_name: Its name if the user gives none.
        source: Where it came from, without private parts of a path.
        extra_weights: The names of further files of weights in its folder that the format does not
            read and the user does not ignore.
    """

    path: Path
    format: Format
    default_name: str
    source: str
    extra_weights: tuple[str, ...] = ()

    def read(self, name: str | None, strength: Any, /, **options: Any) -> Adapter | Mix:
        """Reads the adapter.

        Raises:
            UnsupportedError: If the format's reader does not take one of the options.
            CheckpointError: If there are extra weights that the reader does not read.
        """
        if unknown := sorted(set(options) - set(self.format.options)):
            takes = ", ".join(self.format.options) or "no options"
            raise UnsupportedError(
                f"{self.source} has the format {self.format.name!r}, whose reader takes {takes}, "
                f"not {', '.join(option(name, ...) for name in unknown)}. Leave it out, or read "
                f"another format: {option('format', '…')}."
            )
        if self.format.takes_extra_weights:
            options["beside"] = self.extra_weights
        elif self.extra_weights:
            raise unread_error(self.source, dict.fromkeys(self.extra_weights, ""))
        chosen_name = name or ("" if self.format.names_parts else self.default_name)
        adapter = self.format.read(self.path, chosen_name, strength, **options)
        # The parts of a mix state their own sources.
        return adapter if self.format.names_parts else replace(adapter, source=self.source)


class Finders(NamedTuple):
    """Finds adapters of any format, for a format whose files refer to others.

    Args:
        find: ``find(path_or_hub_id, **options)``, see `jaxmix.converters.adapters.finding`.
        find_on_hub: ``find_on_hub(hub_id, **options)``.
    """

    find: Callable[..., LocatedAdapter]
    find_on_hub: Callable[..., LocatedAdapter]


def is_folder_file(formats: Sequence[Format], name: str) -> bool:
    """Returns whether a file belongs to a folder of some format, and is no adapter by itself.

    Args:
        formats: The table of formats.
        name: The file's name.

    Returns:
        True if so.
    """
    return any(row.is_own_file is not None and row.is_own_file(name) for row in formats)


def format_named(formats: Sequence[Format], name: str) -> Format:
    """Returns the format of a given name.

    Args:
        formats: The table of formats.
        name: The user's ``format=``.

    Returns:
        The format.

    Raises:
        UnsupportedError: If there is no such format.
    """
    format = next((row for row in formats if row.name == name), None)
    if format is None:
        known = ", ".join(repr(row.name) for row in formats)
        raise UnsupportedError(f"format {name!r} is unknown, expected one of {known}.")
    return format


def recognized_format(formats: Sequence[Format], path: Path, text: str) -> Format:
    """Returns the first format that recognizes a folder or file.

    Args:
        formats: The table of formats. A folder that none recognizes goes to the last one, whose
            reader reports what is missing.
        path: The folder or file.
        text: The path as the user wrote it, for messages.

    Returns:
        The format.

    Raises:
        CheckpointError: If it is a file that no format recognizes.
    """
    format = next((row for row in formats if row.recognizes(path)), None)
    if format is not None:
        return format
    if path.exists() and (mistaken := describe_non_adapter(path)):
        raise CheckpointError(f"{text} {mistaken}")
    if not path.is_file():
        return formats[-1]
    if is_torch_file(path):
        torch_tensors(path)  # raises an error if the file itself is damaged
    raise CheckpointError(
        f"{text} is a file, expected {' or '.join(row.description for row in formats[::-1])}. "
        "Pass the folder that contains it."
    )
