"""The merges for `killing`: a base that may change, two adapters, and all possible outputs."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix.converters.merging import merge_checkpoint

from ..bases import contents, save_adapters, save_base

__all__ = ["CHANGES", "Case"]

Contents = dict[str, bytes]


def _anew(file: Path) -> None:
    """Saves the base again: a new file of the same name with other numbers."""
    save_file({name: x + 1 for name, x in load_file(file).items()}, file.with_name("other"))
    file.with_name("other").replace(file)


def _in_place(file: Path) -> None:
    """Overwrites numbers in place."""
    with file.open("r+b") as opened:
        opened.seek(-40, os.SEEK_END)
        opened.write(np.ones(10, np.float32).tobytes())
        os.fsync(opened.fileno())


def _longer(file: Path) -> None:
    """Rewrites the file in place with a longer header."""
    save_file(load_file(file), file, metadata={"note": "x" * 64})


CHANGES: Mapping[str, Callable[[Path], None]] = {
    "saved anew": _anew,
    "in place": _in_place,
    "a longer header": _longer,
}


class Case:
    """A base in three shards, two adapters, and the possible outputs.

    Args:
        folder: Where they are written.
    """

    def __init__(self, folder: Path):
        self.folder, self.out = folder, folder / "out"
        self.base, self.pristine = folder / "base", save_base(folder / "pristine", shards=3)
        adapters = save_adapters(folder / "adapters")
        self.adapter, self.other_adapter = adapters["lora"], adapters["loha"]
        self.begin(is_there=False)
        self.lora = jaxmix.load(self.adapter)
        self.new = self.merged("new", self.lora)
        self.other = self.merged("other", jaxmix.load(self.other_adapter))
        self.old = self.merged("old", [])
        self.changed: dict[str, Contents] = {}
        for name, change in CHANGES.items():
            change(self.shard)
            self.changed[name] = self.merged(name, self.lora)
            self.begin(is_there=False)

    @property
    def shard(self) -> Path:
        """The shard of the base that changes."""
        return self.base / "model-00002-of-00003.safetensors"

    def merged(self, name: str, adapters: Any) -> Contents:
        """The output of an undisturbed run, which stays in a folder of this name."""
        merge_checkpoint(self.base, adapters, self.folder / name)
        return contents(self.folder / name)

    def begin(self, *, is_there: bool) -> None:
        """Restores the old output, or its absence, and the base, and removes everything else."""
        for path in (self.base, *self.folder.glob("out*")):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.pristine, self.base)
        if is_there:
            shutil.copytree(self.folder / "old", self.out)

    def left(self, *, is_there: bool, outputs: Mapping[str, Contents]) -> str:
        """Returns the output that exists.

        Raises:
            RuntimeError: If it differs from all possible outputs.
        """
        files = contents(self.out) if self.out.exists() else None
        if files == (self.old if is_there else None):
            return "old"
        for name, output in outputs.items():
            if files == output:
                return name
        raise RuntimeError("the output is neither the old one nor a new one")

    def end(self, expected: Contents, *, resume: bool) -> int:
        """Merges again without disturbance, and returns how many shards it resumed from."""
        merged = merge_checkpoint(self.base, self.lora, self.out, force=True, resume=resume)
        if contents(self.out) != expected:
            raise RuntimeError("merging again made something else")
        if leftovers := [path.name for path in self.folder.glob("out.*")]:
            raise RuntimeError(f"merging again left {leftovers}")
        return merged.resumed
