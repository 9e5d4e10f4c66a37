r"""bonsai: NNX models of Qwen 3 and Gemma 3.

Qwen's kernels have a separate axis for heads, (D, N, H). Gemma's do not, and all its modules have
Hugging Face's names except the embedding.
Source: ``bonsai/models/*/params.py`` at 3628425 (March 2026).
"""

from jaxmix.converters.layouts.naming import EMBEDDING, HEAD, KERNEL, LAYER, NORM
from jaxmix.placement.layout import Layout, Rule

__all__ = ["TABLES"]

_QWEN3 = (
    Rule(EMBEDDING, "embedder.embedding"),
    Rule(NORM, "final_norm.scale"),
    Rule(HEAD, "lm_head.kernel", KERNEL),
    *(
        Rule(rf"{LAYER}self_attn\.{x}_proj", rf"layers.\1.attn.{x}_proj.kernel", "d n h -> (n h) d")
        for x in "qkv"
    ),
    Rule(rf"{LAYER}self_attn\.o_proj", r"layers.\1.attn.o_proj.kernel", "n h d -> d (n h)"),
    *(Rule(rf"{LAYER}self_attn\.{x}_norm", rf"layers.\1.attn.{x}_norm.scale") for x in "qk"),
    *(
        Rule(f"{LAYER}{norm}", rf"layers.\1.{norm}.scale")
        for norm in ("input_layernorm", "post_attention_layernorm")
    ),
    *(
        Rule(rf"{LAYER}mlp\.{x}_proj", rf"layers.\1.mlp.{x}_proj.kernel", KERNEL)
        for x in ("gate", "up", "down")
    ),
)
_GEMMA3 = (
    Rule(EMBEDDING, "embed_tokens.weight.embedding"),
    Rule(HEAD, "embed_tokens.weight.embedding"),
    Rule(NORM, "language_model.norm.scale"),
    Rule(rf"{LAYER}((?:self_attn|mlp)\.\w+_proj)", r"language_model.layers.\1.\2.kernel", KERNEL),
    Rule(rf"{LAYER}((?:self_attn\.)?\w+norm)", r"language_model.layers.\1.\2.scale"),
)

TABLES = (Layout("bonsai", _QWEN3), Layout("bonsai_gemma3", _GEMMA3))
