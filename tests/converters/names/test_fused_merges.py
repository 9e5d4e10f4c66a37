"""Updates that need a complete fused weight are merged into checkpoints that have its parts."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix

from ...families.table import SAMPLES
from ...placement.test_fused import FUSED_QKV, K, check_split, in_sequence, mixing_update, trees


def merged(tree: dict[str, Any], adapters: Any, folder: Path) -> dict[str, np.ndarray]:
    """Returns a tree merged and verified as a checkpoint in one file."""
    folder.mkdir()
    save_file(tree, folder / "base.safetensors")
    report = jaxmix.merge_checkpoint(
        folder / "base.safetensors", adapters, folder / "out.safetensors", verify=True
    )
    assert report.verified is not None and report.verified.ok
    return load_file(folder / "out.safetensors")


@pytest.mark.parametrize("name", ["KaSA", "OFT of outputs", "Normed by inputs", "biases"])
def test_parts_match_the_fused_weight(name: str, tmp_path: Path) -> None:
    """The merge equals that of qkv, also with adapters of q, k and v before and after it."""
    fused_tree, split_tree = trees()
    adapters, with_parts = in_sequence(mixing_update(name))
    with jax.enable_x64(True):
        expected = jaxmix.compose(fused_tree, adapters)
    check_split(merged(split_tree, adapters, tmp_path / "whole"), expected)
    check_split(merged(split_tree, with_parts, tmp_path / "apart"), expected)


def test_parts_are_rounded_once(tmp_path: Path) -> None:
    """In float16 the merge rounds once, as compose does."""
    _, split_tree = trees()
    halves = {name: leaf.astype(np.float16) for name, leaf in split_tree.items()}
    adapters, _ = in_sequence(mixing_update("BOFT of outputs"))
    found = merged(halves, adapters, tmp_path / "halves")
    expected = jaxmix.compose(halves, adapters)
    for name, leaf in found.items():
        np.testing.assert_allclose(leaf, np.asarray(expected[name]), rtol=2e-3, atol=2e-3)
        assert leaf.dtype == np.float16 and not np.array_equal(leaf, halves[name])


def test_fused_tensor_with_updates_of_it_and_of_a_part(tmp_path: Path) -> None:
    """The checkpoint has qkv; one update mixes its rows, another changes only k."""
    fused_tree, _ = trees()
    whole = jaxmix.Adapter({FUSED_QKV: mixing_update("biases")}, name="whole")
    update = SAMPLES["Together"].draw(np.random.default_rng(2), K)
    part = jaxmix.Adapter({"transformer_blocks.0.attn.to_k": update}, name="k")
    with jax.enable_x64(True):
        expected = jaxmix.compose(fused_tree, [whole, part])
    found = merged(fused_tree, [whole, part], tmp_path / "fused")
    for name, leaf in found.items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-9, atol=1e-12)
