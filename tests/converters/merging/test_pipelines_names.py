"""Merges into pipelines of adapters in the original projects' names."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxmix
from jaxmix.converters.merging import merge_checkpoint

from ..pipelines import save_pipeline, tensors_of


def test_fused_projection_next_to_a_text_encoder(tmp_path: Path) -> None:
    """Flux in BFL's names: a fused layer lands in three leaves, next to a text encoder's."""
    base, rng = save_pipeline(tmp_path / "base", "flux"), np.random.default_rng(1)
    tensors = tensors_of(base)
    down, up = (rng.normal(size=s).astype(np.float32) for s in ((2, 16), (48, 2)))
    keys = (
        "lora_unet_double_blocks_0_img_attn_qkv",
        "lora_te1_text_model_encoder_layers_0_mlp_fc2",
    )
    factors = [rng.normal(size=s).astype(np.float32) for s in ((2, 12), (8, 2))]
    file_tensors = {}
    for key, (a, b) in zip(keys, ((down, up), factors), strict=True):
        file_tensors |= {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b}
    save_file(file_tensors, tmp_path / "x.safetensors")
    lora = jaxmix.load(tmp_path / "x.safetensors", base=base)
    merged = merge_checkpoint(base, lora, tmp_path / "out", verify=True)
    written, effect = tensors_of(tmp_path / "out"), up @ down
    for i, name in enumerate(("to_q", "to_k", "to_v")):
        name = f"transformer.transformer_blocks.0.attn.{name}.weight"
        right = tensors[name] + effect[16 * i : 16 * (i + 1)]
        assert np.allclose(written[name], right, rtol=1e-5, atol=1e-5)
    name = "text_encoder.text_model.encoder.layers.0.mlp.fc2.weight"
    assert np.allclose(written[name], tensors[name] + factors[1] @ factors[0], rtol=1e-5, atol=1e-5)
    assert len(merged.changed) == 4


@pytest.mark.parametrize("component", ["transformer", "transformer_2"])
@pytest.mark.parametrize(
    "key", ["lora_unet_blocks_0_self_attn_q", "diffusion_model.blocks.0.self_attn.q"]
)
def test_adapter_of_one_transformer(key: str, component: str, tmp_path: Path) -> None:
    """Wan's own names are for the first transformer by default."""
    base, rng = save_pipeline(tmp_path / "base", "wan"), np.random.default_rng(1)
    down, up = (rng.normal(size=s).astype(np.float32) for s in ((2, 24), (24, 2)))
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
    save_file(tensors, tmp_path / "x.safetensors")
    part = {} if component == "transformer" else {"part": component}
    lora = jaxmix.load(tmp_path / "x.safetensors", base=base, **part)
    merged = merge_checkpoint(base, lora, tmp_path / "out", verify=True)
    name = f"{component}.blocks.0.attn1.to_q.weight"
    assert merged.changed == (name,)
    right = tensors_of(base)[name] + up @ down
    assert np.allclose(tensors_of(tmp_path / "out")[name], right, rtol=1e-5, atol=1e-5)
