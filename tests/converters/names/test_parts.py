"""Merges into weights that are parts of a leaf, in another order of rows, or in several leaves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix.errors import LayoutError
from jaxmix.families import DiagOFT, LoHa, LoRA, Replace, Update

from ...messages import full_text

RNG = np.random.default_rng(0)
MOLMO = {
    "model_type": "molmo2",
    "architectures": ["Molmo2ForConditionalGeneration"],
    "text_config": {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 4},
}
KIMI = {
    "model_type": "kimi_k25",
    "architectures": ["Kimi_K25ForConditionalGeneration"],
    "vision_config": {"num_attention_heads": 2},
}
OLMO = {"model_type": "olmo_hybrid", "architectures": ["OlmoHybridForCausalLM"]}


def random(*shape: int) -> np.ndarray:
    """Random numbers."""
    return RNG.normal(size=shape).astype(np.float32)


def lora(out: int, size: int) -> LoRA:
    """A LoRA of rank 2."""
    return LoRA(random(2, size), random(out, 2), 0.5)


def merged(folder: Path, config: Any, leaves: dict[str, np.ndarray], updates: Any) -> Any:
    """Returns the leaves after a merge."""
    base = folder / "base"
    base.mkdir()
    save_file(leaves, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps(config))
    adapter = jaxmix.Adapter(updates, name="style")
    jaxmix.merge_checkpoint(base, adapter, folder / "out", verify=True)
    return load_file(folder / "out" / "model.safetensors")


def applied(update: Update, weight: np.ndarray) -> np.ndarray:
    """Returns the weight with an update, as if it were a separate leaf."""
    adapter = jaxmix.Adapter({"w": update}, name="style")
    leaves = {"w.weight": weight, "w.bias": np.zeros(len(weight), np.float32)}
    return np.asarray(jaxmix.compose(leaves, adapter)["w.weight"])


def test_parts_of_unequal_sizes(tmp_path: Path) -> None:
    """Molmo's queries, keys and values are one leaf, split by the config's numbers of heads."""
    leaf = "model.transformer.blocks.0.self_attn.att_proj.weight"
    site = "model.language_model.layers.0.self_attn.{}_proj"
    weight, q, v = random(24, 6), lora(16, 6), lora(4, 6)
    updates = {site.format("q"): q, site.format("v"): v}
    output = merged(tmp_path, MOLMO, {leaf: weight}, updates)[leaf]
    expected = [applied(q, weight[:16]), weight[16:20], applied(v, weight[20:])]
    np.testing.assert_allclose(output, np.concatenate(expected), atol=1e-5)


def halves(rows: np.ndarray) -> np.ndarray:
    """Returns the rows of two heads, with the entries of each head's pairs separated."""
    return rows.reshape(2, len(rows) // 4, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def pairs(rows: np.ndarray) -> np.ndarray:
    """Returns rows as they were before `halves`."""
    return rows.reshape(2, 2, len(rows) // 4, -1).swapaxes(1, 2).reshape(rows.shape)


@pytest.mark.parametrize("family", ["lora", "loha", "oft"])
def test_rows_of_rotary_heads(family: str, tmp_path: Path) -> None:
    """Kimi's queries and keys have another order of rows in memory than on disk."""
    leaf = "vision_tower.encoder.blocks.0.wqkv.{}"
    site = "model.vision_tower.layers.0.attn.{}_proj"
    updates: dict[str, Update] = {
        "lora": LoRA(random(2, 6), random(8, 2), 0.5, bias=random(8)),
        "loha": LoHa(random(8, 2), random(2, 6), random(8, 2), random(2, 6), 0.5),
        "oft": DiagOFT(random(2, 4, 4)),
    }
    update = updates[family]
    leaves = {leaf.format("weight"): random(24, 6), leaf.format("bias"): random(24)}
    output = merged(tmp_path, KIMI, leaves, {site.format("k"): update})
    weight = leaves[leaf.format("weight")]
    expected = pairs(applied(update, halves(weight[8:16])))
    parts = [weight[:8], expected, weight[16:]]
    np.testing.assert_allclose(output[leaf.format("weight")], np.concatenate(parts), atol=1e-5)
    if family == "lora":
        bias = leaves[leaf.format("bias")]
        new = bias[8:16] + 0.5 * pairs(np.asarray(update.bias)[:, None])[:, 0]  # pyright: ignore
        np.testing.assert_allclose(output[leaf.format("bias")][8:16], new, atol=1e-5)
        assert np.array_equal(output[leaf.format("bias")][:8], bias[:8])


def test_convolutions_joined_in_memory(tmp_path: Path) -> None:
    """A convolution in memory is three on disk, of unequal sizes."""
    leaf = "model.layers.0.linear_attn.{}_conv1d.weight"
    sizes = {"q": 4, "k": 4, "v": 8}
    leaves = {leaf.format(name): random(size, 1, 3) for name, size in sizes.items()}
    new = random(16, 1, 3)
    site = "model.layers.0.linear_attn.conv1d"
    output = merged(tmp_path, OLMO, leaves, {site: Replace(new)})
    joined = np.concatenate([output[leaf.format(name)] for name in sizes])
    np.testing.assert_allclose(joined, new, atol=1e-6)


def test_config_of_another_model_is_refused(tmp_path: Path) -> None:
    """Its sizes do not match the leaf."""
    leaf = "model.transformer.blocks.0.self_attn.att_proj.weight"
    site = "model.language_model.layers.0.self_attn.q_proj"
    with pytest.raises(
        LayoutError,
        match=full_text(
            "adapter 'style': sites that can't be mapped to the weights, "
            "which have the names of molmo2:\n"
            "  model.language_model.layers.0.self_attn.q_proj: "
            "model.transformer.blocks.0.self_attn.att_proj.weight (20, "
            "6) can't be split into parts of 16, 4, 4 rows"
        ),
    ):
        merged(tmp_path, MOLMO, {leaf: random(20, 6)}, {site: lora(16, 6)})
