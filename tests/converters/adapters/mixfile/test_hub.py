"""Saved mixes on the Hugging Face hub: uploaded as plain files, loaded by id."""

from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

import jaxmix
from jaxmix import Adapter
from jaxmix.errors import CheckpointError
from jaxmix.families import LoRA

from ..peft.folders import refused
from .same import assert_same

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MIXED = jaxmix.mix(Adapter({"a": LoRA(np.ones((1, 2)), np.ones((3, 1)), 0.5)}, 0.6, "x"))


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes an offline cache with the hub client's layout, including links to blobs."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--owner--name"
    for folder in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (repo / folder).mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    return repo / "snapshots" / COMMIT


def add_to_cache(snapshot: Path, folder: Path, inner: str = "") -> None:
    """Copies the files of a folder into the cache."""
    for i, file in enumerate(sorted(folder.iterdir())):
        blob = snapshot.parents[1] / "blobs" / f"{inner}{i}".replace("/", "-")
        blob.write_bytes(file.read_bytes())
        (snapshot / inner).mkdir(parents=True, exist_ok=True)
        (snapshot / inner / file.name).symlink_to(blob)


def test_saved_mix_is_two_plain_files(tmp_path: Path) -> None:
    """A saved mix is two plain files, which `upload_folder` can upload."""
    folder = jaxmix.save(MIXED, tmp_path / "mixed")
    assert sorted(file.name for file in folder.rglob("*")) == ["mix.json", "mix.safetensors"]
    assert all(file.is_file() and not file.is_symlink() for file in folder.iterdir())


def test_mix_loads_by_hub_id(tmp_path: Path, snapshot: Path) -> None:
    """A mix loads from the client's cache by id, subfolder and revision."""
    add_to_cache(snapshot, jaxmix.save(MIXED, tmp_path / "a"))
    add_to_cache(snapshot, jaxmix.save(0.5 * MIXED, tmp_path / "b"), "in/b")
    assert_same(jaxmix.load("owner/name"), MIXED)
    assert_same(jaxmix.load("owner/name", revision=COMMIT, format="mix"), MIXED)
    assert_same(jaxmix.load("owner/name", subfolder="in/b"), 0.5 * MIXED)
    loaded = jaxmix.load("owner/name", "mine", strength=2)
    assert [(part.name, part.strength) for part in loaded.parts] == [("mine/x", 1.2)]


def test_incomplete_mix_is_refused(tmp_path: Path, snapshot: Path) -> None:
    """A mix without its tensors is refused; without its JSON the folder has no known format."""
    add_to_cache(snapshot, jaxmix.save(MIXED, tmp_path / "a"))
    (snapshot / "mix.safetensors").unlink()
    message = refused(CheckpointError, "owner/name")
    assert message.startswith(f"{snapshot} has no mix.safetensors, expected next to mix.json")
    (snapshot / "mix.json").unlink()
    message = refused(CheckpointError, "owner/name")
    assert "adapter_config.json is not in the local cache" in message
    message = refused(CheckpointError, "owner/name", format="mix")
    assert "mix.json is not in the local cache" in message


def test_missing_files_on_the_hub_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forced format reports its missing file; other errors of the client are passed on."""

    def download(repo_id: str, filename: str, **options: Any) -> str:
        raise huggingface_hub.errors.EntryNotFoundError("not there")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    message = refused(CheckpointError, "owner/name", format="mix")
    assert message == "owner/name on the hub has no mix.json, so it is not a mix of jaxmix."

    folder = jaxmix.save(MIXED, tmp_path / "a")

    def half(repo_id: str, filename: str, **options: Any) -> str:
        if filename == "mix.json":
            return str(folder / filename)
        raise (
            huggingface_hub.errors.EntryNotFoundError("x")
            if "adapter" in filename
            else OSError("no network")
        )

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", half)
    assert refused(CheckpointError, "owner/name") == (
        "owner/name on the hub: mix.safetensors can't be downloaded: no network. Try again, or "
        "download "
        "the folder and use its path."
    )
