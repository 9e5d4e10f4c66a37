r"""Levanter: Equinox models of Haliax's named arrays, with layers stacked along the first axis.

Queries are grouped by the heads that share a key: (L, K, G, H, D). A named array is a single leaf
below its name. Layers that are not stacked have separate leaves.
Source: ``levanter/models/llama.py``, ``levanter/layers/attention.py``; marin-levanter 0.2.227.
"""

from collections.abc import Iterator

from jaxmix.converters.layouts.naming import EMBEDDING, HEAD, LAYER, NORM
from jaxmix.placement.layout import Layout, Rule

__all__ = ["TABLES"]

_HEADS = {
    "q_proj": ("k g h d -> (k g h) d", "k g h -> (k g h)"),
    "k_proj": ("k h d -> (k h) d", "k h -> (k h)"),
    "v_proj": ("k h d -> (k h) d", "k h -> (k h)"),
    "o_proj": ("d n h -> d (n h)", None),
}


def _rules() -> Iterator[Rule]:
    # The key of a Haliax array's only child in JAX's paths.
    for leaf in (".0", ".array"):
        yield Rule(EMBEDDING, f"embeddings.token_embeddings.weight{leaf}")
        yield Rule(HEAD, f"lm_head.weight{leaf}")
        yield Rule(NORM, f"transformer.norm.weight{leaf}")
        for layer, index in (
            ("transformer.layers.stacked", r"\1"),
            (r"transformer.layers.blocks.\1", None),
        ):
            for module, (weight, bias) in _HEADS.items():
                site, at = rf"{LAYER}self_attn\.{module}", f"{layer}.self_attn.{module}"
                yield Rule(site, f"{at}.weight{leaf}", weight, index)
                yield Rule(site, f"{at}.bias{leaf}", bias, index, "bias")
            yield Rule(
                rf"{LAYER}mlp\.(gate|up|down)_proj",
                rf"{layer}.mlp.\2_proj.weight{leaf}",
                index=index,
            )
            yield Rule(
                rf"{LAYER}((?:self_attn\.)?\w+norm)", rf"{layer}.\2.weight{leaf}", index=index
            )


TABLES = (Layout("levanter", tuple(_rules())),)
