"""Image models by name, by config, and by the modules that they have."""

import pytest

from jaxmix.converters.names.images.models import fitting_models, image_models
from jaxmix.errors import LayoutError

from ....messages import full_text

MODELS = {model.name: model for model in image_models()}


def named(*names: str) -> list[str]:
    """Returns the names of the models that have the most of some modules."""
    return [model.name for model in fitting_models(MODELS.values(), names)]


def test_models_are_chosen_by_any_of_their_names() -> None:
    """A version, a table with several models, or diffusers' class."""
    unets = ["sd15", "sdxl", "sdxl_refiner"]
    for names, expected in (
        ("sd21", ["sd15"]),
        ("chroma", ["flux"]),
        ("unet", unets),
        ({"_class_name": "UNet2DConditionModel"}, unets),
        ({"_class_name": "SD3Transformer2DModel"}, ["sd3"]),
        (None, list(MODELS)),
    ):
        assert [model.name for model in image_models(names)] == expected


@pytest.mark.parametrize(
    ("names", "shown"), [("sd9", "'sd9'"), ({"_class_name": "Mine"}, "'Mine'"), ({}, "None")]
)
def test_unknown_model_lists_the_known(names: dict[str, str] | str, shown: str) -> None:
    message = (
        f"there is no image or video model {shown}, expected one of {', '.join(MODELS)}, the "
        "config of one of diffusers' models, or '' to write the adapter's names as they are."
    )
    with pytest.raises(LayoutError, match=full_text(message)):
        image_models(names)


def test_unets_are_told_apart_by_their_blocks() -> None:
    """By either name; a module that no U-Net of a version has decides."""
    inside, transformer = "down_blocks.1.attentions.0.", "transformer_blocks.{}.attn1.to_q"
    assert named(f"{inside}{transformer.format(0)}") == ["sd15", "sdxl", "sdxl_refiner"]
    assert named(f"{inside}{transformer.format(1)}") == ["sdxl", "sdxl_refiner"]
    assert named(f"down_blocks.0.attentions.0.{transformer.format(0)}") == ["sd15"]
    assert named(f"input_blocks.1.1.{transformer.format(0)}") == ["sd15"]


def test_original_names_are_those_of_the_project_alone() -> None:
    """A module that has one name in both schemes is not."""
    flux = MODELS["flux"]
    given = ["double_blocks.0.img_attn.qkv", "transformer_blocks.0.attn.to_q", "nothing.0"]
    assert [flux.is_original(name) for name in given] == [True, False, False]
    assert [flux.has(name) for name in given] == [True, True, False]


def test_models_must_have_half_of_the_modules() -> None:
    """Some names, such as proj_out, are those of many models."""
    assert "flux" in named("proj_out") and len(named("proj_out")) > 1
    assert named("transformer_blocks.0.attn.to_added_q_proj", "x", "y") == []
    assert named("double_blocks.0.img_attn.qkv", "x") == named("double_blocks.0.img_attn.qkv")
    assert fitting_models([], ["x"]) == []
