"""The errors of the hub's client, in our words."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from jaxmix.converters.files.near import near_paths
from jaxmix.errors import CheckpointError

__all__ = ["is_absence", "is_unreachable", "translated"]


class _Place(Protocol):
    """Where on the hub something was looked for."""

    @property
    def hub_id(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def text(self) -> str: ...


def is_absence(error: CheckpointError) -> bool:
    """Whether a file is not in the repository, or not in its local cache.

    Args:
        error: An error that `translated` raised.

    Returns:
        Whether it is that.
    """
    from huggingface_hub import errors

    return isinstance(error.__cause__, errors.EntryNotFoundError)


def is_unreachable(error: CheckpointError) -> bool:
    """Whether the hub did not answer, and the local cache has no such file either.

    Args:
        error: An error that `translated` raised.

    Returns:
        Whether it is that.
    """
    from huggingface_hub import errors

    return isinstance(error.__cause__, errors.LocalEntryNotFoundError)


@contextmanager
def translated(place: _Place, file: str, absent: Callable[[str], str]) -> Iterator[None]:
    """Raises what the client raises within it as a CheckpointError that says what to do.

    Args:
        place: Where it looks.
        file: What it looks for.
        absent: From the file to what is to be said where the repository lacks it.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{place.text} is gated. Ask for access on its page, then `hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{place.hub_id!r} is neither a folder here nor a repository on the hub. Check the "
            f"spelling; a private repository needs `hf auth login`.{near_paths(place.hub_id)}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{place.hub_id} on the hub has no revision {place.revision!r}. Give a branch, a tag "
            "or a commit that it has."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{place.text}: {file} is not in the local cache and the hub can't be reached. "
            f"{place.hub_id!r} is no folder here either: go online once, or give the path of a "
            f"downloaded folder.{near_paths(place.hub_id)}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(f"{place.text} has no {file}{absent(file)}") from error
    except Exception as error:  # its kinds differ from version to version of the hub's client
        raise CheckpointError(
            f"{place.text}: {file} can't be had: {error}. Try again, or download the folder and "
            "give its path."
        ) from error
