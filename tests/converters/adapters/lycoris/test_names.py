"""Names with underscores for dots, as the base's modules."""

from typing import Any

import numpy as np
import pytest

from jaxmix.converters.adapters.lycoris.names import best_other_names, match_modules
from jaxmix.errors import CheckpointError

from ....messages import full_text

BASE = ("mid.attn_1.to_q", "mid.attn.1_to_q", "mid.attn_1.to_k", "proj_out")


def lora(number: float = 1.0) -> dict[str, Any]:
    """Returns the tensors of a LoRA."""
    return {"lora_down.weight": np.full((1, 3), number), "lora_up.weight": np.ones((2, 1))}


def test_underscores_match_dots_and_underscores() -> None:
    """An underscore at the end, as some trainers add, is ignored."""
    wanted = {"a": ("unet", "mid_attn_1_to_k"), "b": ("unet", "proj_out_")}
    assert match_modules(wanted, BASE, "x") == {"a": "mid.attn_1.to_k", "b": "proj_out"}
    assert match_modules({}, BASE, "x") == {}


def test_component_is_chosen_by_the_role() -> None:
    """The same name in two models of a pipeline."""
    base = ("unet.proj", "text_encoder.proj", "text_encoder_2.proj")
    wanted = {role: (role, "proj") for role in ("unet", "te1", "te2")}
    assert match_modules(wanted, base, "x") == dict(zip(wanted, base, strict=True))


def test_second_name_of_a_module_is_dropped_if_it_is_a_copy() -> None:
    """With other tensors, or without a look at them, it is an error."""
    wanted = {"one": ("unet", "proj_out"), "two": ("unet", "proj_out_")}
    tensors = {"one": lora(), "two": lora()}
    assert match_modules(wanted, BASE, "x", tensors) == {"one": "proj_out"}
    for other in (None, {**tensors, "two": lora(2.0)}):
        with pytest.raises(CheckpointError) as caught:
            match_modules(wanted, BASE, "x", other)
        assert "\n  two: is proj_out, and so is one\n" in str(caught.value)


def test_problems_of_all_names_are_listed() -> None:
    """Names of several modules, of none, and of a model that the base lacks."""
    wanted = {
        "q": ("unet", "mid_attn_1_to_q"),
        "v": ("unet", "mid_attn_1_to_v"),
    }
    message = full_text(
        "x: names with underscores for dots that the base does not resolve:\n"
        "  q: may be mid.attn_1.to_q or mid.attn.1_to_q\n"
        "  v: no module of this name\n"
        "Expected each to match exactly one of the base's 4 modules (mid.attn.1_to_q, "
        "mid.attn_1.to_k, mid.attn_1.to_q …). Was the adapter trained on another model, or does "
        "the file use other names for its modules? If the file covers several models, select one "
        "with part='…', the prefix of its names."
    )
    with pytest.raises(CheckpointError, match=message):
        match_modules(wanted, BASE, "x")
    base = ("transformer.proj", "text_encoder.proj")
    with pytest.raises(CheckpointError) as caught:
        match_modules({"q": ("te2", "proj")}, base, "x")
    line = "\n  q: the base has no text_encoder_2, only text_encoder, transformer\n"
    assert line in str(caught.value)


def test_other_schemes_are_searched_only_if_needed() -> None:
    """Unknown modules have no other names."""
    assert best_other_names({}, BASE) == {}
    assert best_other_names({"q": ["mid_attn"]}, BASE) == {}
