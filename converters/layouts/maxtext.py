r"""MaxText: layers stacked in one leaf and scanned along axis 1, or one leaf per layer.

Its Llama interleaves the halves of each rotary head and divides queries by √head_dim; its Qwen does
neither; its Mixtral and Gemma 2 only divide queries. The leaves have the same names, so adapters of
queries or keys require the model's own layout. Gemma's norms are stored with 1 added, which a rule
can't express, so the layouts have no rules for them.
Source: ``maxtext/checkpoint_conversion/utils/param_mapping.py`` at e591f30 (August 2026).
"""

from collections.abc import Iterator
from typing import Any

from jaxmix.converters.layouts.naming import EMBEDDING, HEAD, KERNEL, LAYER, NORM, with_prefixes
from jaxmix.placement.layout import Layout, Rule

__all__ = ["TABLES", "maxtext", "maxtext_gemma3"]

_PREFIXES = ("", "params.", "base.")
_HEADS, _HEADS_IN = "d n h -> (n h) d", "n h d -> d (n h)"
_INTERLEAVED = "d n (h two) -> (n two h) d"
_ATTENTION = {
    "q_proj": ("query.kernel", _HEADS),
    "k_proj": ("key.kernel", _HEADS),
    "v_proj": ("value.kernel", _HEADS),
    "o_proj": ("out.kernel", _HEADS_IN),
    "q_norm": ("query_norm.scale", None),
    "k_norm": ("key_norm.scale", None),
}
_BIASES = {"q_proj": "query.bias", "k_proj": "key.bias", "v_proj": "value.bias"}
_MLP = {"gate_proj": "wi_0", "up_proj": "wi_1", "down_proj": "wo"}
_NORMS = {
    "input_layernorm": "pre_self_attention_layer_norm",
    "post_attention_layernorm": "post_self_attention_layer_norm",
}
_TOP = (
    Rule(EMBEDDING, "token_embedder.embedding"),
    Rule(NORM, "decoder.decoder_norm.scale"),
    Rule(HEAD, "decoder.logits_dense.kernel", KERNEL),
)


def maxtext(
    name: str = "maxtext", *, is_interleaved: bool = False, scales_queries: bool = False
) -> Layout:
    """Returns MaxText's layout of Llama-like models: Llama, Mistral, Qwen, Mixtral's experts.

    Args:
        name: The layout's name in messages.
        is_interleaved: Whether the halves of each head of q and k are interleaved.
        scales_queries: Whether queries are divided by √head_dim.

    Returns:
        The layout, with rules for scanned and unscanned layers.

    Example:
        >>> maxtext().places("model.layers.3.mlp.down_proj", "weight")[0]
        Place(leaf='decoder.layers.mlp.wo.kernel', axes='i o -> o i', index=':, 3', ...)
    """
    rules = (*_TOP, *_layers(is_interleaved, scales_queries), *_experts())
    return Layout(name, with_prefixes(rules, *_PREFIXES))


def _layers(is_interleaved: bool, scales_queries: bool) -> Iterator[Rule]:
    """Yields the rules for the leaves of layers."""
    for stack, index in (("decoder.layers", r":, \1"), (r"decoder.layers_\1", None)):
        yield from _attention(
            f"{LAYER}self_attn", f"{stack}.self_attention", index, is_interleaved, scales_queries
        )
        for module, leaf in _MLP.items():
            yield Rule(rf"{LAYER}mlp\.{module}", f"{stack}.mlp.{leaf}.kernel", KERNEL, index)
        for module, leaf in _NORMS.items():
            yield Rule(f"{LAYER}{module}", f"{stack}.{leaf}.scale", None, index)


def _attention(
    site: str, leaf: str, index: str | None, is_interleaved: bool, scales_queries: bool
) -> Iterator[Rule]:
    """Yields the rules for the leaves of an attention module."""
    for module, (name, axes) in _ATTENTION.items():
        options: dict[str, Any] = {}
        if module == "q_proj" and scales_queries:
            options["scale"] = (("h", -0.5),)
        if module in ("q_proj", "k_proj") and is_interleaved:
            axes, options["sizes"] = _INTERLEAVED, (("two", 2),)
            if "scale" in options:
                options["scale"] = (("h", -0.5), ("two", -0.5))
        yield Rule(rf"{site}\.{module}", f"{leaf}.{name}", axes, index, **options)
    for module, name in _BIASES.items():
        yield Rule(rf"{site}\.{module}", f"{leaf}.{name}", "n h -> (n h)", index, "bias")


def _experts() -> Iterator[Rule]:
    """Yields the rules for experts, whose axis precedes that of the layers."""
    qwen = rf"{LAYER}mlp\.experts\.(\d+)\.", "moe_block", _MLP
    mixtral = (
        rf"{LAYER}block_sparse_moe\.experts\.(\d+)\.",
        "MoeBlock_0",
        {"w1": "wi_0", "w3": "wi_1", "w2": "wo"},
    )
    gates = (rf"{LAYER}mlp\.gate", "moe_block"), (rf"{LAYER}block_sparse_moe\.gate", "MoeBlock_0")
    for stack, layer, expert in (
        ("decoder.layers", r":, \1", r"\2, \1"),
        (r"decoder.layers_\1", None, r"\2"),
    ):
        for site, block, names in (qwen, mixtral):
            for module, leaf in names.items():
                yield Rule(f"{site}{module}", f"{stack}.{block}.{leaf}", KERNEL, expert)
        for site, block in gates:
            yield Rule(site, f"{stack}.{block}.gate.kernel", KERNEL, layer)


def _gemma2() -> Layout:
    """Returns the layout of Gemma 2, which stacks pairs of a local and a global layer."""
    scale = (("d", 0.5),)
    rules = [
        Rule(EMBEDDING, "token_embedder.embedding", "v d -> v d", scale=scale),
        Rule(HEAD, "token_embedder.embedding", "v d -> v d", scale=scale),
    ]
    for kind, numbers in (("local", r"\d*[02468]"), ("global", r"\d*[13579]")):
        layer = LAYER.replace(r"\d+", numbers)
        for stack, index in (
            ("decoder.layers", r":, {\1//2}"),
            (r"decoder.layers_{\1//2}", None),
        ):
            leaf = f"{stack}.self_attention_{kind}"
            rules += _attention(f"{layer}self_attn", leaf, index, False, True)
            for module, name in _MLP.items():
                leaf = f"{stack}.mlp_{kind}.{name}.kernel"
                rules.append(Rule(rf"{layer}mlp\.{module}", leaf, KERNEL, index))
    return Layout("maxtext_gemma2", with_prefixes(rules, *_PREFIXES))


def maxtext_gemma3(name: str = "maxtext_gemma3", *, layers: int = 0) -> Layout:
    """Returns MaxText's layout of Gemma 3, which scans blocks of six layers, the last one global.

    Args:
        name: The layout's name in messages.
        layers: The model's number of layers, needed if they are scanned and the number is not a
            multiple of 6: the remaining layers then have separate leaves.

    Returns:
        The layout, with rules for scanned and unscanned layers.

    Example:
        >>> place = maxtext_gemma3().places("model.layers.13.self_attn.o_proj", "weight")[0]
        >>> place.leaf, place.index
        ('decoder.layers.layers_1.self_attention.out.kernel', ':, 2')
    """
    remaining = range(layers - layers % 6, layers)
    stacks: list[tuple[str, str, str | None]] = [(LAYER, r"decoder.layers_\1", None)]
    scanned = rf"(?!(?:{'|'.join(map(str, remaining))})\.)\d+" if remaining else r"\d+"
    stacks.append((LAYER.replace(r"\d+", scanned), r"decoder.layers.layers_{\1%6}", r":, {\1//6}"))
    if remaining:
        numbers = "|".join(map(str, remaining))
        leaf = r"decoder.layers_remainder.layers_{\1%6}"
        stacks.append((LAYER.replace(r"\d+", numbers), leaf, None))
    rules: list[Rule] = []
    for layer, stack, index in reversed(stacks):
        rules += _attention(f"{layer}self_attn", f"{stack}.self_attention", index, False, False)
        for module, leaf in _MLP.items():
            rules.append(
                Rule(rf"{layer}mlp\.{module}", f"{stack}.mlp.{leaf}.kernel", KERNEL, index)
            )
    # The embedding is stored times √width, rounded to bfloat16, which a rule can't express.
    return Layout(name, with_prefixes((r for r in rules if "norm" not in r.site), *_PREFIXES))


TABLES = (
    maxtext("maxtext_llama", is_interleaved=True, scales_queries=True),
    maxtext("maxtext_qwen"),
    maxtext("maxtext_mixtral", scales_queries=True),
    _gemma2(),
    maxtext_gemma3(),
)
