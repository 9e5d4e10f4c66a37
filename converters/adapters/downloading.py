"""Adapters from the Hugging Face hub: which files of a repository are fetched."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxmix.converters.adapters.alone import chosen_file, is_copy_of
from jaxmix.converters.adapters.beside import is_whole_model, names_in, weights_beside
from jaxmix.converters.adapters.format import Format, is_folder_file
from jaxmix.converters.files.hub import Repository
from jaxmix.converters.files.hub_errors import is_absence, is_unreachable
from jaxmix.converters.files.reaching import asking
from jaxmix.converters.files.torch_files import has_torch, is_torch_file
from jaxmix.errors import CheckpointError, option

__all__ = ["Downloaded", "download"]


@dataclass(frozen=True)
class Downloaded:
    """What lies in the local cache now.

    Args:
        path: The adapter's folder, or its one file.
        format: Its format; None if it is one file, which is still to be recognised.
        beside: The names of other files of weights in its folder of the repository.
    """

    path: Path
    format: Format | None
    beside: tuple[str, ...] = ()


def download(
    hub_id: str,
    subfolder: str | None,
    revision: str | None,
    formats: Sequence[Format],
    *,
    name: str | None = None,
    ignore: Sequence[str] = (),
) -> Downloaded:
    """Fetches an adapter: the first of some formats whose files are there, or one file.

    Args:
        hub_id: ``owner/name``.
        subfolder: Where in the repository it lies.
        revision: The branch, tag or commit.
        formats: What to look for, in this order; each has ``files``.
        name: The one file to fetch; None to look for the formats, and else for an only file.
        ignore: Names and globs of files of weights that are left where they are.

    Returns:
        What is in the local cache.

    Raises:
        CheckpointError: If it can't be had; the message says why, and what to do.
    """
    repository = Repository(hub_id, subfolder, revision)
    with asking(hub_id):
        return _downloaded(repository, formats, name, ignore)


def _downloaded(
    repository: Repository, formats: Sequence[Format], name: str | None, ignore: Sequence[str]
) -> Downloaded:
    """The adapter at a place on the hub, in the local cache."""
    if name is not None:
        return Downloaded(_one_file(repository, name), None)
    try:
        mark, one = _first(repository, formats)
    except CheckpointError as error:
        if formats and not is_absence(error):
            raise
        names = repository.names(ask=not is_unreachable(error))
        lone = chosen_file(names, repository.text, lambda name: not is_folder_file(formats, name))
        if lone is None:
            raise
        beside = weights_beside(names, is_copy_of(lone), ignore)
        return Downloaded(_one_file(repository, lone), None, beside)
    found = [mark, *(_fetch_any(repository, file, one) for file in one.files[1:])]
    found += [path for file in one.extras if (path := repository.fetch_if_there(file))]
    if any(path.parent != mark.parent for path in found):
        raise CheckpointError(
            f"{repository.text} changed between its two files. Try again, or give a commit: "
            f"{option('revision', '…')}."
        )
    return Downloaded(mark.parent, one, _beside(repository, mark.parent, one, ignore))


def _first(repository: Repository, formats: Sequence[Format]) -> tuple[Path, Format]:
    """The first file of the first format that has it there."""
    first: CheckpointError | None = None
    absent: set[str] = set()
    for one in formats:
        if one.files[0] in absent:
            continue
        try:
            mark = repository.fetch(one.files[0], one.absent)
        except CheckpointError as error:
            if not is_absence(error):
                raise
            absent.add(one.files[0])
            # What is missing is reported of the first format, which most people have.
            first = first or error
            continue
        rivals = [other for other in formats if other.files[0] == one.files[0]]
        if len(rivals) == 1 or one.recognises(mark.parent):
            return mark, one
    raise first or CheckpointError(
        f"{repository.text} has no file of weights that may be an adapter. Say which one to read: "
        f"{option('filename', '…')}."
    )


def _one_file(repository: Repository, name: str) -> Path:
    """One file, with what it names if it is an index, and the config beside it."""
    path = repository.fetch(name, lambda file: ". Give the name of a file that it has.")
    repository.fetch_shards(path)
    repository.fetch_if_there("adapter_config.json")
    return path


def _beside(
    repository: Repository, folder: Path, one: Format, ignore: Sequence[str]
) -> tuple[str, ...]:
    """Other files of weights there; those that the format's reader takes are fetched."""
    if one.is_read is None:
        return ()
    beside = weights_beside(repository.names() or names_in(folder), one.is_read, ignore)
    for file in beside if one.takes_beside else ():
        if file.endswith(".safetensors") and not is_whole_model(file):
            repository.fetch(file)
    return beside


def _fetch_any(repository: Repository, file: str, one: Format) -> Path:
    """A file of a format, or what the format takes instead of it, shards and all."""
    try:
        return repository.fetch(file, one.absent)
    except CheckpointError as error:
        if not is_absence(error):
            raise
        for other in one.instead.get(file, ()):
            if is_torch_file(Path(other)) and not has_torch():
                continue
            path = repository.fetch_if_there(other)
            if path and repository.fetch_shards(path, one.is_read):
                return path
        raise
