"""A saved mix, and a cache of the hub."""

from pathlib import Path

import pytest
from huggingface_hub import constants

import jaxmix

from .saved import COMMIT, MIXED


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Saves a mix of two parts."""
    return jaxmix.save(MIXED, tmp_path / "saved")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes an offline cache as the hub's client does; returns the folder of a commit's files."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    return repo / "snapshots" / COMMIT
