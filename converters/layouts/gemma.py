r"""gemma, Google DeepMind's library: Linen models of Gemma 1, 2 and 3.

Gate and up projection are one leaf, (2, F, D) or (2, D, F) depending on `transpose_gating_einsum`,
which is recognized by shape. The head is the embedding.
Source: ``gemma/gm/nn/_modules.py`` and ``_layers.py``; gemma 4.0.1.
"""

from collections.abc import Iterator

from jaxmix.converters.layouts.naming import EMBEDDING, HEAD, KERNEL, LAYER, NORM, with_prefixes
from jaxmix.placement.layout import Layout, Rule

__all__ = ["TABLES"]

_NORMS = {
    "input_layernorm": "pre_attention_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "pre_ffw_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    r"self_attn\.q_norm": "attn._query_norm",
    r"self_attn\.k_norm": "attn._key_norm",
}


def _rules(gating: str | None) -> Iterator[Rule]:
    """Yields the rules; ``gating`` gives the axes of the gate and up projections."""
    heads = "n d h -> (n h) d"
    yield Rule(EMBEDDING, "embedder.input_embedding")
    yield Rule(HEAD, "embedder.input_embedding")
    yield Rule(NORM, "final_norm.scale")
    attention = rf"{LAYER}self_attn\."
    yield Rule(f"{attention}q_proj", r"layer_\1.attn.q_einsum.w", heads)
    for leaf, modules in (("kv_einsum", "kv"), ("qkv_einsum", "qkv")):
        for i, module in enumerate(modules):
            yield Rule(f"{attention}{module}_proj", rf"layer_\1.attn.{leaf}.w", heads, str(i))
    yield Rule(f"{attention}o_proj", r"layer_\1.attn.attn_vec_einsum.w", "n h d -> d (n h)")
    for i, module in enumerate(("gate_proj", "up_proj")):
        yield Rule(rf"{LAYER}mlp\.{module}", r"layer_\1.mlp.gating_einsum", gating, str(i))
    yield Rule(rf"{LAYER}mlp\.down_proj", r"layer_\1.mlp.linear", KERNEL)
    for module, leaf in _NORMS.items():
        yield Rule(f"{LAYER}{module}", rf"layer_\1.{leaf}.scale")


TABLES = (
    Layout("gemma", with_prefixes(_rules(None), "", "params.")),
    Layout("gemma_untransposed", with_prefixes(_rules(KERNEL), "", "params.")),
)
