"""Downloads files from the Hugging Face hub into the local cache."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxmix.converters.files.hub_connection import hub_request
from jaxmix.converters.files.hub_errors import is_absence, translated_errors
from jaxmix.converters.files.path_suggestions import refuse_mistyped, suggest_paths
from jaxmix.errors import CheckpointError
from jaxmix.models.checkpoint import indexed_names
from jaxmix.untrusted.files import local_path

__all__ = ["HubRepository", "base_folder", "is_hub_id"]

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
# The suffixes of files with weights and of recipes. Few repositories have such names.
_FILES = (".safetensors", ".json", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
# The files of a base checkpoint that a merge needs: weights, configs and tokenizer.
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
# Duplicates of its weights for other libraries.
_BASE_COPIES = ("original/*", "consolidated*.safetensors", "onnx/*", "openvino/*", "*.fp16.*")
# The timeout, in seconds, of a request for the list of files, which is not essential.
_TIMEOUT = 10.0


def is_hub_id(text: str, revision: str | None = None) -> bool:
    """Whether a string has the form of a hub id, ``owner/name``, and not of a file's path.

    Args:
        text: The string.
        revision: The revision that was given with it. With one it can't be a path, so its name may
            end like a file's.

    Returns:
        True if it has this form.

    Example:
        >>> is_hub_id("owner/llama-3.2"), is_hub_id("loras/style.safetensors")
        (True, False)
    """
    is_file = revision is None and text.endswith(_FILES)
    return _HUB_ID.fullmatch(text) is not None and not is_file


def base_folder(base: str | os.PathLike[str], variant: str | None = None) -> Path:
    """Returns the path of a base checkpoint, after downloading it if it is a hub id.

    Only the safetensors, configs and tokenizer of a repository are downloaded.

    Args:
        base: A path; or, if that does not exist, ``owner/name`` or ``owner/name@revision``.
        variant: The variant of the weights that is read; that of fp16 is not downloaded otherwise.

    Returns:
        The path, or the folder in the local cache.

    Raises:
        CheckpointError: If there is no such path and it is no hub id, or the checkpoint can't be
            downloaded.
    """
    path = local_path(base, "base")
    if path.exists():
        return path
    # A `Path` has no leading "./", which marks a string as a path.
    text = base if isinstance(base, str) else Path(base).as_posix()
    hub_id, _, revision = text.partition("@")
    may_be_id = is_hub_id(hub_id, revision or None)
    if not revision:
        refuse_mistyped(text, f"write {hub_id}@main" if may_be_id else "")
    if not may_be_id:
        raise CheckpointError(
            f"{base} does not exist, expected a Hugging Face folder with safetensors, or the id of "
            f"a repository on the hub, 'owner/name'.{suggest_paths(str(path))}"
        )
    import huggingface_hub

    repository = HubRepository(hub_id, None, revision or None)
    with hub_request(hub_id), translated_errors(repository, "the checkpoint", lambda file: ""):
        folder = huggingface_hub.snapshot_download(
            hub_id,
            revision=repository.revision,
            allow_patterns=list(_BASE_FILES),
            ignore_patterns=[name for name in _BASE_COPIES if name != f"*.{variant}.*"],
        )
    return Path(folder)


@dataclass(frozen=True)
class HubRepository:
    """A folder of a repository on the hub, whose files are downloaded into the local cache.

    Args:
        hub_id: ``owner/name``.
        subfolder: The folder in the repository; None for its top level.
        revision: The branch, tag or commit; None for the default branch.
    """

    hub_id: str
    subfolder: str | None
    revision: str | None

    @property
    def text(self) -> str:
        """The repository, for messages."""
        inner = f"/{self.subfolder}" if self.subfolder else ""
        at = f" at revision {self.revision!r}" if self.revision else ""
        return f"{self.hub_id}{inner} on the hub{at}"

    def fetch(self, file: str, absent: Callable[[str], str] = lambda file: ".") -> Path:
        """Downloads a file and returns its path in the local cache."""
        import huggingface_hub

        with translated_errors(self, file, absent):
            path = huggingface_hub.hf_hub_download(
                self.hub_id, file, subfolder=self.subfolder, revision=self.revision
            )
        return Path(path)

    def fetch_if_present(self, file: str) -> Path | None:
        """Downloads a file as `fetch` does; None if the repository has no such file."""
        try:
            return self.fetch(file)
        except CheckpointError as error:
            if not is_absence(error):
                raise
        return None

    def fetch_shards(self, path: Path, is_read: Callable[[str], bool] | None = None) -> bool:
        """Downloads the files that an index lists.

        Returns False, without downloading them, if ``is_read`` rejects one of their names.
        """
        if path.name.endswith(".index.json"):
            names = indexed_names(path)
            if is_read and not all(map(is_read, names)):
                return False
            for file in names:
                self.fetch(file)
        return True

    def names(self, *, ask: bool = True) -> tuple[str, ...]:
        """Returns the names of the folder's files on the hub; of those in the cache if offline."""
        files = (self._listed() if ask else None) or list(self._cached())
        inner = f"{self.subfolder}/" if self.subfolder else ""
        relative = [file.removeprefix(inner) for file in files if file.startswith(inner)]
        return tuple(sorted(file for file in relative if "/" not in file))

    def _listed(self) -> list[str] | None:
        """Lists the files in the repository; None if the hub does not answer."""
        import huggingface_hub

        try:
            api = huggingface_hub.HfApi()
            info: Any = api.model_info(self.hub_id, revision=self.revision, timeout=_TIMEOUT)
        # The client's error types differ between versions. The list is only used to find weights
        # that are not read, so falling back to the local cache needs no message.
        except Exception:
            return None
        return [file.rfilename for file in info.siblings or ()]

    def _cached(self) -> Iterator[str]:
        """Yields the paths of the files in the local cache."""
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
