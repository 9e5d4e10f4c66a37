"""PEFT's LoHa."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.common.shapes import (
    SiteTensors,
    check_cores,
    check_ranks,
    describe_shapes,
    required,
)
from jaxmix.converters.adapters.common.site_values import ranks_and_alphas
from jaxmix.converters.adapters.common.values import COUNT, NUMBER
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    RANK_PATTERNS,
    SAVED,
    WHERE,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.errors import CheckpointError
from jaxmix.families import LoHa, Update

__all__ = ["LYCORIS", "LYCORIS_HARMLESS", "PEFT_TYPE"]

# The fields that PEFT's LoHa and LoKr have in common. The keys determine the form of the factors,
# so use_effective_conv2d and decompose_* are not needed.
LYCORIS = {"alpha": NUMBER, "r": COUNT, **SAVED, **RANK_PATTERNS}
LYCORIS_HARMLESS = frozenset(
    "init_weights module_dropout rank_dropout use_effective_conv2d".split()
)


def _build(file: File, site: str, factors: SiteTensors) -> Update:
    """LoHa; with Tucker cores for a convolution with use_effective_conv2d."""
    b1, a1, b2, a2 = required(factors, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    t1, t2 = factors.get("hada_t1"), factors.get("hada_t2")
    rank = file.config.by_site("rank_pattern", "r", site)
    if (t1 is None) != (t2 is None):
        raise CheckpointError(
            f"one of hada_t1 and hada_t2 is missing; found {describe_shapes(factors)}"
        )
    columns = 1 if t1 is None else 0
    axes = {f"hada_w{i}_{x}": (2, columns if x == "a" else 0) for i in "12" for x in "ab"}
    check_ranks(factors, axes, rank)
    check_cores(factors, ("hada_t1", "hada_t2"), rank)
    scale = file.config.by_site("alpha_pattern", "alpha", site) / rank
    kernel = () if t1 is None else t1.shape[2:]
    return LoHa(b1, a1, b2, a2, scale, t1, t2, kernel=kernel)


def _write(updates: Mapping[str, Any]) -> PeftContent:
    """Sets use_effective_conv2d, one flag for all sites, if an update has cores."""
    tensors, ranks = {}, {}
    for site, up in updates.items():
        named = {"w1_a": up.b1, "w1_b": up.a1, "w2_a": up.b2, "w2_b": up.a2, "t1": up.t1}
        named["t2"] = up.t2
        tensors |= {f"{site}.hada_{name}": f for name, f in named.items() if f is not None}
        ranks[site] = up.a1.shape[0]
    fields = ranks_and_alphas(ranks, {site: up.scale for site, up in updates.items()})
    is_effective = any(up.t1 is not None for up in updates.values())
    return PeftContent({**fields, "use_effective_conv2d": is_effective}, tensors)


PEFT_TYPE = PeftType(
    ConfigFields(dict(LYCORIS), ABOUT | WHERE | LYCORIS_HARMLESS),
    ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    _build,
    _write,
)
