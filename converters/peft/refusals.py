"""What is refused and why: types of adapters, initialisations, PEFT's older OFT."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from jaxmix.converters.peft.fields import FAMILY_FIELDS

__all__ = ["REFUSED_TYPES", "init_problem", "oft_problem", "type_problem"]

_PROMPT = (
    "it adds tokens or key-value pairs to the input and changes no weight, so it can't be part of "
    "a mix of weights. Keep it in PEFT"
)
_ROUTED = (
    "it routes by input, token or task: no fixed weight computes that. Load the single adapters "
    "and mix them with strengths"
)
_PARALLEL = "it runs a parallel network beside the base. Keep it in PEFT"
_LATER = (
    "it changes weights, but this version of jaxmix does not read it yet. Merge it with PEFT "
    "(merge_and_unload) and use the merged model as the base"
)

REFUSED_TYPES: dict[str, str] = {
    name: why
    for why, names in {
        _PROMPT: "ADAPTION_PROMPT CARTRIDGE CPT MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING "
        "PROMPT_TUNING",
        _ROUTED: "LILY POLY XLORA",
        _PARALLEL: "SHADOW",
        # BONE was dropped by PEFT 0.19 in favour of MISS.
        _LATER: "ADAMSS BEFT BOFT BONE C3A DEFT DELORA FOURIERFT FROD GLORA GRALORA HIRA HRA IA3 "
        "LN_TUNING MISS OSF PEANUT PSOFT PVERA RANDLORA ROAD SUPERTUNING TINYLORA TRAINABLE_TOKENS "
        "UNILORA VBLORA VERA WAVEFT",
    }.items()
    for name in names.split()
}

# What `init_lora_weights` may be and leave the base as it was: these choose the factors only (EVA
# from activations, MiCA from the base's singular vectors). The others take something off the base
# when PEFT makes the layer.
_MILD_INITS = ("eva", "gaussian", "mica", "orthogonal")
_BASE_INITS = ("corda", "lora_ga", "olora", "pissa")
_CONVERT = (
    "Save it as a plain LoRA with PEFT: model.save_pretrained(…, "
    "path_initial_model_for_weight_conversion=folder), where folder is the adapter's as it was "
    "before training (for 'pissa' and 'olora' get_peft_model on the base makes it again)."
)


def type_problem(family: str) -> str:
    """Why a ``peft_type`` is refused, and what to do."""
    if family in REFUSED_TYPES:
        return f"peft_type {family!r} is refused: {REFUSED_TYPES[family]}."
    near = get_close_matches(family.upper(), FAMILY_FIELDS, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"peft_type {family!r} is unknown, expected one of {', '.join(FAMILY_FIELDS)}.{hint}"


def init_problem(init: Any) -> str | None:
    """Why a LoRA's ``init_lora_weights`` is refused: its factors fit only a changed base."""
    said = f"init_lora_weights = {init!r}"
    name = str(init).lower()
    if init is None or isinstance(init, bool) or name in _MILD_INITS:
        return None
    if name == "loftq":
        why = "LoftQ replaced the base's weights by quantized ones, and the factors fit only those"
        todo = "Merge it with PEFT (merge_and_unload) and use the merged model as the base."
        return f"{said}: {why}. {todo}"
    if name.startswith(_BASE_INITS):
        return f"{said}: it took the initial factors' product off the base's weights. {_CONVERT}"
    return f"{said}: unknown; it may have changed the base's weights. {_CONVERT}"


def oft_problem(values: Mapping[str, Any]) -> str | None:
    """Why an OFT of an older PEFT is refused: twice its formula changed.

    Up to 0.13 it rotated the output; 0.14 and 0.15 had other tensors; 0.16 and 0.17 counted the
    last term of the series twice. Only from 0.18 on does the config say the version.
    """
    if "oft_block_size" not in values:
        why = "saved by peft 0.13 or older, whose OFT rotates the output side"
        return f"oft_block_size is missing: {why}. Merge it with that version of PEFT."
    if "use_cayley_neumann" not in values:
        why = "saved by peft 0.14 or 0.15, whose OFT is another formula with other tensors"
        return f"use_cayley_neumann is missing: {why}. Merge it with that version of PEFT."
    version = values.get("peft_version")
    if values["use_cayley_neumann"] and _numbers(version) < (0, 18):
        why = "before peft 0.18 the Cayley-Neumann series counted its last term twice"
        said = f"use_cayley_neumann = true with peft_version = {version!r}"
        return f"{said}: {why}. Merge it with peft 0.17, or train it again."
    return None


def _numbers(version: Any) -> tuple[int, ...]:
    """The leading numbers of a version; nothing is the oldest."""
    found = re.match(r"(\d+)\.(\d+)", version) if isinstance(version, str) else None
    return tuple(int(part) for part in found.groups()) if found else (0,)
