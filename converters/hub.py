"""An adapter's files from the Hugging Face hub, as a folder in the local cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxmix.converters.format import Format
from jaxmix.errors import CheckpointError, option

__all__ = ["download"]


def download(
    hub_id: str, subfolder: str | None, revision: str | None, formats: Sequence[Format]
) -> tuple[Path, Format]:
    """Fetches an adapter of one of some formats: of the first whose files are there.

    Args:
        hub_id: ``owner/name``.
        subfolder: where in the repository it lies.
        revision: the branch, tag or commit.
        formats: what to look for, in this order; each has ``files``.

    Returns:
        The folder in the local cache, and the format.

    Raises:
        CheckpointError: if it can't be had; the message says why, and what to do.
    """
    place = _Place(hub_id, subfolder, revision)
    mark, one = _first(place, formats)
    found = [mark, *(place.fetch(file, one) for file in one.files[1:])]
    for file in one.extras:
        try:
            found.append(place.fetch(file, one))
        except CheckpointError as error:
            if not _is_absence(error):
                raise
    if any(path.parent != mark.parent for path in found):
        raise CheckpointError(
            f"{place.text} changed between its two files. Try again, or give a commit: "
            f"{option('revision', '…')}."
        )
    return mark.parent, one


def _first(place: "_Place", formats: Sequence[Format]) -> tuple[Path, Format]:
    """The first file of the first format that has it there."""
    said: CheckpointError | None = None
    for one in formats:
        try:
            return place.fetch(one.files[0], one), one
        except CheckpointError as error:
            if not _is_absence(error):
                raise
            # What misses is said of the first one, which most people have.
            said = said or error
    assert said is not None, "no format has files to look for on the hub"
    raise said


def _is_absence(error: CheckpointError) -> bool:
    """Whether a file is not in the repository, or not in its local cache."""
    from huggingface_hub import errors

    return isinstance(error.__cause__, errors.EntryNotFoundError)


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

    def fetch(self, file: str, one: Format) -> Path:
        """One file's path in the local cache."""
        import huggingface_hub
        from huggingface_hub import errors

        try:
            path = huggingface_hub.hf_hub_download(
                self.hub_id, file, subfolder=self.subfolder, revision=self.revision
            )
        except errors.GatedRepoError as error:
            raise CheckpointError(
                f"{self.text} is gated. Ask for access on its page, then `hf auth login`."
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise CheckpointError(
                f"{self.hub_id!r} is neither a folder here nor a repository on the hub. Check the "
                "spelling; a private repository needs `hf auth login`."
            ) from error
        except errors.RevisionNotFoundError as error:
            raise CheckpointError(
                f"{self.hub_id} on the hub has no revision {self.revision!r}. Give a branch, a tag "
                "or a commit that it has."
            ) from error
        except errors.LocalEntryNotFoundError as error:
            raise CheckpointError(
                f"{self.text}: {file} is not in the local cache and the hub can't be reached. "
                f"{self.hub_id!r} is no folder here either: go online once, or give the path of a "
                "downloaded folder."
            ) from error
        except errors.EntryNotFoundError as error:
            raise CheckpointError(f"{self.text} has no {file}{one.absent(file)}") from error
        except Exception as error:  # its kinds differ from version to version of the hub's client
            raise CheckpointError(
                f"{self.text}: {file} can't be had: {error}. Try again, or download the folder and "
                "give its path."
            ) from error
        return Path(path)
