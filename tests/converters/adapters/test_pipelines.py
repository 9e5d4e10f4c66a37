"""`load` with a pipeline, or params of several models, as base."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxmix
from jaxmix.errors import CheckpointError

from ...messages import full_text
from ..bases import save_adapter

MODULES = [
    "unet.mid_block.attn.to_q",
    "text_encoder.text_model.encoder.fc1",
    "text_encoder_2.encoder.fc1",
]
T5 = "encoder.block.0.layer.0.SelfAttention.q"


def save(file: Path, *keys: str) -> Path:
    """A file with a LoRA of rank 1 at each key, in the spelling of kohya's scripts."""
    tensors = {
        f"{key}.lora_{end}.weight": np.ones((1, 2) if end == "down" else (3, 1), np.float32)
        for key in keys
        for end in ("down", "up")
    }
    save_file(tensors, file)
    return file


@pytest.mark.parametrize(
    ("key", "part", "site"),
    [
        ("lora_unet_mid_block_attn_to_q", None, MODULES[0]),
        ("lora_unet_mid_block_attn_to_q", "unet", MODULES[0]),
        ("lora_unet_mid_block_attn_to_q", "transformer", MODULES[0]),
        ("lycoris_mid_block_attn_to_q", None, MODULES[0]),
        ("lora_te1_text_model_encoder_fc1", "text_encoder", MODULES[1]),
        ("lora_te_text_model_encoder_fc1", "lora_te", MODULES[1]),
        # transformers 5 saves CLIPTextModel without `text_model.`
        ("lora_te2_text_model_encoder_fc1", None, MODULES[2]),
        ("lora_te_encoder_fc1", None, MODULES[1]),
        ("text_encoder_2.text_model.encoder.fc1", None, MODULES[2]),
        ("text_encoder.encoder.fc1", None, MODULES[1]),
        ("mid_block.attn.to_q", None, MODULES[0]),
        ("mid_block.attn.to_q", "unet", MODULES[0]),
        ("diffusion_model.mid_block.attn.to_q", None, MODULES[0]),
        ("transformer.mid_block.attn.to_q", "unet", MODULES[0]),
        ("model.diffusion_model._orig_mod.mid_block.attn.to_q", None, MODULES[0]),
        ("text_encoders.clip_g.transformer.text_model.encoder.fc1", None, MODULES[2]),
    ],
)
def test_site_of_a_key(key: str, part: str | None, site: str, tmp_path: Path) -> None:
    """Each program's prefix leads to the component of its role."""
    options: dict[str, Any] = {} if part is None else {"part": part}
    file = save(tmp_path / "x.safetensors", key)
    assert jaxmix.load(file, base=MODULES, **options).parts[0].sites == (site,)


@pytest.mark.parametrize("t5", ["text_encoder_2", "text_encoder_3"])
def test_site_of_t5(t5: str, tmp_path: Path) -> None:
    """In sd-scripts, `lora_te3` is Flux's second text encoder and Stable Diffusion 3's third."""
    base = ["transformer.proj_out", "text_encoder.text_model.encoder.fc1", f"{t5}.{T5}"]
    for key in (f"lora_te3_{T5.replace('.', '_')}", f"text_encoders.t5xxl.transformer.{T5}"):
        file = save(tmp_path / "x.safetensors", key)
        assert jaxmix.load(file, base=base).parts[0].sites == (f"{t5}.{T5}",)


def test_part_selects_the_keys_of_its_role(tmp_path: Path) -> None:
    """The prefix itself counts before other names of the same model."""
    keys = ["transformer.a.b", "transformer_2.a.b", "text_encoder.c.d"]
    base = ["transformer.a.b", "transformer_2.a.b", "text_encoder.c.d"]
    file = save(tmp_path / "x.safetensors", *keys)
    for part in keys:
        part = part.partition(".")[0]
        (site,) = jaxmix.load(file, base=base, part=part).parts[0].sites
        assert site.startswith(f"{part}.")
    mixed_file = save(tmp_path / "y.safetensors", "diffusion_model.a.b", "text_encoder.c.d")
    for part in ("transformer", "transformer_2"):
        (site,) = jaxmix.load(mixed_file, base=base, part=part).parts[0].sites
        assert site == f"{part}.a.b"
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"{tmp_path}/y.safetensors has no keys for part='text_encoder_3', "
            "expected one of diffusion_model, text_encoder."
        ),
    ):
        jaxmix.load(mixed_file, base=base, part="text_encoder_3")


def test_absent_component_lists_keys(tmp_path: Path) -> None:
    """Keys of a component that the base lacks are listed with the base's components."""
    base = MODULES[:2]
    kohya_file = save(tmp_path / "x.safetensors", "lora_te2_a", "lora_unet_mid_block_attn_to_q")
    diffusers_file = save(tmp_path / "y.safetensors", "transformer_2.mid_block.attn.to_q")
    with pytest.raises(CheckpointError) as refused:
        jaxmix.load(kohya_file, base=base)
    text = str(refused.value)
    absent = "the base has no text_encoder_2, only text_encoder, unet"
    assert f"\n  lora_te2_a: {absent}\n" in text and "lora_unet" not in text
    assert "Was the adapter trained on another model, or does the file use other names" in text
    assert "Pass the base" not in text
    with pytest.raises(CheckpointError) as refused:
        jaxmix.load(diffusers_file, base=base)
    absent = "the base has no transformer_2, only text_encoder, unet"
    assert f"\n  transformer_2.mid_block.attn.to_q: {absent}\n" in str(refused.value)
    assert "Pass the base" not in str(refused.value)


def test_part_that_the_base_lacks(tmp_path: Path) -> None:
    """A second model never replaces another; a PEFT folder has no parts."""
    file = save(tmp_path / "x.safetensors", "lora_unet_mid_block_attn_to_q")
    with pytest.raises(CheckpointError) as refused:
        jaxmix.load(file, base=MODULES, part="transformer_2")
    assert str(refused.value) == (
        "part='transformer_2' names a component that is absent: the base has no transformer_2, "
        "only text_encoder, text_encoder_2, unet. Pass one of these."
    )
    factors = {"q.lora_A.weight": np.ones((1, 2)), "q.lora_B.weight": np.ones((3, 1))}
    folder = save_adapter(
        tmp_path / "peft", {"peft_type": "LORA", "r": 1, "lora_alpha": 1}, factors
    )
    message = (
        "part='text_encoder_3' names a component that is absent: the base has no text_encoder_3, "
        "only text_encoder, text_encoder_2, unet. Pass one of these."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        jaxmix.load(folder, base=MODULES, part="text_encoder_3")
    assert jaxmix.load(folder, base=MODULES, part="unet").parts[0].sites == ("unet.q",)


def test_saved_mix_for_a_component(tmp_path: Path) -> None:
    """All parts of a mix are read for the component."""
    first, second = (save(tmp_path / f"{name}.safetensors", "mid.q") for name in "xy")
    folder = jaxmix.save(jaxmix.mix(jaxmix.load(first), jaxmix.load(second)), tmp_path / "mix")
    loaded = jaxmix.load(folder, base=MODULES, part="unet")
    assert [part.sites for part in loaded.parts] == [("unet.mid.q",)] * 2
    assert [part.name for part in loaded.parts] == ["x", "y"]


def test_folder_of_diffusers_weights(tmp_path: Path) -> None:
    """A training run's folder has the trainer's state next to the adapter."""
    save(tmp_path / "pytorch_lora_weights.safetensors", "unet.mid_block.attn.to_q")
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl", "README.md"):
        (tmp_path / name).write_bytes(b"x")
    loaded = jaxmix.load(tmp_path, base=MODULES)
    assert loaded.parts[0].sites == (MODULES[0],)
