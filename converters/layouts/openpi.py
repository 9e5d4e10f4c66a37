r"""openpi: the two Gemmas of π₀, with layers stacked along the first axis, by openpi's own names.

A site is a leaf of one layer: ``PaliGemma.llm.layers.3.attn.kv_einsum`` is (2, K, D, H), the keys
and values of all heads in one matrix. The names of the second expert's leaves end in ``_1``.
Source: ``src/openpi/models/gemma.py`` and ``lora.py``, at the main branch of November 2026.
"""

from jaxmix.converters.layouts.naming import KERNEL, with_prefixes
from jaxmix.placement.layout import Layout, Rule

__all__ = ["TABLES"]

_LAYER = r"(.*layers)\.(\d+)\."
_EINSUMS = {
    "q_einsum": "n d h -> (n h) d",
    "kv_einsum": "c k d h -> (c k h) d",
    "qkv_einsum": "c k d h -> (c k h) d",
    "attn_vec_einsum": "n h d -> d (n h)",
}

_RULES = (
    *(
        Rule(rf"{_LAYER}attn\.({name}(?:_\d+)?)", r"\1.attn.\3.w", axes, r"\2")
        for name, axes in _EINSUMS.items()
    ),
    Rule(
        rf"{_LAYER}(mlp(?:_\d+)?)\.gating_einsum",
        r"\1.\3.gating_einsum",
        "c d f -> (c f) d",
        r"\2",
    ),
    Rule(rf"{_LAYER}(mlp(?:_\d+)?)\.linear", r"\1.\3.linear", KERNEL, r"\2"),
)

TABLES = (Layout("openpi", with_prefixes(_RULES, "", "params.")),)
