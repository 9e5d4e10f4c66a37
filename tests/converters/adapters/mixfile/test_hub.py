"""A saved mix on the hub: plain files up, and down again by id."""

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
    """A cache laid out as the hub's client does it, links to blobs and all, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--owner--name"
    for folder in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (repo / folder).mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    return repo / "snapshots" / COMMIT


def put(snapshot: Path, folder: Path, inner: str = "") -> None:
    """Puts the files of a folder into the cache."""
    for i, file in enumerate(sorted(folder.iterdir())):
        blob = snapshot.parents[1] / "blobs" / f"{inner}{i}".replace("/", "-")
        blob.write_bytes(file.read_bytes())
        (snapshot / inner).mkdir(parents=True, exist_ok=True)
        (snapshot / inner / file.name).symlink_to(blob)


def test_up(tmp_path: Path) -> None:
    """`upload_folder` takes a folder's plain files: two, and nothing else lies there."""
    folder = jaxmix.save(MIXED, tmp_path / "mixed")
    assert sorted(file.name for file in folder.rglob("*")) == ["mix.json", "mix.safetensors"]
    assert all(file.is_file() and not file.is_symlink() for file in folder.iterdir())


def test_down(tmp_path: Path, snapshot: Path) -> None:
    """By id, subfolder and revision, out of the client's own cache."""
    put(snapshot, jaxmix.save(MIXED, tmp_path / "a"))
    put(snapshot, jaxmix.save(0.5 * MIXED, tmp_path / "b"), "in/b")
    assert_same(jaxmix.load("owner/name"), MIXED)
    assert_same(jaxmix.load("owner/name", revision=COMMIT, format="mix"), MIXED)
    assert_same(jaxmix.load("owner/name", subfolder="in/b"), 0.5 * MIXED)
    found = jaxmix.load("owner/name", "mine", strength=2)
    assert [(part.name, part.strength) for part in found.parts] == [("mine/x", 1.2)]


def test_half_of_it(tmp_path: Path, snapshot: Path) -> None:
    """Without its tensors it is no mix; without its JSON it is nothing that is known."""
    put(snapshot, jaxmix.save(MIXED, tmp_path / "a"))
    (snapshot / "mix.safetensors").unlink()
    said = refused(CheckpointError, "owner/name")
    assert said.startswith(f"{snapshot} has no mix.safetensors, expected next to mix.json")
    (snapshot / "mix.json").unlink()
    said = refused(CheckpointError, "owner/name")
    assert "adapter_config.json is not in the local cache" in said
    said = refused(CheckpointError, "owner/name", format="mix")
    assert "mix.json is not in the local cache" in said


def test_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A format that is forced says what it misses; the client's other errors are passed on."""

    def download(repo_id: str, filename: str, **options: Any) -> str:
        raise huggingface_hub.errors.EntryNotFoundError("not there")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    said = refused(CheckpointError, "owner/name", format="mix")
    assert said == "owner/name on the hub has no mix.json, so it is not a mix of jaxmix."

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
