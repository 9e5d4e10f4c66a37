"""Whole modules in files next to an adapter."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxmix.converters.adapters.common.base_model import BaseModel, base_model
from jaxmix.converters.adapters.common.sidecars import read_sidecars
from jaxmix.errors import CheckpointError

ONES = np.ones((2, 2), np.float32)


def split_leaf(key: str) -> tuple[str, str] | None:
    """Splits a key into its module and its leaf."""
    site, _, leaf = key.rpartition(".")
    return (site, leaf) if leaf in ("weight", "bias") else None


def read(
    folder: Path,
    *names: str,
    sites: Collection[str] = ("model.q",),
    own: Mapping[str, Mapping[str, Any]] | None = None,
    base: BaseModel | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Reads files next to an adapter."""
    return read_sidecars(
        folder, names, split_leaf=split_leaf, sites=sites, own_leaves=[own or {}], base=base
    )


def refused(*args: Any, **options: Any) -> str:
    """Returns the error's message."""
    with pytest.raises(CheckpointError) as caught:
        read(*args, **options)
    return str(caught.value)


def message(folder: Path, *lines: str) -> str:
    """Returns the message for files that are not read."""
    name = lines[0].partition(":")[0]
    return (
        f"{folder} has weights next to the adapter that are not read:\n  "
        + "\n  ".join(lines)
        + "\nThey may have been trained with it, and would be missing from the result. To leave "
        f"them out: ignore={name!r}, or a glob."
    )


def test_leaves_of_several_files_are_joined(tmp_path: Path) -> None:
    """Keys may have PEFT's prefix."""
    save_file({"base_model.model.embed.weight": ONES}, tmp_path / "x.safetensors")
    save_file({"embed.bias": ONES[0], "norm.weight": ONES[1]}, tmp_path / "y.safetensors")
    leaves = read(tmp_path, "x.safetensors", "y.safetensors")
    assert {site: set(arrays) for site, arrays in leaves.items()} == {
        "embed": {"weight", "bias"},
        "norm": {"weight"},
    }
    assert np.array_equal(leaves["embed"]["weight"], ONES)


def test_no_files(tmp_path: Path) -> None:
    assert read(tmp_path) == {}


def test_problems_of_all_files_are_listed(tmp_path: Path) -> None:
    save_file({"embed.weight": ONES.astype(np.int64)}, tmp_path / "a.safetensors")
    save_file({f"{i}": ONES for i in range(4)}, tmp_path / "b.safetensors")
    save_file({"v_head.summary.bias": ONES}, tmp_path / "c.safetensors")
    save_file({"embed.weight": ONES}, tmp_path / "model.safetensors")
    names = ["a.safetensors", "b.safetensors", "c.safetensors", "model.safetensors", "x.bin"]
    other = "is not a module's weight or bias"
    assert refused(tmp_path, *names) == message(
        tmp_path,
        f"a.safetensors: embed.weight {other}",
        f"b.safetensors: 0 {other}; 1 {other}; 2 {other} …",
        "c.safetensors: v_head.summary.bias belongs to a head that TRL adds, which the base does "
        "not have",
        "model.safetensors: named like a whole model, but the folder has no config.json",
        "x.bin: saved by torch; only a safetensors file with the weights of whole modules is read",
    )


@pytest.mark.parametrize("is_own", [True, False], ids=["of the adapter", "of another file"])
def test_leaf_that_occurs_twice(is_own: bool, tmp_path: Path) -> None:
    """Equal numbers of the same dtype are accepted."""
    names = ["x.safetensors"] if is_own else ["first.safetensors", "x.safetensors"]
    own = {"embed": {"weight": ONES}} if is_own else {}
    save_file({"embed.weight": ONES}, tmp_path / "first.safetensors")
    save_file({"embed.weight": ONES}, tmp_path / "x.safetensors")
    assert set(read(tmp_path, *names, own=own)) == {"embed"}
    for other in (ONES + 1, ONES.astype(np.float16)):
        save_file({"embed.weight": other}, tmp_path / "x.safetensors")
        assert refused(tmp_path, *names, own=own) == message(
            tmp_path,
            "x.safetensors: embed.weight is also in another file, with different numbers",
        )


def test_module_that_the_base_lacks(tmp_path: Path) -> None:
    """Names are compared by their ends, with the number of a list's item."""
    save_file({"projector.0.weight": ONES}, tmp_path / "x.safetensors")
    base = base_model(["lm.q", "projector.1"])
    assert refused(tmp_path, "x.safetensors", base=base) == message(
        tmp_path, "x.safetensors: a list of module names has no module projector.0"
    )
    for modules in (["lm.q", "lm.projector.0"], ["decoder", "projector.1"]):
        base = base_model(modules)
        assert set(read(tmp_path, "x.safetensors", base=base)) == {"projector.0"}


def test_head_of_a_base_with_tied_embeddings(tmp_path: Path) -> None:
    """The base has no module for a tied head."""
    save_file({"lm_head.weight": ONES}, tmp_path / "x.safetensors")
    base = base_model(["model.q", "model.embed_tokens"])
    assert set(read(tmp_path, "x.safetensors", base=base)) == {"lm_head"}
