"""PEFT's AdaLoRA."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import (
    ABOUT,
    AGAIN,
    MERGE,
    SAVED,
    WHERE,
    Fields,
    Kind,
    Refusal,
    Written,
)
from jaxmix.converters.adapters.peft.kinds.lora_config import LORA_HARMLESS, LORA_REFUSED
from jaxmix.converters.adapters.peft.patterns import number
from jaxmix.converters.adapters.peft.same import fan_in_fan_out, same
from jaxmix.converters.adapters.peft.shapes import Factors, need, shapes
from jaxmix.converters.adapters.peft.values import COUNT, FLAG, MASKS, NUMBER, one_of
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
    return AdaLoRA(a, b, e[:, 0], scale, transposed=file.transposed)


def _write(updates: Mapping[str, Any]) -> Written:
    """The largest rank is the first one; masks say which of it the other sites have kept."""
    ranks = {site: update.e.shape[0] for site, update in updates.items()}
    most = max(ranks.values())
    masks = {
        f"{site}.lora_E": [True] * rank + [False] * (most - rank)
        for site, rank in ranks.items()
        if rank < most
    }
    scale = same(updates, "lora_alpha", lambda update: number(update.scale))
    # An alpha of 0 or less PEFT takes for none, so it stands in the values.
    by = 1.0 if scale > 0 else scale
    scale = scale if scale > 0 else 1.0
    fields = {
        "fan_in_fan_out": fan_in_fan_out(updates),
        "init_r": most,
        "lora_alpha": scale * (most + 1e-5),
        "rank_pattern": masks or None,
        "target_r": most,
        "total_step": 1,
    }
    tensors = {}
    for site, update in updates.items():
        tensors |= {f"{site}.lora_A": update.a, f"{site}.lora_B": update.b}
        tensors[f"{site}.lora_E"] = update.e[:, None] if by == 1.0 else by * update.e[:, None]
    return Written(fields, tensors)


_FAMILY_ONLY = {
    "kasa_config": Refusal("PEFT's AdaLoRA has no KaSA", MERGE),
    "target_parameters": Refusal("PEFT's AdaLoRA has no experts", MERGE, is_off_when_empty=True),
    "trainable_token_indices": Refusal("AdaLoRA with trained tokens was not looked at", MERGE),
    "use_bdlora": Refusal("PEFT's AdaLoRA has no BD-LoRA", AGAIN),
    "use_dora": Refusal("PEFT's AdaLoRA has no DoRA", AGAIN),
    "use_qalora": Refusal("PEFT's AdaLoRA has no QALoRA", AGAIN),
}
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
            "qalora_group_size r target_r tfinal tinit total_step use_rslora".split()
        ),
        LORA_REFUSED | _FAMILY_ONLY,
    ),
    ("lora_A", "lora_B", "lora_E"),
    _build,
    _write,
)
