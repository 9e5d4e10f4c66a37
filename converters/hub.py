"""Files from the Hugging Face hub, as folders in the local cache: of adapters and of bases."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxmix.converters.alone import chosen_file, is_copy_of
from jaxmix.converters.beside import is_whole_model, names_in, weights_beside
from jaxmix.converters.format import Format, is_folder_file
from jaxmix.converters.hub_errors import is_absence, is_unreachable, translated
from jaxmix.converters.reaching import asking
from jaxmix.converters.torch_files import has_torch, is_torch_file
from jaxmix.errors import CheckpointError, option
from jaxmix.files import local_path

__all__ = ["Downloaded", "base_folder", "download", "is_hub_id"]

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
# What a base checkpoint is merged and written from: its weights, configs and tokenizer.
_BASE_FILES = (
    "*.safetensors",
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.py",
    "*.md",
    "*.tiktoken",
)
# Its weights a second time, under other libraries' names.
_BASE_COPIES = ("original/*", "consolidated*.safetensors", "onnx/*", "openvino/*", "*.fp16.*")
# How long to wait for a list of files that may be done without.
_TIMEOUT = 10.0


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
    place = _Place(hub_id, subfolder, revision)
    with asking(hub_id):
        return _downloaded(place, formats, name, ignore)


def _downloaded(
    place: "_Place", formats: Sequence[Format], name: str | None, ignore: Sequence[str]
) -> Downloaded:
    """The adapter at a place on the hub, in the local cache."""
    if name is not None:
        return Downloaded(_one_file(place, name), None)
    try:
        mark, one = _first(place, formats)
    except CheckpointError as error:
        if formats and not is_absence(error):
            raise
        names = place.names(ask=not is_unreachable(error))
        lone = chosen_file(names, place.text, lambda name: not is_folder_file(formats, name))
        if lone is None:
            raise
        beside = weights_beside(names, is_copy_of(lone), ignore)
        return Downloaded(_one_file(place, lone), None, beside)
    found = [mark, *(place.fetch_any(file, one) for file in one.files[1:])]
    found += [path for file in one.extras if (path := place.fetch_if_there(file))]
    if any(path.parent != mark.parent for path in found):
        raise CheckpointError(
            f"{place.text} changed between its two files. Try again, or give a commit: "
            f"{option('revision', '…')}."
        )
    return Downloaded(mark.parent, one, _beside(place, mark.parent, one, ignore))


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a hub id, ``owner/name``.

    Args:
        text: The text.

    Returns:
        Whether it has.
    """
    return _HUB_ID.fullmatch(text) is not None


def base_folder(base: str | os.PathLike[str]) -> Path:
    """Finds a base checkpoint: a path is taken as it is, and a hub id is downloaded.

    Of a repository the safetensors, the configs and the tokenizer are fetched.

    Args:
        base: A path; or, where nothing lies there, ``owner/name`` or ``owner/name@revision``.

    Returns:
        The path, or the folder in the local cache.

    Raises:
        CheckpointError: If it can't be had from the hub; the message says why, and what to do.
    """
    path = local_path(base, "base")
    hub_id, _, revision = Path(base).as_posix().partition("@")
    if not is_hub_id(hub_id) or path.exists():
        return path
    import huggingface_hub

    place = _Place(hub_id, None, revision or None)
    with asking(hub_id), translated(place, "the checkpoint", lambda file: ""):
        folder = huggingface_hub.snapshot_download(
            hub_id,
            revision=place.revision,
            allow_patterns=list(_BASE_FILES),
            ignore_patterns=list(_BASE_COPIES),
        )
    return Path(folder)


def _first(place: "_Place", formats: Sequence[Format]) -> tuple[Path, Format]:
    """The first file of the first format that has it there."""
    first: CheckpointError | None = None
    absent: set[str] = set()
    for one in formats:
        if one.files[0] in absent:
            continue
        try:
            mark = place.fetch(one.files[0], one.absent)
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
        f"{place.text} has no file of weights that may be an adapter. Say which one to read: "
        f"{option('filename', '…')}."
    )


def _one_file(place: "_Place", name: str) -> Path:
    """One file, with what it names if it is an index, and the config beside it."""
    path = place.fetch(name, lambda file: ". Give the name of a file that it has.")
    place.fetch_shards(path)
    place.fetch_if_there("adapter_config.json")
    return path


def _beside(place: "_Place", folder: Path, one: Format, ignore: Sequence[str]) -> tuple[str, ...]:
    """Other files of weights there; those that the format's reader takes are fetched."""
    if one.is_read is None:
        return ()
    beside = weights_beside(place.names() or names_in(folder), one.is_read, ignore)
    for file in beside if one.takes_beside else ():
        if file.endswith(".safetensors") and not is_whole_model(file):
            place.fetch(file)
    return beside


@dataclass(frozen=True)
class _Place:
    """Where on the hub."""

    hub_id: str
    subfolder: str | None
    revision: str | None

    @property
    def text(self) -> str:
        """It, for messages."""
        inner = f"/{self.subfolder}" if self.subfolder else ""
        at = f" at revision {self.revision!r}" if self.revision else ""
        return f"{self.hub_id}{inner} on the hub{at}"

    def fetch(self, file: str, absent: Callable[[str], str] = lambda file: ".") -> Path:
        """One file's path in the local cache."""
        import huggingface_hub

        with translated(self, file, absent):
            path = huggingface_hub.hf_hub_download(
                self.hub_id, file, subfolder=self.subfolder, revision=self.revision
            )
        return Path(path)

    def fetch_if_there(self, file: str) -> Path | None:
        """The same; None if the repository has no such file."""
        try:
            return self.fetch(file)
        except CheckpointError as error:
            if not is_absence(error):
                raise
        return None

    def fetch_any(self, file: str, one: Format) -> Path:
        """A file of a format, or what the format takes instead of it, shards and all."""
        try:
            return self.fetch(file, one.absent)
        except CheckpointError as error:
            if not is_absence(error):
                raise
            for other in one.instead.get(file, ()):
                if is_torch_file(Path(other)) and not has_torch():
                    continue
                path = self.fetch_if_there(other)
                if path and self.fetch_shards(path, one.is_read):
                    return path
            raise

    def fetch_shards(self, path: Path, is_read: Callable[[str], bool] | None = None) -> bool:
        """Fetches the files that an index names; False if it is the index of something else."""
        if path.name.endswith(".index.json"):
            from jaxmix.models.checkpoint import indexed_names  # Not at the top: it brings Flax.

            names = indexed_names(path)
            if is_read and not all(map(is_read, names)):
                return False
            for file in names:
                self.fetch(file)
        return True

    def names(self, *, ask: bool = True) -> tuple[str, ...]:
        """The names of the files there; of those in the local cache without an answer."""
        files = (self._listed() if ask else None) or list(self._cached())
        inner = f"{self.subfolder}/" if self.subfolder else ""
        here = [file.removeprefix(inner) for file in files if file.startswith(inner)]
        return tuple(sorted(file for file in here if "/" not in file))

    def _listed(self) -> list[str] | None:
        """The paths of the files in the repository; None if the hub does not say."""
        import huggingface_hub

        try:
            api = huggingface_hub.HfApi()
            told: Any = api.model_info(self.hub_id, revision=self.revision, timeout=_TIMEOUT)
        # The client's kinds of errors differ from version to version. The list only serves to find
        # weights that are not read; without it, those in the local cache are looked at.
        except Exception:
            return None
        return [file.rfilename for file in told.siblings or ()]

    def _cached(self) -> Iterator[str]:
        """The paths of the files in the local cache."""
        import huggingface_hub

        try:
            folder = Path(
                huggingface_hub.snapshot_download(
                    self.hub_id, revision=self.revision, local_files_only=True
                )
            )
        except (OSError, ValueError):  # not in the cache
            return
        yield from (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
