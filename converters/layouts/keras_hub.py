r"""KerasHub: backbones of Llama, Mistral, Qwen and Gemma, with leaves named by their Keras paths.

``{v.path: v.value for v in model.variables}`` is such a tree, or the same nested at the slashes.
Source: ``keras_hub/src/utils/transformers/convert_*.py``; keras-hub 0.32.
"""

from collections.abc import Iterable
from dataclasses import replace

from jaxmix.converters.layouts.naming import EMBEDDING, HEAD, KERNEL, LAYER, NORM
from jaxmix.placement.layout import Layout, Rule

__all__ = ["TABLES"]


def _paths(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Adds rules for names with slashes to rules for dotted names."""
    rules = tuple(rules)
    return (*rules, *(replace(rule, leaf=rule.leaf.replace(".", "/")) for rule in rules))


_ATTENTION = rf"{LAYER}self_attn\."
_NAMES = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}

_LLAMA = (
    Rule(EMBEDDING, "token_embedding.embeddings"),
    Rule(HEAD, "token_embedding.reverse_embeddings", KERNEL),
    Rule(NORM, "sequence_output_layernorm.scale"),
    *(
        rule
        for module, leaf in _NAMES.items()
        for rule in (
            Rule(
                f"{_ATTENTION}{module}",
                rf"transformer_layer_\1.self_attention.{leaf}.kernel",
                "d n h -> (n h) d",
            ),
            Rule(
                f"{_ATTENTION}{module}",
                rf"transformer_layer_\1.self_attention.{leaf}.bias",
                "n h -> (n h)",
                part="bias",
            ),
        )
    ),
    Rule(
        f"{_ATTENTION}o_proj",
        r"transformer_layer_\1.self_attention.attention_output.kernel",
        "n h d -> d (n h)",
    ),
    *(
        Rule(
            f"{_ATTENTION}{x}_norm",
            rf"transformer_layer_\1.self_attention.{leaf}_dense_layernorm.scale",
        )
        for x, leaf in (("q", "query"), ("k", "key"))
    ),
    *(
        Rule(
            rf"{LAYER}mlp\.{x}_proj",
            rf"transformer_layer_\1.feedforward_{leaf}_dense.kernel",
            KERNEL,
        )
        for x, leaf in (("gate", "gate"), ("up", "intermediate"), ("down", "output"))
    ),
    Rule(f"{LAYER}input_layernorm", r"transformer_layer_\1.self_attention_layernorm.scale"),
    Rule(f"{LAYER}post_attention_layernorm", r"transformer_layer_\1.feedforward_layernorm.scale"),
)

_GEMMA = (
    Rule(EMBEDDING, "token_embedding.embeddings"),
    Rule(HEAD, "token_embedding.embeddings"),
    Rule(NORM, "final_normalization.scale"),
    *(
        Rule(
            f"{_ATTENTION}{module}",
            rf"decoder_block_\1.attention.{leaf}.kernel",
            "n d h -> (n h) d",
        )
        for module, leaf in _NAMES.items()
    ),
    Rule(
        f"{_ATTENTION}o_proj",
        r"decoder_block_\1.attention.attention_output.kernel",
        "n h d -> d (n h)",
    ),
    *(
        Rule(rf"{LAYER}mlp\.{x}_proj", rf"decoder_block_\1.{leaf}.kernel", KERNEL)
        for x, leaf in (("gate", "ffw_gating"), ("up", "ffw_gating_2"), ("down", "ffw_linear"))
    ),
    Rule(f"{_ATTENTION}q_norm", r"decoder_block_\1.attention.query_norm.scale"),
    Rule(f"{_ATTENTION}k_norm", r"decoder_block_\1.attention.key_norm.scale"),
    Rule(f"{LAYER}input_layernorm", r"decoder_block_\1.pre_attention_norm.scale"),
)

TABLES = (Layout("keras_hub", _paths(_LLAMA)), Layout("keras_hub_gemma", _paths(_GEMMA)))
