"""The parts of a pipeline, by each program's prefixes."""

import pytest

from jaxmix.converters.adapters.lycoris.parts import (
    PARTS,
    PREFIXES,
    component_in,
    components_of,
    in_component,
    is_second,
    is_selected,
    missing_component,
    respell_module,
    role_of,
    spellings_of,
    split_component,
)

PIPELINE = ("transformer.proj", "text_encoder.q", "text_encoder_2.q")


@pytest.mark.parametrize("part", (*PREFIXES, *PARTS))
def test_every_prefix_has_a_role(part: str) -> None:
    """A ControlNet is the one model that is none of a pipeline's usual ones."""
    assert role_of(part) in ("unet", "te1", "te2", "te3", "controlnet")


def test_second_text_encoder_of_flux_is_its_third() -> None:
    """The same name has two roles: by itself that of SDXL, and in a pipeline also Flux's."""
    assert role_of("text_encoder_2") == "te2"
    assert component_in("lora_te3", PIPELINE) == "text_encoder_2"
    assert component_in("lora_te3", (*PIPELINE, "text_encoder_3.q")) == "text_encoder_3"


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        ("transformer_2.blocks.0", ("transformer_2", "blocks.0")),
        ("transformer.blocks.0", ("transformer", "blocks.0")),
        ("cond_stage_model.transformer.q", ("cond_stage_model.transformer", "q")),
        ("cond_stage_model.q", ("cond_stage_model", "q")),
        ("transformer", ("", "transformer")),  # a module of this name
        ("transformers.q", ("", "transformers.q")),
    ],
)
def test_longest_component_is_split_off(site: str, expected: tuple[str, str]) -> None:
    """And joined again."""
    component, module = split_component(site)
    assert (component, module) == expected
    assert (f"{component}.{module}" if component else module) == site


@pytest.mark.parametrize(
    ("part", "wanted", "parts", "expected"),
    [
        ("te1", None, (), True),
        ("lora_te1", "text_encoder", ("lora_te1",), True),  # of the same role
        ("lora_te1", "text_encoder_2", ("lora_te1",), False),
        ("text_encoder", "te1", ("text_encoder", "te1"), False),  # the prefix itself is there
        ("transformer", "lora_unet", ("transformer",), False),  # means keys with underscores
        ("lora_unet", "transformer_2", ("lora_unet",), True),
        ("unet", 3, ("unet",), False),
    ],
)
def test_part_selects_a_prefix_or_a_role(
    part: str, wanted: object, parts: tuple[str, ...], expected: bool
) -> None:
    """Whatever an edited recipe contains."""
    assert is_selected(part, wanted, parts) is expected


def test_second_model_is_only_selected_by_its_own_name() -> None:
    """It has the same role as the first one."""
    assert is_second("transformer_2") and not is_second("text_encoder_2")
    assert components_of("transformer_2") == ("transformer_2",)
    assert "transformer_2" not in components_of("unet")


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (PIPELINE, "transformer.x"),
        (("transformer.proj", "transformer.q"), "x"),  # a single model with such names
        (("text_encoder.q", "text_encoder_2.q"), "x"),  # no denoiser
    ],
)
def test_component_is_added_in_bases_of_several_models(
    modules: tuple[str, ...], expected: str
) -> None:
    """Once: a name that has it already stays."""
    assert in_component("lora_unet", "x", modules) == expected
    assert in_component("lora_unet", "unet.x", modules) == "unet.x"
    assert in_component("lora_unet", expected, modules) == expected


def test_missing_model_is_named() -> None:
    """If the base has several models, the message says which one is missing."""
    wanted = components_of("te3")
    assert missing_component(components_of("te1"), PIPELINE) == ""
    assert missing_component(wanted, ("transformer.h", "transformer.wte")) == ""
    assert missing_component(wanted, ("text_encoder.q", "transformer.q")) == (
        "the base has no text_encoder_3, only text_encoder, transformer"
    )


@pytest.mark.parametrize("separator", [".", "_"])
def test_clip_is_spelled_with_and_without_its_model(separator: str) -> None:
    """In both directions; T5 and denoisers have one spelling."""
    short, long = f"encoder{separator}q", f"text_model{separator}encoder{separator}q"
    assert respell_module("te1", short, separator) == (short, long)
    assert respell_module("lora_te2", long, separator) == (long, short)
    for part in ("te3", "unet", ""):
        assert respell_module(part, short, separator) == (short,)
    assert set(spellings_of("te2", short, separator)) == set(
        spellings_of("text_encoder_2", long, separator)
    )
