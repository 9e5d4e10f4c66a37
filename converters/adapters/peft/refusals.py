"""The types of adapters that are refused, and why."""

from difflib import get_close_matches

from jaxmix.converters.adapters.peft.kinds import KINDS

__all__ = ["REFUSED_TYPES", "type_problem"]

_PROMPT = (
    "it adds tokens or key-value pairs to the input and changes no weight, so it can't be part of "
    "a mix of weights. Keep it in PEFT"
)
_ROUTED = (
    "it routes by input, token or task: no fixed weight computes that. Load the single adapters "
    "and mix them with strengths"
)
_PARALLEL = "it runs a parallel network beside the base. Keep it in PEFT"

REFUSED_TYPES: dict[str, str] = {
    name: why
    for why, names in {
        _PROMPT: "ADAPTION_PROMPT CARTRIDGE CPT MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING "
        "PROMPT_TUNING",
        _ROUTED: "LILY POLY XLORA",
        _PARALLEL: "SHADOW",
    }.items()
    for name in names.split()
}


def type_problem(family: str) -> str:
    """Why a ``peft_type`` is refused, and what to do."""
    if family in REFUSED_TYPES:
        return f"peft_type {family!r} is refused: {REFUSED_TYPES[family]}."
    near = get_close_matches(family.upper(), KINDS, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"peft_type {family!r} is unknown, expected one of {', '.join(KINDS)}.{hint}"
