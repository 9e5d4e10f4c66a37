"""Downloads adapters from the Hugging Face hub: chooses the files of a repository to fetch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxmix.converters.adapters.common.extra_weights import (
    extra_weights,
    file_names,
    is_whole_model,
)
from jaxmix.converters.adapters.format import Format, is_folder_file
from jaxmix.converters.adapters.single_file import choose_file, is_copy_of
from jaxmix.converters.files.hub import HubRepository
from jaxmix.converters.files.hub_connection import hub_request
from jaxmix.converters.files.hub_errors import is_absence, is_unreachable
from jaxmix.converters.files.torch_files import has_torch, is_torch_file
from jaxmix.errors import CheckpointError, option

__all__ = ["Downloaded", "download"]


@dataclass(frozen=True)
class Downloaded:
    """A downloaded adapter in the local cache.

    Args:
        path: The adapter's folder, or its single file.
        format: Its format; None of a single file whose format is still to be recognized.
        extra_weights: The names of further files of weights in its folder of the repository.
    """

    path: Path
    format: Format | None
    extra_weights: tuple[str, ...] = ()


def download(
    hub_id: str,
    subfolder: str | None,
    revision: str | None,
    formats: Sequence[Format],
    *,
    name: str | None = None,
    ignore: Sequence[str] = (),
) -> Downloaded:
    """Downloads an adapter of the first format whose files exist, or a single file.

    Args:
        hub_id: ``owner/name``.
        subfolder: The adapter's folder within the repository.
        revision: The branch, tag or commit.
        formats: The formats to look for, in order; each has ``files``.
        name: The single file to download; None to look for the formats, then for a single file.
        ignore: Names and globs of files of weights to leave out.

    Returns:
        The adapter in the local cache.

    Raises:
        CheckpointError: If it can't be downloaded; the message says why, and what to do.
    """
    repository = HubRepository(hub_id, subfolder, revision)
    with hub_request(hub_id):
        return _download(repository, formats, name, ignore)


def _download(
    repository: HubRepository, formats: Sequence[Format], name: str | None, ignore: Sequence[str]
) -> Downloaded:
    """Downloads an adapter from its folder in a repository."""
    if name is not None:
        return Downloaded(_fetch_single(repository, name), None)
    try:
        first, format = _fetch_first(repository, formats)
    except CheckpointError as error:
        if formats and not is_absence(error):
            raise
        names = repository.names(ask=not is_unreachable(error))
        single = choose_file(names, repository.text, lambda name: not is_folder_file(formats, name))
        if single is None:
            raise
        extra = extra_weights(names, is_copy_of(single), ignore)
        return Downloaded(_fetch_single(repository, single), None, extra)
    paths = [first, *(_fetch_any(repository, file, format) for file in format.files[1:])]
    optional = (repository.fetch_if_present(file) for file in format.optional_files)
    paths += [path for path in optional if path]
    if any(path.parent != first.parent for path in paths):
        raise CheckpointError(
            f"{repository.text} changed while its files were downloaded. Try again, or pass a "
            f"commit: {option('revision', '…')}."
        )
    extra = _fetch_extra_weights(repository, first.parent, format, ignore)
    return Downloaded(first.parent, format, extra)


def _fetch_first(repository: HubRepository, formats: Sequence[Format]) -> tuple[Path, Format]:
    """Fetches the first file of the first format that the repository has."""
    first: CheckpointError | None = None
    absent: set[str] = set()
    for format in formats:
        if format.files[0] in absent:
            continue
        try:
            path = repository.fetch(format.files[0], format.missing_hint)
        except CheckpointError as error:
            if not is_absence(error):
                raise
            absent.add(format.files[0])
            # The error is about the first format, which is the most common one.
            first = first or error
            continue
        rivals = [other for other in formats if other.files[0] == format.files[0]]
        if len(rivals) == 1 or format.recognizes(path.parent):
            return path, format
    raise first or CheckpointError(
        f"{repository.text} has no file of weights that may be an adapter. Say which one to read: "
        f"{option('filename', '…')}."
    )


def _fetch_single(repository: HubRepository, name: str) -> Path:
    """Fetches one file, the shards that it lists if it is an index, and the config next to it."""
    path = repository.fetch(name, lambda file: ". Pass the name of a file that it has.")
    repository.fetch_shards(path)
    repository.fetch_if_present("adapter_config.json")
    return path


def _fetch_extra_weights(
    repository: HubRepository, folder: Path, format: Format, ignore: Sequence[str]
) -> tuple[str, ...]:
    """Returns the names of further files of weights; fetches those that the reader takes."""
    if format.is_own_file is None:
        return ()
    extra = extra_weights(repository.names() or file_names(folder), format.is_own_file, ignore)
    for file in extra if format.takes_extra_weights else ():
        if file.endswith(".safetensors") and not is_whole_model(file):
            repository.fetch(file)
    return extra


def _fetch_any(repository: HubRepository, file: str, format: Format) -> Path:
    """Fetches a file of a format, or its first alternative, with all shards."""
    try:
        return repository.fetch(file, format.missing_hint)
    except CheckpointError as error:
        if not is_absence(error):
            raise
        for other in format.alternatives.get(file, ()):
            if is_torch_file(Path(other)) and not has_torch():
                continue
            path = repository.fetch_if_present(other)
            if path and repository.fetch_shards(path, format.is_own_file):
                return path
        raise
