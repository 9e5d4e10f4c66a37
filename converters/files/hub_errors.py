"""Translates the errors of the hub's client to CheckpointErrors that say what to do."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from jaxmix.converters.files.path_suggestions import suggest_paths
from jaxmix.errors import CheckpointError

__all__ = ["is_absence", "is_unreachable", "translated_errors"]


class _HubLocation(Protocol):
    """The part of a `HubRepository` that error messages need."""

    @property
    def hub_id(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def text(self) -> str: ...


def is_absence(error: CheckpointError) -> bool:
    """Whether a file is missing from the repository, or from its local cache.

    Args:
        error: An error that `translated_errors` raised.

    Returns:
        True for a missing file.
    """
    from huggingface_hub import errors

    return isinstance(error.__cause__, errors.EntryNotFoundError)


def is_unreachable(error: CheckpointError) -> bool:
    """Whether the hub did not answer and the local cache lacks the file.

    Args:
        error: An error that `translated_errors` raised.

    Returns:
        True if the hub did not answer.
    """
    from huggingface_hub import errors

    return isinstance(error.__cause__, errors.LocalEntryNotFoundError)


@contextmanager
def translated_errors(
    location: _HubLocation, file: str, absent: Callable[[str], str]
) -> Iterator[None]:
    """Translates the client's errors within the body to CheckpointErrors.

    Args:
        location: The repository that is read.
        file: The file that is read.
        absent: Returns the end of the message for a file that the repository lacks.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{location.text} is gated. Request access on its page, then run `hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{location.hub_id!r} is neither a local folder nor a repository on the hub. Check the "
            f"spelling; a private repository needs `hf auth login`.{suggest_paths(location.hub_id)}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{location.hub_id} on the hub has no revision {location.revision!r}. Use one of its "
            "branches, tags or commits."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{location.text}: {file} is not in the local cache, and the hub can't be reached. "
            "Connect to the internet to download it, or use the path of a folder."
            f"{suggest_paths(location.hub_id)}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(f"{location.text} has no {file}{absent(file)}") from error
    except Exception as error:  # the client's error types differ between versions
        raise CheckpointError(
            f"{location.text}: {file} can't be downloaded: {error}. Try again, or download the "
            "folder and use its path."
        ) from error
