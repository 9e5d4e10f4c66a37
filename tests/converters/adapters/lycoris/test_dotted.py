"""Keys with dots, and their sites."""

from typing import Any

import numpy as np
import pytest

from jaxmix.converters.adapters.lycoris.dotted import (
    PartModule,
    match_sites,
    modernize_key,
    split_part,
    tensors_by_module,
)
from jaxmix.errors import CheckpointError, UnsupportedError

from ....messages import full_text

DOWN, UP = np.arange(6.0).reshape(2, 3), np.ones((4, 2))


def lora(*modules: str, ends: tuple[str, str] = ("lora_A.weight", "lora_B.weight")) -> Any:
    """Returns the keys of LoRAs."""
    return {f"{m}.{end}": x for m in modules for end, x in zip(ends, (DOWN, UP), strict=True)}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a.attn1.processor.to_q_lora.down.weight", "a.attn1.to_q.lora.down.weight"),
        ("a.attn1.processor.to_out_lora.up.weight", "a.attn1.to_out.0.lora.up.weight"),
        ("text_encoder.l.self_attn.to_out_lora.up.weight",
         "text_encoder.l.self_attn.out_proj.lora.up.weight"),
        ("b.processor.qkv_lora1.down.weight", "b.processor.qkv_lora1.lora.down.weight"),
        ("a.to_q.lora_A.weight", "a.to_q.lora_A.weight"),
    ],
)  # fmt: skip
def test_keys_of_old_diffusers_get_the_later_form(key: str, expected: str) -> None:
    """All others stay as they are."""
    assert modernize_key(key) == expected


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("transformer_2.q", ("transformer_2", "q")),
        ("model.diffusion_model.q", ("model.diffusion_model", "q")),
        ("cond_stage_model.transformer.q", ("cond_stage_model.transformer", "q")),
        ("unetx.q", ("", "unetx.q")),
        ("unet", ("", "unet")),
    ],
)
def test_part_is_a_whole_prefix(module: str, expected: tuple[str, str]) -> None:
    """Only if a module follows."""
    assert split_part(module) == expected


def test_tensors_are_grouped_under_lycoris_names() -> None:
    """Two spellings of one key may be there if they are equal."""
    tensors = {**lora("unet.q"), **lora("unet.q", ends=("lora.down.weight", "lora.up.weight"))}
    (place, factors), *others = tensors_by_module(tensors, "x", None).items()
    assert place == PartModule("unet", "q") and not others
    assert factors == {"lora_down.weight": DOWN, "lora_up.weight": UP}
    message = full_text(
        "x: unknown keys in an adapter file:\n  unet.q.bias: unknown parameter\n"
        "  unet.q.lora.up.weight: a duplicate of lora_up.weight\n"
        "Expected <module>.<parameter>, with parameters such as lora_A.weight, lora_down.weight, "
        "lokr_w1, hada_w1_a, alpha."
    )
    wrong = {"unet.q.bias": UP, **tensors, "unet.q.lora.up.weight": 2 * UP}
    with pytest.raises(CheckpointError, match=message):
        tensors_by_module(wrong, "x", None)


def test_part_selects_modules() -> None:
    """By the prefix, or by another name of the same model; a part that is absent is an error."""
    tensors = lora("unet.q", "text_encoder.k", "v")
    assert list(tensors_by_module(tensors, "x", "text_encoder")) == [("text_encoder", "k")]
    assert list(tensors_by_module(tensors, "x", "te1")) == [("text_encoder", "k")]
    message = "x has no keys for part='te2', expected one of '', text_encoder, unet."
    with pytest.raises(CheckpointError, match=full_text(message)):
        tensors_by_module(tensors, "x", "te2")


def test_file_of_peft_needs_its_alpha() -> None:
    """Those of image models have an alpha equal to the rank; others have it in their config."""
    text, image = (f"base_model.model.{module}" for module in ("layers.0.q_proj", "mid.to_q"))
    assert tensors_by_module(lora(image), "x", None).keys() == {PartModule("", "mid.to_q")}
    with_alpha = {**lora(text), f"{text}.alpha": np.ones(())}
    assert len(tensors_by_module(with_alpha, "x", None)) == 1
    dense = {f"{text}.diff": UP}  # has no scale
    assert len(tensors_by_module(dense, "x", None)) == 1
    message = full_text(
        "x is a file of PEFT (base_model.model.…), whose alpha is in its config and not in the "
        "file. Pass the folder that contains it and its adapter_config.json."
    )
    with pytest.raises(UnsupportedError, match=message):
        tensors_by_module(lora(text), "x", None)


def sites(
    *places: tuple[str, str], modules: tuple[str, ...] | None = None, tensors: Any = None
) -> list[str]:
    """Returns the sites of these modules."""
    found = {PartModule(*place): tensors or {"diff": UP} for place in places}
    return list(match_sites(found, modules, "x").values())


def test_part_is_kept_without_a_base_only_if_it_tells_something() -> None:
    """Of several parts, and of OpenCLIP's names, which several models have."""
    assert sites(("unet", "q"), ("unet", "k")) == ["q", "k"]
    assert sites(("unet", "q"), ("te1", "k")) == ["unet.q", "te1.k"]
    open_clip = ("conditioner.embedders.1.model", "q")
    assert sites(open_clip) == [".".join(open_clip)]


@pytest.mark.parametrize(
    ("place", "modules", "expected"),
    [
        (("unet", "mid.to_q"), ("mid.to_q",), "mid.to_q"),
        (("unet", "mid.to_q"), ("unet.mid.to_q", "te1.mid.to_q"), "unet.mid.to_q"),
        (("diffusion_model", "q"), ("transformer.q", "text_encoder.q"), "transformer.q"),
        (("unet", "mid_attn.to_q"), ("mid.attn.to_q",), "mid.attn.to_q"),  # an underscore for a dot
        (("text_encoder", "encoder.q"), ("text_model.encoder.q",), "text_model.encoder.q"),
    ],
)
def test_base_determines_the_full_name(
    place: tuple[str, str], modules: tuple[str, ...], expected: str
) -> None:
    """With or without the part, or with another name of it."""
    assert sites(place, modules=modules) == [expected]


def test_modules_that_share_a_site_must_be_equal() -> None:
    """Of one model, and with the same tensors; otherwise both are named."""
    modules = ("mid.to_q",)
    places = {PartModule(part, "mid.to_q"): {"diff": UP} for part in ("unet", "transformer")}
    assert len(match_sites(places, modules, "x")) == 1
    places[PartModule("transformer", "mid.to_q")] = {"diff": 2 * UP}
    message = full_text(
        "x: names that do not match exactly one module of the base:\n"
        "  mid.to_q: claimed by unet and transformer\n"
        "Expected the names of the base's modules (mid.to_q …). Was the adapter trained on another "
        "model, or does the file use other names for its modules? If the file covers several "
        "models, select one with part='…', the prefix of its names."
    )
    with pytest.raises(CheckpointError, match=message):
        match_sites(places, modules, "x")
