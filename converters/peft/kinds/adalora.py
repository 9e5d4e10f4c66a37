"""PEFT's AdaLoRA."""

from jaxmix.converters.peft.file import File
from jaxmix.converters.peft.kind import ABOUT, AGAIN, SAVED, WHERE, Fields, Kind, Refusal
from jaxmix.converters.peft.kinds.lora import LORA_HARMLESS, LORA_REFUSED
from jaxmix.converters.peft.shapes import Factors, need, shapes
from jaxmix.converters.peft.values import COUNT, FLAG, MASKS, NUMBER, one_of
from jaxmix.errors import ShapeError
from jaxmix.families import AdaLoRA, Update

__all__ = ["KIND"]


def _build(file: File, site: str, factors: Factors) -> Update:
    """AdaLoRA: the scale is alpha / (init_r + 1e-5), whatever rank is left.

    PEFT takes the rank that is left for an alpha of 0 or less.
    """
    a, b, e = need(factors, "lora_A", "lora_B", "lora_E")
    init_r, alpha = file.config.values["init_r"], file.config.values["lora_alpha"]
    mask = (file.config.values.get("rank_pattern") or {}).get(f"{site}.lora_E")
    rank = init_r if mask is None else sum(mask)
    if (a.shape[:1], b.shape[1:], e.shape) != ((rank,), (rank,), (rank, 1)) or a.ndim != 2:
        expected = f"({rank}, in), (out, {rank}), ({rank}, 1)"
        raise ShapeError(f"{shapes(factors)}, expected {expected} by the config")
    scale = (alpha if alpha > 0 else rank) / (init_r + 1e-5)
    return AdaLoRA(a, b, e[:, 0], scale, transposed=file.config.flag("fan_in_fan_out"))


# PEFT's AdaLoRA inherits LoRA's fields and reads few of them: no r, no alpha_pattern, no rslora, no
# bias of its own, and no init but its own.
KIND = Kind(
    Fields(
        {
            "bias": one_of("none", "all", "lora_only"),
            "fan_in_fan_out": FLAG,
            "init_r": COUNT,
            "lora_alpha": NUMBER,
            "rank_pattern": MASKS,
            **SAVED,
        },
        ABOUT
        | WHERE
        | LORA_HARMLESS
        | frozenset(
            "alpha_pattern beta1 beta2 deltaT init_lora_weights lora_bias orth_reg_weight "
            "r target_r tfinal tinit total_step use_rslora".split()
        ),
        LORA_REFUSED | {"use_dora": Refusal("PEFT's AdaLoRA has no DoRA", AGAIN)},
    ),
    ("lora_A", "lora_B", "lora_E"),
    _build,
)
