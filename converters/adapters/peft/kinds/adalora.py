"""PEFT's AdaLoRA."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.common.shapes import SiteTensors, describe_shapes, required
from jaxmix.converters.adapters.common.site_values import as_float
from jaxmix.converters.adapters.common.values import COUNT, FLAG, MASKS, NUMBER, one_of
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kinds.lora_config import LORA_HARMLESS, LORA_REFUSED
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    MERGE,
    RETRAIN,
    SAVED,
    WHERE,
    ConfigFields,
    PeftContent,
    PeftType,
    Refusal,
)
from jaxmix.converters.adapters.peft.same import equal_value, fan_in_fan_out
from jaxmix.errors import ShapeError
from jaxmix.families import AdaLoRA, Update

__all__ = ["PEFT_TYPE"]


def _build(file: File, site: str, factors: SiteTensors) -> Update:
    """AdaLoRA; the scale is alpha / (init_r + 1e-5), whatever the remaining rank.

    If alpha is 0 or negative, PEFT uses the remaining rank instead.
    """
    a, b, e = required(factors, "lora_A", "lora_B", "lora_E")
    init_r, alpha = file.config.values["init_r"], file.config.values["lora_alpha"]
    mask = (file.config.values.get("rank_pattern") or {}).get(f"{site}.lora_E")
    rank = init_r if mask is None else sum(mask)
    if (a.shape[:1], b.shape[1:], e.shape) != ((rank,), (rank,), (rank, 1)) or a.ndim != 2:
        expected = f"({rank}, in), (out, {rank}), ({rank}, 1)"
        raise ShapeError(f"{describe_shapes(factors)}, expected {expected} by the config")
    scale = (alpha if alpha > 0 else rank) / (init_r + 1e-5)
    return AdaLoRA(a, b, e[:, 0], scale, transposed=file.transposed)


def _write(updates: Mapping[str, Any]) -> PeftContent:
    """Writes the largest rank as init_r, and masks for sites with fewer ranks."""
    ranks = {site: update.e.shape[0] for site, update in updates.items()}
    most = max(ranks.values())
    masks = {
        f"{site}.lora_E": [True] * rank + [False] * (most - rank)
        for site, rank in ranks.items()
        if rank < most
    }
    scale = equal_value(updates, "lora_alpha", lambda update: as_float(update.scale))
    # PEFT ignores an alpha that is not positive, so it is multiplied into the values.
    factor = 1.0 if scale > 0 else scale
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
        tensors[f"{site}.lora_E"] = (
            update.e[:, None] if factor == 1.0 else factor * update.e[:, None]
        )
    return PeftContent(fields, tensors)


_FAMILY_ONLY = {
    "kasa_config": Refusal("PEFT's AdaLoRA has no KaSA", MERGE),
    "target_parameters": Refusal("PEFT's AdaLoRA has no experts", MERGE, is_off_when_empty=True),
    "trainable_token_indices": Refusal(
        "jaxmix does not support AdaLoRA with trained tokens", MERGE
    ),
    "use_bdlora": Refusal("PEFT's AdaLoRA has no BD-LoRA", RETRAIN),
    "use_dora": Refusal("PEFT's AdaLoRA has no DoRA", RETRAIN),
    "use_qalora": Refusal("PEFT's AdaLoRA has no QALoRA", RETRAIN),
}
# PEFT's AdaLoRA inherits LoRA's fields but ignores most of them: r, alpha_pattern, use_rslora,
# lora_bias and init_lora_weights.
PEFT_TYPE = PeftType(
    ConfigFields(
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
