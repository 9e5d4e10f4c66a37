"""`load` from the hub: the real client on a hand-made cache, and each of its errors."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

import jaxmix
from jaxmix import JaxmixError
from jaxmix.errors import CheckpointError

from .peft.folders import SITE, refused, save

FILES = ("adapter_config.json", "adapter_model.safetensors")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with the layout of the hub's client, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "refs" / "v2").write_text(COMMIT[::-1])
    return repo / "snapshots"


def test_from_the_cache(cache):
    """The real client finds a repository, a subfolder and a revision offline."""
    save(cache / COMMIT)
    save(cache / COMMIT / "inner" / "style")
    save(cache / COMMIT[::-1], "oft")
    assert jaxmix.load("owner/name").name == "name"
    assert jaxmix.load("owner/name", "mine").name == "mine"
    assert jaxmix.load("owner/name", subfolder="inner/style").name == "style"
    assert jaxmix.load("owner/name").updates[SITE].family == "LoRA"
    assert jaxmix.load("owner/name").source == "owner/name"
    in_subfolder = jaxmix.load("owner/name", subfolder="inner/style", revision=COMMIT)
    assert in_subfolder.source == f"owner/name/inner/style@{COMMIT}"
    for revision in ("v2", COMMIT[::-1]):
        assert jaxmix.load("owner/name", revision=revision).updates[SITE].family == "OFT"


def test_not_in_the_cache(cache):
    """The error has the file, the repository and both remedies."""
    for options, place in (
        ({}, "owner/name on the hub"),
        ({"subfolder": "x"}, "owner/name/x on the hub"),
        ({"revision": "v9"}, "owner/name on the hub at revision 'v9'"),
    ):
        assert refused(CheckpointError, "owner/name", **options) == (
            f"{place}: adapter_config.json is not in the local cache, and the hub can't be "
            "reached. Connect to the internet to download it, or use the path of a folder."
        )
    save(cache / COMMIT)
    (cache / COMMIT / FILES[1]).unlink()
    message = refused(CheckpointError, "owner/name")
    assert "adapter_model.safetensors is not in the local cache" in message
    assert refused(CheckpointError, "owner/else").startswith(
        "owner/else on the hub: adapter_config"
    )


def test_damaged_in_the_cache(cache):
    """The error names the damaged file, so it can be deleted."""
    save(cache / COMMIT)
    (cache / COMMIT / FILES[1]).write_bytes(b"x")
    message = refused(CheckpointError, "owner/name")
    assert message.startswith(f"{cache / COMMIT / FILES[1]} is not a complete safetensors file")


def failing(kind, failing_file=FILES[0], folder=Path()):
    """A download that raises at one file, like the hub's client, and finds the other."""

    def download(repo_id, filename, *, subfolder=None, revision=None):
        assert repo_id == "owner/name"
        if filename not in FILES:  # of another format: a PEFT repository has none
            raise errors.EntryNotFoundError("not there")
        if filename == failing_file:
            error = kind.__new__(kind)
            error.args = ("what the client said",)
            raise error
        return str(folder / filename)

    return download


GATED = "is gated. Request access on its page, then run `hf auth login`."
UNKNOWN = (
    "'owner/name' is neither a local folder nor a repository on the hub. Check the spelling; a "
    "private repository needs `hf auth login`."
)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (errors.GatedRepoError, f"owner/name/sub on the hub at revision 'v1' {GATED}"),
        (errors.RepositoryNotFoundError, UNKNOWN),
        (
            errors.RevisionNotFoundError,
            "owner/name on the hub has no revision 'v1'. Use one of its branches, tags or commits.",
        ),
        (
            errors.EntryNotFoundError,
            "owner/name/sub on the hub at revision 'v1' has no adapter_config.json, "
            "so it is not a PEFT adapter. If the adapter is in a folder of the "
            "repository, pass subfolder='…'.",
        ),
        (errors.HfHubHTTPError, None),
        (errors.HFValidationError, None),
        (ConnectionError, None),
        (OSError, None),
        (RuntimeError, None),
    ],
)
def test_hub_errors(kind, expected, monkeypatch):
    """Each of the client's errors has our message; any other error is passed on."""
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", failing(kind))
    expected = expected or (
        "owner/name/sub on the hub at revision 'v1': adapter_config.json can't be downloaded: what "
        "the client said. Try again, or download the folder and use its path."
    )
    with pytest.raises(JaxmixError) as caught:
        jaxmix.load("owner/name", subfolder="sub", revision="v1")
    assert caught.type is CheckpointError and str(caught.value) == expected
    assert isinstance(caught.value.__cause__, kind)


def test_repository_with_only_pickles(tmp_path, monkeypatch):
    """The error shows how to convert them; they are not downloaded."""
    folder = save(tmp_path)
    download = failing(errors.EntryNotFoundError, FILES[1], folder)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert refused(CheckpointError, "owner/name") == (
        "owner/name on the hub has no adapter_model.safetensors. If it has a .bin, download the "
        "folder and convert it: jaxmix does not read pickles. With torch:\n"
        "  tensors = torch.load('adapter_model.bin', map_location='cpu', weights_only=True)\n"
        "  safetensors.torch.save_file(tensors, 'adapter_model.safetensors')"
    )


def test_repository_changes_during_download(tmp_path, monkeypatch):
    """Files of two commits are refused."""
    for name in FILES:
        save(tmp_path / name)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo, file, **_: str(tmp_path / file / file)
    )
    assert refused(CheckpointError, "owner/name") == (
        "owner/name on the hub changed while its files were downloaded. Try again, "
        "or pass a commit: revision='…'."
    )


def test_requests_to_the_hub(tmp_path, monkeypatch):
    """Two files are requested, with subfolder and revision, and nothing else."""
    folder = save(tmp_path)
    requests = []

    def download(repo_id, filename, **options):
        requests.append((repo_id, filename, options))
        return str(folder / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert jaxmix.load("own.er/na_me-1", subfolder="a/b", revision="v1").name == "b"
    options = {"subfolder": "a/b", "revision": "v1"}
    assert requests == [("own.er/na_me-1", name, options) for name in FILES]
    refused(CheckpointError, "owner/name", subfolder="../x")
    assert len(requests) == 2
