r"""KerasHub: backbones of Llama, Mistral, Qwen, Gemma and Stable Diffusion 3, by their Keras paths.

``{v.path: v.value for v in model.variables}`` is such a tree, or the same nested at the slashes.
The tensors of Stable Diffusion 3 are its authors'. Those of ``norm_out.linear``, and of the last
block's ``norm1_context.linear``, have their halves swapped in diffusers. Their rules are for the
original names, to which placement changes the names of diffusers.
Source: ``keras_hub/src/utils/transformers/convert_*.py``, and in KerasHub's ``tools`` the script
``checkpoint_conversion/convert_stable_diffusion_3_checkpoints.py``; keras-hub 0.32.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from jaxmix.converters.layouts.flax_layers import layer, parts_of
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

_SD3_TOP = {
    r"pos_embed\.proj": "patch_embedding.patch_embedding",
    "context_embedder": "context_embedding",
    r"time_text_embed\.timestep_embedder\.linear_(\d)": r"timestep_embedding.mlp.dense\1",
    r"time_text_embed\.text_embedder\.linear_(\d)": r"vector_embedding.dense\1",
    "proj_out": "output_dense",
    r"final_layer\.adaLN_modulation\.1": "output_ada_layer_norm.dense",
    r"joint_blocks\.(\d+)\.context_block\.adaLN_modulation\.1": (
        r"joint_block_\1.context_block.ada_layer_norm.dense"
    ),
}
# Layers by their names in each block, of the image and of the text.
_SD3_BLOCK = {
    r"norm1\.linear": "x_block.ada_layer_norm.dense",
    r"attn\.to_out\.0": "x_block.attention_proj",
    r"attn\.to_add_out": "context_block.attention_proj",
    r"attn\.norm_([qk])": r"x_block.\2_norm",
    r"attn\.norm_added_([qk])": r"context_block.\2_norm",
    r"attn2\.to_out\.0": "x_block.attention_proj2",
    r"attn2\.norm_([qk])": r"x_block.\2_norm2",
    r"ff\.net\.0\.proj": "x_block.mlp.dense1",
    r"ff\.net\.2": "x_block.mlp.dense2",
    r"ff_context\.net\.0\.proj": "context_block.mlp.dense1",
    r"ff_context\.net\.2": "context_block.mlp.dense2",
}
_SD3_FUSED = {
    (r"attn\.to_q", r"attn\.to_k", r"attn\.to_v"): "x_block.attention_qkv",
    (r"attn\.add_q_proj", r"attn\.add_k_proj", r"attn\.add_v_proj"): "context_block.attention_qkv",
    (r"attn2\.to_q", r"attn2\.to_k", r"attn2\.to_v"): "x_block.attention_qkv2",
}


def _sd3() -> Iterator[Rule]:
    """Yields the rules of Stable Diffusion 3, by the names of diffusers."""
    prefix = r"(?:transformer\.)?"
    block = rf"{prefix}transformer_blocks\.(\d+)\."
    for site, leaf in _SD3_TOP.items():
        yield from layer(f"{prefix}{site}", leaf)
    for site, leaf in _SD3_BLOCK.items():
        yield from layer(f"{block}{site}", rf"joint_block_\1.{leaf}")
    for sites, leaf in _SD3_FUSED.items():
        thirds = [(f"{block}{site}", f"{i}/3") for i, site in enumerate(sites)]
        yield from parts_of(thirds, rf"joint_block_\1.{leaf}")


TABLES = (
    Layout("keras_hub", _paths(_LLAMA)),
    Layout("keras_hub_gemma", _paths(_GEMMA)),
    Layout("keras_hub_sd3", _paths(_sd3())),
)
