"""Interrupted merges."""

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
    """Interrupts a merge."""


@contextmanager
def breaking(beside: Path, error: BaseException, file: str = THIRD) -> Iterator[None]:
    """Makes merges fail in the third shard, or another one, after the first one is complete."""
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
    """An output with one or two complete shards."""
    with breaking(tmp_path / "out.partial", Stop()), pytest.raises(Stop) as caught:
        merge_checkpoint(sharded, mixed(adapters), tmp_path / "out")
    (note,) = caught.value.__notes__
    partial = re.escape(str(tmp_path / "out.partial"))
    assert re.search(rf"[12] of 3 shards are complete in {partial}\. Use resume=True to con", note)
    assert not (tmp_path / "out").exists()
    return tmp_path / "out.partial"
