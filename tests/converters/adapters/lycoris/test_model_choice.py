"""The image model of an adapter is found by the names of its modules, its roles and its base."""

import pytest

from jaxmix.converters.adapters.lycoris.model_choice import chosen_model
from jaxmix.converters.adapters.lycoris.program import COMFYUI, DIFFUSERS, KOHYA, ORIGINAL, Program
from jaxmix.errors import LayoutError
from jaxmix.placement.naming import Names

from ....messages import full_text

# Modules that the U-Nets of Stable Diffusion 1.5 and XL have in common.
IN_BOTH = ("down_blocks.1.attentions.0.proj_in",)
ONLY_SD15 = ("down_blocks.0.attentions.0.proj_in",)
ONLY_SDXL = ("down_blocks.2.attentions.1.transformer_blocks.9.attn1.to_q",)


def chosen(
    modules: tuple[str, ...],
    *roles: str,
    program: Program = KOHYA,
    names: Names = None,
    base: tuple[str, ...] = (),
) -> str | None:
    """Returns the name of the model that is chosen."""
    shapes = dict.fromkeys(base, (2, 2))
    model = chosen_model(program, "style", modules, roles, names, shapes)
    return None if model is None else model.name


@pytest.mark.parametrize("program", [KOHYA, COMFYUI, DIFFUSERS, ORIGINAL], ids=lambda p: p.name)
def test_modules_of_a_single_model(program: Program) -> None:
    assert chosen(ONLY_SD15, program=program) == "sd15"
    assert chosen(ONLY_SDXL, program=program) == "sdxl"
    assert chosen(("transformer_blocks.0.attn.to_added_qkv",), program=program) is None


def test_ambiguous_modules_are_refused() -> None:
    """The blocks of the U-Nets have other numbers in the original names."""
    with pytest.raises(LayoutError) as caught:
        chosen(IN_BOTH)
    assert str(caught.value) == (
        "style: its modules (down_blocks.1.attentions.0.proj_in …) may be those of sd15 or "
        "sdxl, which have different names in files of kohya's scripts. Say which model it is: "
        "names='sd15', or pass its base: base=…."
    )


def test_second_text_encoder_decides() -> None:
    """Stable Diffusion 1.5 has none, and the refiner's is the second of the base model."""
    assert chosen(IN_BOTH, "unet", "te2") == "sdxl"


def test_other_modules_of_the_base_decide() -> None:
    assert chosen(IN_BOTH, base=IN_BOTH + ONLY_SDXL) == "sdxl"
    assert chosen(IN_BOTH, base=IN_BOTH + ONLY_SD15) == "sd15"


def test_base_with_unknown_names_decides_nothing() -> None:
    with pytest.raises(
        LayoutError,
        match=full_text(
            "style: its modules (down_blocks.1.attentions.0.proj_in …) "
            "may be those of sd15 or sdxl, which have different names in "
            "files of kohya's scripts. Say which model it is: "
            "names='sd15', or pass its base: base=…."
        ),
    ):
        chosen(IN_BOTH, base=("proj",))


def test_given_name_decides() -> None:
    """A single model is taken although no module fits; a table of several models is not."""
    assert chosen(IN_BOTH, names="sdxl") == "sdxl"
    assert chosen(("proj",), names="flux") == "flux"
    assert chosen(("proj",), names="unet") is None
    message = full_text(
        "there is no image or video model 'dalle', expected one of sd15, sdxl, sdxl_refiner, flux, "
        "flux2, hidream, hunyuan_video, ltx, lumina2, qwen_image, sd3, wan, z_image, the config of "
        "one of diffusers' models, or '' to write the adapter's names as they are."
    )
    with pytest.raises(LayoutError, match=message):
        chosen(IN_BOTH, names="dalle")


def test_models_with_equal_names_in_the_file_are_not_ambiguous() -> None:
    """Files for diffusers have its own names; only the text encoders of the models differ."""
    assert chosen(IN_BOTH, program=DIFFUSERS) in ("sd15", "sdxl")
    message = full_text(
        "style: its modules (down_blocks.1.attentions.0.proj_in …) may be those of sd15 or sdxl or "
        "sdxl_refiner, which have different names in files of diffusers. Say which model it is: "
        "names='sd15', or pass its base: base=…."
    )
    with pytest.raises(LayoutError, match=message):
        chosen(IN_BOTH, "te1", program=DIFFUSERS)
