"""Files from the Hugging Face hub, as folders in the local cache."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxmix.converters.files.hub_errors import is_absence, translated
from jaxmix.converters.files.reaching import asking
from jaxmix.errors import CheckpointError
from jaxmix.untrusted.files import local_path

__all__ = ["Repository", "base_folder", "is_hub_id"]

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

    repository = Repository(hub_id, None, revision or None)
    with asking(hub_id), translated(repository, "the checkpoint", lambda file: ""):
        folder = huggingface_hub.snapshot_download(
            hub_id,
            revision=repository.revision,
            allow_patterns=list(_BASE_FILES),
            ignore_patterns=list(_BASE_COPIES),
        )
    return Path(folder)


@dataclass(frozen=True)
class Repository:
    """A folder of a repository on the hub, whose files are fetched into the local cache.

    Args:
        hub_id: ``owner/name``.
        subfolder: The folder in the repository; None for its top.
        revision: The branch, tag or commit; None for the default branch.
    """

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
