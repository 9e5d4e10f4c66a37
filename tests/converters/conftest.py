"""Skips the collection of tests that need torch, peft and transformers without these packages."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from .bases import save_adapters, save_base

if any(find_spec(name) is None for name in ("torch", "peft", "transformers")):
    collect_ignore = ["merging/test_merge_peft.py"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Returns a small checkpoint in one file."""
    return save_base(tmp_path / "base")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Returns the same checkpoint in shards."""
    return save_base(tmp_path / "sharded", shards=3)


@pytest.fixture
def adapters(tmp_path: Path) -> dict[str, Path]:
    """Returns PEFT folders of a LoRA with biases, a LoHa and an OFT."""
    return save_adapters(tmp_path / "adapters")
