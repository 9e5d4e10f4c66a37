"""PEFT types that are refused, and the reasons."""

from difflib import get_close_matches

from jaxmix.converters.adapters.peft.kinds import PEFT_TYPES

__all__ = ["REFUSED_TYPES", "type_problem"]

_PROMPT = (
    "it adds tokens or key-value pairs to the input and changes no weight, so it can't be part of "
    "a mix of weights. Keep it in PEFT"
)
_ROUTED = (
    "it routes by input, token or task, which no fixed weight computes. Load the individual "
    "adapters and mix them with strengths"
)
_PARALLEL = "it runs a second network in parallel with the base. Keep it in PEFT"

REFUSED_TYPES: dict[str, str] = {
    name: reason
    for reason, names in {
        _PROMPT: "ADAPTION_PROMPT CARTRIDGE CPT MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING "
        "PROMPT_TUNING",
        _ROUTED: "LILY POLY XLORA",
        _PARALLEL: "SHADOW",
    }.items()
    for name in names.split()
}


def type_problem(family: str) -> str:
    """Returns why a ``peft_type`` is refused, and what to do."""
    if family in REFUSED_TYPES:
        return f"peft_type {family!r} is refused: {REFUSED_TYPES[family]}."
    near = get_close_matches(family.upper(), PEFT_TYPES, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"peft_type {family!r} is unknown, expected one of {', '.join(PEFT_TYPES)}.{hint}"
