"""Each error of the hub's client becomes a CheckpointError that says what to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import errors

from jaxmix.converters.files.hub_errors import is_absence, is_unreachable, translated_errors
from jaxmix.errors import CheckpointError


@dataclass(frozen=True)
class Location:
    """A repository on the hub, as messages need it."""

    hub_id: str = "owner/name"
    revision: str | None = "v1"
    text: str = "owner/name on the hub at revision 'v1'"


def client_error(kind: type[Exception]) -> Exception:
    """Returns an error of the client. Its constructors differ between versions."""
    error: Any = kind.__new__(kind)
    error.args = ("the client's message",)
    return error


def translated(error: Exception, location: Location) -> CheckpointError:
    """Returns the error that an error of the client becomes."""
    with (
        pytest.raises(CheckpointError) as caught,
        translated_errors(location, "config.json", lambda file: f"; {file} was expected."),
    ):
        raise error
    assert caught.value.__cause__ is error
    return caught.value


MESSAGES = {
    errors.GatedRepoError: (
        "owner/name on the hub at revision 'v1' is gated. Request access on its page, then run "
        "`hf auth login`."
    ),
    errors.RepositoryNotFoundError: (
        "'owner/name' is neither a local folder nor a repository on the hub. Check the spelling; a "
        "private repository needs `hf auth login`."
    ),
    errors.RevisionNotFoundError: (
        "owner/name on the hub has no revision 'v1'. Use one of its branches, tags or commits."
    ),
    errors.LocalEntryNotFoundError: (
        "owner/name on the hub at revision 'v1': config.json is not in the local cache, and the "
        "hub can't be reached. Connect to the internet to download it, or use the path of a folder."
    ),
    errors.EntryNotFoundError: (
        "owner/name on the hub at revision 'v1' has no config.json; config.json was expected."
    ),
    ValueError: (
        "owner/name on the hub at revision 'v1': config.json can't be downloaded: the client's "
        "message. Try again, or download the folder and use its path."
    ),
}


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_message_of_each_error(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gated repository and an unreachable hub are subclasses of other errors of the client."""
    monkeypatch.chdir(tmp_path)
    error = translated(client_error(kind), Location())
    assert str(error) == MESSAGES[kind]
    # The client's class for an unreachable hub is one for a missing file too.
    is_entry = kind in (errors.EntryNotFoundError, errors.LocalEntryNotFoundError)
    assert is_absence(error) is is_entry
    assert is_unreachable(error) is (kind is errors.LocalEntryNotFoundError)


@pytest.mark.parametrize("kind", [errors.RepositoryNotFoundError, errors.LocalEntryNotFoundError])
def test_similar_local_folder_is_suggested(kind: type[Exception], tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    error = translated(client_error(kind), Location(hub_id=f"{tmp_path}/adaptors"))
    assert str(error).endswith(f" Did you mean {tmp_path}/adapters?")


def test_body_without_an_error() -> None:
    with translated_errors(Location(), "config.json", str):
        pass
