"""Programs that read adapters, and the prefixes that each gives to a pipeline's components."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from jaxmix.converters.names.images.models import ImageModel

__all__ = [
    "CLIP_MODULES",
    "COMFYUI",
    "COMFYUI_TEXT",
    "DIFFUSERS",
    "KOHYA",
    "ORIGINAL",
    "OTHER_CLIP",
    "Program",
]


@dataclass(frozen=True)
class Program:
    """A program that reads adapters.

    Args:
        name: Its name in messages.
        is_original: Whether it uses the original project's names of modules, not diffusers'.
        picture: The prefix of the denoiser's modules; None for the component's name in diffusers.
        text: The prefixes of the text encoders' modules, by role.
    """

    name: str
    is_original: bool
    picture: str | None
    text: Mapping[str, str]

    def has_original_names(self, model: ImageModel) -> bool:
        """Returns whether it uses the original names of a model's modules.

        Args:
            model: The model.
        """
        return self.is_original and not (self.picture == "lora_unet" and model.is_renamed_by_kohya)


COMFYUI_TEXT = {
    "te1": "text_encoder",
    "te2": "text_encoder_2",
    "te3": "text_encoders.t5xxl.transformer",
}
# ComfyUI has these of CLIP's modules by diffusers' component, whichever CLIP it is.
CLIP_MODULES = re.compile(r".*\.(mlp\.fc[12]|self_attn\.(q|k|v|out)_proj)")
OTHER_CLIP = {
    "te1": "text_encoders.clip_l.transformer",
    "te2": "text_encoders.clip_g.transformer",
}

COMFYUI = Program("ComfyUI", True, "diffusion_model", COMFYUI_TEXT)
DIFFUSERS = Program(
    "diffusers",
    False,
    None,
    {"te1": "text_encoder", "te2": "text_encoder_2", "te3": "text_encoder_3"},
)
KOHYA = Program(
    "kohya's scripts",
    True,
    "lora_unet",
    {"te1": "lora_te1", "te2": "lora_te2", "te3": "lora_te3"},
)
ORIGINAL = Program("the original project", True, "", COMFYUI_TEXT)
