"""Programs that read adapters."""

import pytest

from jaxmix.converters.adapters.lycoris.parts import role_of, split_component
from jaxmix.converters.adapters.lycoris.program import (
    CLIP_MODULES,
    COMFYUI,
    DIFFUSERS,
    KOHYA,
    ORIGINAL,
    OTHER_CLIP,
    Program,
)
from jaxmix.converters.names.images.models import image_models


@pytest.mark.parametrize("program", [COMFYUI, DIFFUSERS, KOHYA, ORIGINAL], ids=lambda p: p.name)
def test_prefixes_are_read_back_as_their_roles(program: Program) -> None:
    """What is written for a program is read as the same text encoder."""
    for role, prefix in (*program.text.items(), *OTHER_CLIP.items()):
        assert role_of(prefix) == role
        if program is not KOHYA:
            assert split_component(f"{prefix}.q") == (prefix, "q")
    if program.picture:
        assert role_of(program.picture) == "unet"


def test_only_kohya_renames_its_unets() -> None:
    """Its scripts load Stable Diffusion under diffusers' names."""
    models = {model.name: model for name in ("unet", "flux") for model in image_models(name)}
    renamed = [model for model in models.values() if model.is_renamed_by_kohya]
    others = [model for model in models.values() if not model.is_renamed_by_kohya]
    assert renamed and others
    for model in models.values():
        assert COMFYUI.has_original_names(model) and ORIGINAL.has_original_names(model)
        assert not DIFFUSERS.has_original_names(model)
        assert KOHYA.has_original_names(model) is (model in others)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("text_model.encoder.layers.0.self_attn.q_proj", True),
        ("text_model.encoder.layers.0.mlp.fc2", True),
        ("text_model.embeddings.token_embedding", False),
        ("encoder.block.0.layer.0.SelfAttention.q", False),
        ("text_model.encoder.layers.0.mlp.fc10", False),
    ],
)
def test_modules_that_comfyui_has_by_component(module: str, expected: bool) -> None:
    """CLIP's linear layers; T5's have other names."""
    assert bool(CLIP_MODULES.fullmatch(module)) is expected
