r"""google-tunix: NNX models of Llama, Qwen and Gemma, with separate leaves for each layer.

Gemma stores k and v in one leaf, or q, k and v if they have the same number of heads; its head is
the embedding.
Source: ``tunix/models/*/params.py`` and ``params_safetensors.py``; google-tunix 0.1.7.
"""

from jaxmix.converters.layouts.naming import EMBEDDING, HEAD, KERNEL, LAYER, NORM
from jaxmix.placement.layout import Layout, Rule

__all__ = ["TABLES"]

_HEADS, _HEADS_IN = "d n h -> (n h) d", "n h d -> d (n h)"
_MLP = tuple(
    Rule(rf"{LAYER}mlp\.{module}", rf"layers.\1.mlp.{module}.kernel", KERNEL)
    for module in ("gate_proj", "up_proj", "down_proj")
)
_EXPERTS = tuple(
    Rule(rf"{LAYER}mlp\.experts\.(\d+)\.{module}", rf"layers.\1.mlp.{module}", KERNEL, r"\2")
    for module in ("gate_proj", "up_proj", "down_proj")
)

# Llama and Qwen, whose leaves have the same names.
_LLAMA = (
    Rule(EMBEDDING, "embedder.input_embedding"),
    Rule(NORM, "final_norm.w"),
    Rule(HEAD, "lm_head.w", KERNEL),
    *(Rule(rf"{LAYER}self_attn\.{x}_proj", rf"layers.\1.attn.{x}_proj.w", _HEADS) for x in "qkv"),
    *(
        Rule(rf"{LAYER}self_attn\.{x}_proj", rf"layers.\1.attn.{x}_bias", part="bias")
        for x in "qkv"
    ),
    Rule(rf"{LAYER}self_attn\.o_proj", r"layers.\1.attn.o_proj.w", _HEADS_IN),
    *(Rule(rf"{LAYER}self_attn\.{x}_norm", rf"layers.\1.attn.{x}_norm.w") for x in "qk"),
    *(
        Rule(f"{LAYER}{norm}", rf"layers.\1.{norm}.w")
        for norm in ("input_layernorm", "post_attention_layernorm")
    ),
    *_MLP,
    *_EXPERTS,
    Rule(rf"{LAYER}mlp\.gate", r"layers.\1.mlp.router.kernel", KERNEL),
)

_GEMMA = (
    Rule(EMBEDDING, "embedder.input_embedding"),
    Rule(HEAD, "embedder.input_embedding"),
    Rule(NORM, "final_norm.scale"),
    Rule(rf"{LAYER}self_attn\.q_proj", r"layers.\1.attn.q_einsum.w", "n d h -> (n h) d"),
    *(
        Rule(rf"{LAYER}self_attn\.{x}_proj", r"layers.\1.attn.kv_einsum.w", "n d h -> (n h) d", i)
        for x, i in (("k", "0"), ("v", "1"))
    ),
    *(
        Rule(rf"{LAYER}self_attn\.{x}_proj", r"layers.\1.attn.qkv_einsum.w", "n d h -> (n h) d", i)
        for x, i in (("q", "0"), ("k", "1"), ("v", "2"))
    ),
    Rule(rf"{LAYER}self_attn\.o_proj", r"layers.\1.attn.attn_vec_einsum.w", _HEADS_IN),
    Rule(rf"{LAYER}self_attn\.q_norm", r"layers.\1.attn._query_norm.scale"),
    Rule(rf"{LAYER}self_attn\.k_norm", r"layers.\1.attn._key_norm.scale"),
    Rule(f"{LAYER}input_layernorm", r"layers.\1.pre_attention_norm.scale"),
    Rule(f"{LAYER}post_attention_layernorm", r"layers.\1.post_attn_norm.scale"),
    Rule(f"{LAYER}post_attention_layernorm", r"layers.\1.post_attention_norm.scale"),
    Rule(f"{LAYER}pre_feedforward_layernorm", r"layers.\1.pre_ffw_norm.scale"),
    Rule(f"{LAYER}post_feedforward_layernorm", r"layers.\1.post_ffw_norm.scale"),
    *_MLP,
)

TABLES = (Layout("tunix", _LLAMA), Layout("tunix_gemma", _GEMMA))
