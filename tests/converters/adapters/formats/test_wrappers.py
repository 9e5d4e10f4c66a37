"""Names of wrappers in the keys of single files and mlx-lm's folders."""

from typing import Any

import numpy as np
import pytest

import jaxmix
from jaxmix.errors import CheckpointError

from ....messages import full_text
from ..peft.folders import refused
from ..test_diffusers import ab
from ..test_mlx import SITE, folder
from .files import drawn, factors, kohya, save

KOHYA = "lora_unet_mid_attn_1_to_q"


@pytest.mark.parametrize(
    "module",
    [
        "_orig_mod.unet.mid.to_q",
        "unet._orig_mod.mid.to_q",
        "unet._fsdp_wrapped_module.mid._checkpoint_wrapped_module.to_q",
        "unet.module.mid.to_q",
        "module.unet.mid.to_q",
        "module._orig_mod.mid.to_q._orig_mod",
    ],
)
def test_wrappers_in_dotted_names(module, tmp_path):
    """Wrapper names are removed before and after the part's name, in each spelling."""
    for a, b in (("lora_A.weight", "lora_B.weight"), ("lora.down.weight", "lora.up.weight")):
        path = save(tmp_path / "x.safetensors", ab(module, a=a, b=b))
        assert jaxmix.load(path).sites == ("mid.to_q",)
        assert jaxmix.load(path, base=["mid.to_q", "other"]).sites == ("mid.to_q",)


@pytest.mark.parametrize("name", ["default", "default_0", "style"])
def test_adapter_name_in_dotted_names(name, tmp_path):
    """Any adapter name in the keys is removed; DoRA's magnitude may end in `weight`."""
    tensors = ab("unet.mid.to_q", a=f"lora_A.{name}.weight", b=f"lora_B.{name}.weight")
    tensors[f"unet.mid.to_q.lora_magnitude_vector.{name}.weight"] = drawn(6)
    update: Any = jaxmix.load(save(tmp_path / "x.safetensors", tensors)).updates["mid.to_q"]
    assert np.array_equal(update.magnitude, drawn(6))


def test_child_named_module_is_kept(tmp_path):
    """A child named `module` is kept if its part has other children."""
    path = save(tmp_path / "x.safetensors", ab("unet.module.to_q", "unet.up.module.to_q"))
    assert jaxmix.load(path).sites == ("module.to_q", "up.module.to_q")


def test_base_with_wrappers_keeps_its_names(tmp_path):
    """The sites have the base's own names, wrappers included."""
    base = ["_orig_mod.mid.attn_1.to_q", "up.module.to_q"]
    path = save(tmp_path / "x.safetensors", ab("unet.mid.attn_1.to_q", "unet.up.to_q"))
    assert jaxmix.load(path, base=base).sites == tuple(base)
    path = save(tmp_path / "y.safetensors", kohya("lora", KOHYA))
    assert jaxmix.load(path, base=base).sites == (base[0],)


@pytest.mark.parametrize(
    "name",
    [
        f"_orig_mod.{KOHYA}",
        f"module.{KOHYA}",
        "lora_unet__orig_mod_mid_attn_1_to_q",
        "lora_unet_mid__checkpoint_wrapped_module_attn_1_to_q",
    ],
)
def test_wrappers_in_kohya_names(name, tmp_path):
    """Wrapper names are removed in front of dots and between underscores."""
    path = save(tmp_path / "x.safetensors", kohya("lora", name))
    assert jaxmix.load(path, base=["mid.attn_1.to_q", "mid.attn_1"]).sites == ("mid.attn_1.to_q",)


def test_keys_equal_without_wrappers_are_refused(tmp_path):
    """All pairs of such keys are listed."""
    tensors = ab("unet.mid.to_q", "unet._orig_mod.mid.to_q")
    path = save(tmp_path / "x.safetensors", tensors)
    text = refused(CheckpointError, path)
    assert f"{path}: keys that differ only in the names of wrappers (such as _orig_mod and" in text
    for end in ("lora_A.weight", "lora_B.weight"):
        assert f"unet._orig_mod.mid.to_q.{end} and unet.mid.to_q.{end}" in text
    assert "Remove one key of each pair from the file." in text


def test_wrappers_in_mlx_names(tmp_path):
    """Wrapper names are removed from mlx-lm's keys."""
    tensors = {f"module.{SITE}.lora_a": drawn(4, 2), f"module.{SITE}.lora_b": drawn(2, 6)}
    assert jaxmix.load(folder(tmp_path, tensors)).sites == (SITE,)


def test_wrapped_peft_file_needs_its_config(tmp_path):
    """PEFT's file alone has no alpha, with or without wrappers."""
    tensors = {f"_orig_mod.base_model.model.mid.{k}": x for k, x in factors("lora").items()}
    tensors = {key: x for key, x in tensors.items() if not key.endswith("alpha")}
    path = save(tmp_path / "x.safetensors", tensors)
    with pytest.raises(
        jaxmix.errors.UnsupportedError,
        match=full_text(
            f"{tmp_path}/x.safetensors is a file of PEFT (base_model.model.…), "
            "whose alpha is in its config and not in the file. Pass the "
            "folder that contains it and its adapter_config.json."
        ),
    ):
        jaxmix.load(path)
