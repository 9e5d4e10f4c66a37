"""Merges that were interrupted."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jaxmix.converters.merging import merge_checkpoint, recipe

from ..bases import Adapters, mixed

SECOND, THIRD = (f"model-0000{i}-of-00003.safetensors" for i in (2, 3))


class Stop(Exception):
    """What breaks a merge off."""


@contextmanager
def breaking(beside: Path, error: BaseException, file: str = THIRD) -> Iterator[None]:
    """Merges fail in the third shard, or in another one, once the first one is whole."""
    plain: Any = recipe.Prepared.compute

    def failing(self: Any, *args: Any) -> Any:
        if self.recipe.tensor.file.name == file:
            while not (beside / "whole" / "0.json").exists():
                time.sleep(0.01)
            raise error
        return plain(self, *args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(recipe.Prepared, "compute", failing)
        yield


@pytest.fixture
def broken(sharded: Path, adapters: Adapters, tmp_path: Path) -> Path:
    """An output of which one shard is whole, or two."""
    with breaking(tmp_path / "out.partial", Stop()), pytest.raises(Stop) as caught:
        merge_checkpoint(sharded, mixed(adapters), tmp_path / "out")
    (note,) = caught.value.__notes__
    assert re.search(
        r"[12] of 3 shards are complete in \S+out\.partial\. Use resume=True to con", note
    )
    assert not (tmp_path / "out").exists()
    return tmp_path / "out.partial"
