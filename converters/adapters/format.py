"""What a file format is to `jaxmix.load`: a name, how it is recognised, and who reads it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxmix.adapter import Adapter
from jaxmix.converters.files.mistaken import no_adapter
from jaxmix.converters.files.torch_files import is_torch_file, torch_tensors
from jaxmix.errors import CheckpointError, UnsupportedError
from jaxmix.mixing import Mix

__all__ = ["Format", "is_folder_file", "named", "recognised"]


@dataclass(frozen=True)
class Format:
    """A format of adapters: a line in the table of `jaxmix.converters.adapters.loading`.

    Args:
        name: what ``format=`` calls it.
        what: what a folder or file of it is, for messages: ``"a folder with …"``.
        recognises: whether a folder, or a file, that exists is of this format. It looks at names,
            keys and metadata; that something is wrong with it is for ``read`` to say.
        read: ``read(path, name, strength, **options)``, from the folder or file to the adapter.
        options: what else ``read`` takes by keyword.
        files: what to fetch of a repository on the hub; the first one is there in each of this
            format. Without any, the format is not looked for on the hub.
        extras: what to fetch too where a repository has it.
        absent: what to say of one of ``files`` that a repository does not have.
        instead: what to fetch where a repository lacks one of ``files``: names to try in order.
        is_read: whether the reader reads the file of a name, or a copy of it; other files of
            weights in the folder are an error, or for the reader. None if it takes one file alone,
            whose neighbours are not its own.
        is_alone: whether an adapter of it is one file, which is then looked for in a folder or a
            repository.
        takes_beside: whether the reader takes those other files, by name, as ``beside=``.
        named_within: whether its files say names and sources themselves: ``name`` is then "" if
            none was given, and a mix may come of it.
    """

    name: str
    what: str
    recognises: Callable[[Path], bool]
    read: Callable[..., Adapter | Mix]
    options: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    absent: Callable[[str], str] = lambda file: "."
    instead: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    is_read: Callable[[str], bool] | None = None
    is_alone: bool = False
    takes_beside: bool = False
    named_within: bool = False


def is_folder_file(formats: Sequence[Format], name: str) -> bool:
    """Whether a file is one of a folder of some format, and no adapter without its config.

    Args:
        formats: the table.
        name: the file's name.

    Returns:
        Whether it is.
    """
    return any(one.is_read is not None and one.is_read(name) for one in formats)


def named(formats: Sequence[Format], name: str) -> Format:
    """The format of a name.

    Args:
        formats: the table.
        name: what the user said.

    Returns:
        The format.

    Raises:
        UnsupportedError: if there is none.
    """
    found = next((one for one in formats if one.name == name), None)
    if found is None:
        known = ", ".join(repr(one.name) for one in formats)
        raise UnsupportedError(f"format {name!r} is not known, expected one of {known}.")
    return found


def recognised(formats: Sequence[Format], path: Path, told: str) -> Format:
    """The format of a folder or a file: the first that recognises it.

    Args:
        formats: the table; a folder that nobody recognises goes to the last one, which says what
            it misses.
        path: the folder or file.
        told: what the user called it.

    Returns:
        The format.

    Raises:
        CheckpointError: if it is a file of none of them.
    """
    found = next((one for one in formats if one.recognises(path)), None)
    if found is not None:
        return found
    if path.exists() and (mistaken := no_adapter(path)):
        raise CheckpointError(f"{told} {mistaken}")
    if not path.is_file():
        return formats[-1]
    if is_torch_file(path):
        torch_tensors(path)  # Which says what is wrong with it, if anything is.
    raise CheckpointError(
        f"{told} is a file, expected {' or '.join(one.what for one in formats[::-1])}. Give the "
        "folder that holds it."
    )
