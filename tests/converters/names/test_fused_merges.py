"""Merges of updates that need a whole fused weight into checkpoints that have its parts."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix

from ...families.table import SAMPLES
from ...placement.test_fused import FUSED_QKV, K, check_split, in_row, trees, whole_update


def merged(tree: dict[str, Any], adapters: Any, folder: Path) -> dict[str, np.ndarray]:
    """A tree as a checkpoint in one file, merged and verified."""
    folder.mkdir()
    save_file(tree, folder / "base.safetensors")
    report = jaxmix.merge_checkpoint(
        folder / "base.safetensors", adapters, folder / "out.safetensors", verify=True
    )
    assert report.verified is not None and report.verified.ok
    return load_file(folder / "out.safetensors")


@pytest.mark.one_of(2)
@pytest.mark.parametrize("name", ["KaSA", "OFT of outputs", "Normed by inputs", "biases"])
def test_parts_of_a_fused_weight(name: str, tmp_path: Path) -> None:
    """The merge equals that of qkv, also with adapters of q, k and v before and after it."""
    fused_tree, split_tree = trees()
    adapters, apart_too = in_row(whole_update(name))
    with jax.enable_x64(True):
        expected = jaxmix.compose(fused_tree, adapters)
    check_split(merged(split_tree, adapters, tmp_path / "whole"), expected)
    check_split(merged(split_tree, apart_too, tmp_path / "apart"), expected)


def test_rounded_tensors(tmp_path: Path) -> None:
    """In float16 the merge rounds once, as compose does."""
    _, split_tree = trees()
    halves = {name: leaf.astype(np.float16) for name, leaf in split_tree.items()}
    adapters, _ = in_row(whole_update("BOFT of outputs"))
    output = merged(halves, adapters, tmp_path / "halves")
    expected = jaxmix.compose(halves, adapters)
    for name, leaf in output.items():
        np.testing.assert_allclose(leaf, np.asarray(expected[name]), rtol=2e-3, atol=2e-3)
        assert leaf.dtype == np.float16 and not np.array_equal(leaf, halves[name])


def test_fused_tensor_with_an_update_of_one_part(tmp_path: Path) -> None:
    """One tensor holds the parts: an update that mixes its rows, and one of k."""
    fused_tree, _ = trees()
    fused = jaxmix.Adapter({FUSED_QKV: whole_update("biases")}, name="whole")
    update = SAMPLES["Together"].draw(np.random.default_rng(2), K)
    part = jaxmix.Adapter({"transformer_blocks.0.attn.to_k": update}, name="k")
    with jax.enable_x64(True):
        expected = jaxmix.compose(fused_tree, [fused, part])
    output = merged(fused_tree, [fused, part], tmp_path / "fused")
    for name, leaf in output.items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-9, atol=1e-12)
