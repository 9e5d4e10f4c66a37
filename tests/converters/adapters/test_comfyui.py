"""Files for ComfyUI: prefixes, kept names, and norms that it does not find."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxmix
from jaxmix.converters.adapters.comfyui import export_comfyui, export_original
from jaxmix.errors import UnsupportedError
from jaxmix.families import Delta, LoRA, Normed

from ...messages import full_text

ONE = LoRA(np.ones((1, 4), np.float32), np.ones((6, 1), np.float32), 1.0)


def modules(file: Path) -> list[str]:
    """Returns the modules in a file, without the ends of the tensors' names."""
    return sorted(
        name.removesuffix(".alpha") for name in load_file(file) if name.endswith(".alpha")
    )


@pytest.mark.parametrize(
    ("site", "comfyui"),
    [
        ("a.b_c", "diffusion_model.a.b_c"),
        ("text_encoder.h.0.mlp.fc1", "text_encoder.h.0.mlp.fc1"),
        # Of CLIP's modules ComfyUI has only those of attention and the MLP by this prefix.
        ("text_encoder_2.a", "text_encoders.clip_g.transformer.a"),
        ("text_encoder_3.a", "text_encoders.t5xxl.transformer.a"),
    ],
)
def test_names_have_the_prefix_of_their_component(site: str, comfyui: str, tmp_path: Path) -> None:
    """Only a model that ComfyUI knows has other names; the original project has no prefix."""
    adapter = jaxmix.Adapter({site: ONE})
    assert modules(export_comfyui(adapter, tmp_path / "c.safetensors", names="")) == [comfyui]
    original = comfyui.removeprefix("diffusion_model.")
    assert modules(export_original(adapter, tmp_path / "o.safetensors", names="")) == [original]
    other = export_comfyui(adapter, tmp_path / "x.safetensors", names="", prefix="model")
    assert modules(other) == ["model.a.b_c" if site == "a.b_c" else comfyui]


@pytest.mark.parametrize(
    ("model", "norm"),
    [
        ("flux", "double_blocks.0.img_attn.norm.key_norm"),
        ("flux2", "single_blocks.0.norm.query_norm"),
        ("hunyuan_video", "double_blocks.0.txt_attn_k_norm"),
    ],
)
def test_norms_with_other_names_are_refused(model: str, norm: str, tmp_path: Path) -> None:
    """Their tensor is called `scale`; the original project's file may have them."""
    adapter = jaxmix.Adapter({norm: Delta(np.ones(4, np.float32))}, name="style")
    message = (
        "style: updates that ComfyUI can't apply:\n"
        f"  {norm}: a norm that ComfyUI does not find by its name\n"
        "jaxmix.to_lora(adapter, params) makes a LoRA of rotations; norms must be left out."
    )
    with pytest.raises(UnsupportedError, match=full_text(message)):
        export_comfyui(adapter, tmp_path / "x.safetensors", names=model)
    assert not list(tmp_path.iterdir())
    export_original(adapter, tmp_path / "x.safetensors", names=model)


def test_only_norms_by_output_differ(tmp_path: Path) -> None:
    """A norm by input is computed alike, so there is no warning."""
    by_input: Any = Normed(ONE, np.ones(4, np.float32), axis="in")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_comfyui(jaxmix.Adapter({"x": by_input}), tmp_path / "x.safetensors", names="")
    by_output = Normed(ONE, np.ones(6, np.float32), axis="out")
    message = (
        "adapter: ComfyUI divides DoRA's magnitude by the norm of W, not of W + Δ, so its result "
        "differs at:\n  x\nA LoRA is exact up to its rank: jaxmix.to_lora(adapter, params)."
    )
    with pytest.warns(UserWarning, match=full_text(message)):
        export_comfyui(jaxmix.Adapter({"x": by_output}), tmp_path / "y.safetensors", names="")
