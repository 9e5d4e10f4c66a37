r"""The Flax UNets of Stable Diffusion: in maxdiffusion, and in diffusers up to 0.35.

A number in a name follows an underscore, not a dot: ``down_blocks_1.attentions_0.proj_in``. The
text encoders of a pipeline have Hugging Face's names.
Source: ``modeling_flax_pytorch_utils.py`` and ``unet_2d_blocks_flax.py`` in ``maxdiffusion/models``
at 7cfb880 (August 2026); ``diffusers/models`` at 0.35.
"""

from collections.abc import Iterator

from jaxmix.converters.layouts.flax_layers import layer, of_component
from jaxmix.converters.layouts.naming import with_prefixes
from jaxmix.placement.layout import Layout, Rule

__all__ = ["TABLES"]

# Modules around layers, with their leaves, and the number of groups.
_OUTER = (
    (r"mid_block\.(attentions|resnets)\.(\d+)", r"mid_block.\1_\2", 2),
    (
        r"(down_blocks|up_blocks)\.(\d+)\.(attentions|resnets|downsamplers|upsamplers)\.(\d+)",
        r"\1_\2.\3_\4",
        4,
    ),
)
# The layers in these modules; groups count from 0.
_INNER = (
    (r"(\w+)", "{0}"),
    (r"transformer_blocks\.(\d+)\.(\w+)", "transformer_blocks_{0}.{1}"),
    (r"transformer_blocks\.(\d+)\.(attn\d)\.(to_[qkv])", "transformer_blocks_{0}.{1}.{2}"),
    (r"transformer_blocks\.(\d+)\.(attn\d)\.to_out\.0", "transformer_blocks_{0}.{1}.to_out_0"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj", "transformer_blocks_{0}.ff.net_0.proj"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.2", "transformer_blocks_{0}.ff.net_2"),
)


def _rules() -> Iterator[Rule]:
    yield from layer(r"(conv_in|conv_out|conv_norm_out)", r"\1")
    yield from layer(r"(time_embedding|add_embedding)\.(\w+)", r"\1.\2")
    for outer, above, count in _OUTER:
        for inner, below in _INNER:
            groups = [rf"\{count + k}" for k in range(1, 4)]
            yield from layer(rf"{outer}\.{inner}", f"{above}.{below.format(*groups)}")


# The layers of a pipeline's text encoders.
_TEXT = (
    *layer(r"(text_encoder(?:_\d)?\..+)", r"\1"),
    Rule(r"(text_encoder(?:_\d)?\..+)", r"\1.embedding"),
)

TABLES = (
    Layout(
        "flax_unet", (*of_component(tuple(_rules()), "unet"), *with_prefixes(_TEXT, "", "params."))
    ),
)
