"""Leaves of qwix and MaxText: unstacked against qwix, stacked against their formulas."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxmix
from jaxmix.converters.adapters.qwix import qwix_adapter
from jaxmix.errors import AdapterError, CheckpointError, ShapeError

from ....goldens.archive import Archive
from ....messages import full_text
from ..peft.folders import refused

GOLDEN = Archive("formats/qwix")
ALPHA = 6.0


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    """Returns random numbers."""
    return np.random.default_rng(seed).normal(size=shape)


def pair(module: str) -> dict[str, np.ndarray]:
    """Returns the two factors of a module."""
    return {f"{module}.kernel_lora_a": drawn(4, 2), f"{module}.kernel_lora_b": drawn(2, 3)}


def stacked(axis: int, layers: int = 4, rank: int = 2) -> dict[str, np.ndarray]:
    """Returns MaxText's factors of a scanned query (emb 6, heads 3, head 5)."""
    b = drawn(rank, layers, 3, 5, seed=1)
    a = drawn(6, layers, rank)
    if axis == 0:
        a, b = a.swapaxes(0, 1), b.swapaxes(0, 1)
    leaf = "params/params/decoder/layers/self_attention/query/kernel"
    return {f"{leaf}_lora_a": a, f"{leaf}_lora_b": b}


def test_unstacked_factors_match_qwix(tmp_path):
    """A linear layer and einsums with two output or two input axes match qwix's forward."""
    folder = GOLDEN.unpack(tmp_path)
    base, expected = (GOLDEN.tensors(f"{x}.safetensors") for x in ("base", "nnx.expected"))
    with jax.enable_x64(True):
        adapter = jaxmix.load(folder / "nnx.safetensors", alpha=ALPHA)
        composed = jaxmix.compose(base, [adapter])
        assert len(adapter.sites) == 6
        for name, truth in expected.items():
            assert np.abs(np.asarray(composed[name]) - truth).max() < 1e-12
            assert np.abs(base[name] - truth).max() > 0.1


@pytest.mark.parametrize("axis", [0, 1])
def test_each_stacked_layer_is_a_site(axis):
    """Layers are stacked by ``ilr,rlo->ilo`` or ``lir,lro->lio``; a layout finds the kernel."""
    tree = stacked(axis)
    a, b = tree.values()
    adapter = qwix_adapter(tree, alpha=3)
    assert adapter.sites[1] == "params.decoder.layers.1.self_attention.query"
    pattern = "ilr,rlnh->ilnh" if axis else "lir,lrnh->linh"
    delta = 1.5 * np.einsum(pattern, a, b)
    kernel = drawn(*delta.shape, seed=2)
    rule = jaxmix.Rule(
        r"params\.decoder\.layers\.(\d+)\.self_attention\.query",
        "kernel",
        "d n h -> (n h) d",
        r":, \1" if axis else r"\1",
    )
    with jax.enable_x64(True):
        layout = jaxmix.Layout("maxtext", (rule,))
        composed = jaxmix.compose({"kernel": kernel}, [adapter], layout=layout)
        np.testing.assert_allclose(np.asarray(composed["kernel"]), kernel + delta, atol=1e-12)


def test_ambiguous_layer_axis_must_be_given():
    """If ranks and layers are equal, the user must give the layers' axis."""
    tree = {"layers.w_lora_a": drawn(2, 2, 2), "layers.w_lora_b": drawn(2, 2, 2, seed=1)}
    a, b = tree.values()
    with pytest.raises(
        ShapeError,
        match=full_text(
            "the tree: factors that do not fit each other:\n"
            "  layers.w: (2, 2, 2) and (2, 2, 2): either axis may be "
            "that of the layers\n"
            "Expected lora_a (in …, r) and lora_b (r, out …); or for "
            "stacked layers (layers, in …, r) and (layers, r, out …), or "
            "(in, layers …, r) and (r, layers, out …). If both are "
            "possible, pass the axis of the layers, 0 or 1: load(path, "
            "axis=…)."
        ),
    ):
        qwix_adapter(tree, alpha=1)
    for axis, pattern in ((0, "lir,lro->lio"), (1, "ilr,rlo->ilo")):
        adapter = qwix_adapter(tree, alpha=2, axis=axis)
        product = np.take(np.einsum(pattern, a, b), 1, axis)
        update: Any = adapter.updates["layers.1"]
        np.testing.assert_allclose(update.b @ update.a, product.T)
    with pytest.raises(
        ShapeError,
        match=full_text(
            "the tree: factors that do not fit each other:\n"
            "  layers.w: (2, 3, 2) and (2, 4): no axis of layers\n"
            "Expected lora_a (in …, r) and lora_b (r, out …); or for "
            "stacked layers (layers, in …, r) and (layers, r, out …), or "
            "(in, layers …, r) and (r, layers, out …). If both are "
            "possible, pass the axis of the layers, 0 or 1: load(path, "
            "axis=…)."
        ),
    ):
        qwix_adapter({"layers.w_lora_a": drawn(2, 3, 2), "layers.w_lora_b": drawn(2, 4)}, alpha=1)


def test_orbax_checkpoint_with_maxtext_metadata(tmp_path):
    """Alpha is read from the metadata; a contradicting option is refused, as in MaxText."""
    ocp = pytest.importorskip("orbax.checkpoint")
    tree = {
        "decoder": {"mlp": {"wi_0": {"kernel_lora_a": drawn(4, 2), "kernel_lora_b": drawn(2, 3)}}}
    }
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(tmp_path / "0" / "items", tree)
    metadata = {"custom_metadata": {"lora": {"lora_rank": 2, "lora_alpha": 5.0}}}
    (tmp_path / "0" / "_CHECKPOINT_METADATA").write_text(json.dumps(metadata))
    for path in (tmp_path / "0", tmp_path / "0" / "items"):
        update: Any = jaxmix.load(path).updates["decoder.mlp.wi_0"]
        assert update.scale == 2.5 and update.a.shape == (2, 4) and update.b.shape == (3, 2)
    message = refused(CheckpointError, tmp_path / "0", alpha=6.0)
    assert "alpha = 6.0 was given, but the metadata has 5.0" in message


def test_invalid_factors_are_refused(tmp_path):
    """Missing alpha, missing factors, batched axes, other dtypes and NaN are refused."""
    path = tmp_path / "x.safetensors"
    save_file({"q/kernel_lora_a": drawn(4, 2), "q/kernel_lora_b": drawn(2, 3)}, path)
    assert "Pass it: load(path, alpha=…)." in refused(CheckpointError, path)
    save_file({"q/kernel_lora_a": drawn(4, 2)}, path)
    assert "q.kernel: only lora_a" in refused(CheckpointError, path, alpha=1)
    with pytest.raises(
        CheckpointError,
        match=full_text(
            "the tree has no leaves of qwix's LoRA, expected "
            "<leaf>_lora_a and <leaf>_lora_b, or lora_a and lora_b of a "
            "module. Was it saved without the LoRA parameters?"
        ),
    ):
        qwix_adapter({"kernel": drawn(2, 2)}, alpha=1)
    with pytest.raises(
        ShapeError,
        match=full_text(
            "the tree: factors that do not fit each other:\n"
            "  q.kernel: (4, 3, 2) and (2, 3, 5)\n"
            "Expected lora_a (in …, r) and lora_b (r, out …); or for "
            "stacked layers (layers, in …, r) and (layers, r, out …), or "
            "(in, layers …, r) and (r, layers, out …). If both are "
            "possible, pass the axis of the layers, 0 or 1: load(path, "
            "axis=…)."
        ),
    ):
        qwix_adapter(
            {"q.kernel_lora_a": drawn(4, 3, 2), "q.kernel_lora_b": drawn(2, 3, 5)}, alpha=1
        )
    with pytest.raises(
        ShapeError,
        match=full_text(
            "the tree: factors that do not fit each other:\n"
            "  q.kernel: (4,) and (2, 3)\n"
            "Expected lora_a (in …, r) and lora_b (r, out …); or for "
            "stacked layers (layers, in …, r) and (layers, r, out …), or "
            "(in, layers …, r) and (r, layers, out …). If both are "
            "possible, pass the axis of the layers, 0 or 1: load(path, "
            "axis=…)."
        ),
    ):
        qwix_adapter({"q.kernel_lora_a": drawn(4), "q.kernel_lora_b": drawn(2, 3)}, alpha=1)
    with pytest.raises(
        AdapterError,
        match=full_text(
            "the tree: q.kernel_lora_a has numbers that are NaN or "
            "infinite. Take an earlier checkpoint."
        ),
    ):
        leaves = {"q.kernel_lora_a": np.full((4, 2), np.nan), "q.kernel_lora_b": drawn(2, 3)}
        qwix_adapter(leaves, alpha=1)
    message = "the tree: q.kernel_lora_a has dtype int64, expected floats"
    with pytest.raises(CheckpointError, match=full_text(message)):
        leaves = {"q.kernel_lora_a": np.ones((4, 2), int), "q.kernel_lora_b": drawn(2, 3)}
        qwix_adapter(leaves, alpha=1)
    save_file({**pair("q"), "step": drawn(2)}, path)
    assert "tensors that are not factors of qwix:\n  step\n" in refused(CheckpointError, path)
    with pytest.raises(
        CheckpointError,
        match=full_text(
            "the tree: leaves of LoRA with unknown names:\n"
            "  q.kernel_lora_c is neither <leaf>_lora_a nor "
            "<leaf>_lora_b, nor a lora_a\n"
            "Remove or rename them."
        ),
    ):
        qwix_adapter({**pair("q"), "q.kernel_lora_c": drawn(2)}, alpha=1)
    assert qwix_adapter({**pair("q"), "step": drawn(2)}, alpha=1).sites == ("q",)
    doubled = {f"q.{leaf}_lora_{x}": drawn(2, 2) for leaf in ("kernel", "w") for x in "ab"}
    with pytest.raises(
        ShapeError,
        match=full_text(
            "the tree: factors that do not fit each other:\n"
            "  q.w: a duplicate of the site q\n"
            "Expected lora_a (in …, r) and lora_b (r, out …); or for "
            "stacked layers (layers, in …, r) and (layers, r, out …), or "
            "(in, layers …, r) and (r, layers, out …). If both are "
            "possible, pass the axis of the layers, 0 or 1: load(path, "
            "axis=…)."
        ),
    ):
        qwix_adapter(doubled, alpha=1)
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "_METADATA").write_text("{}")
    assert "is not a readable Orbax checkpoint: " in refused(CheckpointError, folder)


def test_older_maxtext_names():
    """Older MaxText names factors ``lora_a.kernel``."""
    tree = {"q": {"lora_a.kernel": drawn(4, 2), "lora_b.kernel": drawn(2, 3)}}
    update: Any = qwix_adapter(tree, alpha=2).updates["q"]
    assert update.scale == 1.0


def test_numbered_layers_values_and_named_weights(tmp_path: Path):
    """Numbered layers, a trailing flax ``value`` and other weight names give the module's site."""
    tree = {
        "layers": {"0": {"q_einsum": {"w_lora_a": drawn(4, 2), "w_lora_b": drawn(2, 3, 5)}}},
        "moe": {"wi_lora_a": {"value": drawn(4, 2)}, "wi_lora_b": {"value": drawn(2, 3)}},
    }
    assert qwix_adapter(tree, alpha=1).sites == ("layers.0.q_einsum", "moe.wi")
