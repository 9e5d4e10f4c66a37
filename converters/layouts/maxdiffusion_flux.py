r"""maxdiffusion's Linen and NNX models of Flux 1 and Flux 2, with layers stacked or not.

Queries, keys and values are one leaf. In the single blocks of Flux 1, this leaf also holds the
input layer of the MLP if layers are not stacked; stacked layers have a separate leaf for it. Sites
have the names of diffusers, or those of Black Forest Labs, in which queries, keys and values are
one site. ``linear1`` of stacked layers, which is two leaves, is brought to diffusers' names by
placement. Not in the tables: ``norm_out.linear`` on ``norm_out.Dense_0``, whose halves are swapped,
and the reverse.
Source: ``flux/util.py`` and ``flux/transformers/transformer_flux_flax.py`` in
``maxdiffusion/models`` at 6734125 (January 2026), 25f1a08 (June) and 7cfb880 (August).
"""

from collections.abc import Iterator

from jaxmix.converters.layouts.flax_layers import layer, of_component, parts_of
from jaxmix.placement.layout import Layout, Rule

__all__ = ["TABLES"]

_THIRDS = ("0/3", "1/3", "2/3")
_DOUBLE = r"(?:transformer_blocks|double_blocks)\.(\d+)\."
_SINGLE = r"(?:single_transformer_blocks|single_blocks)\.(\d+)\."

# The layers of a double block, by the names of diffusers and of Black Forest Labs.
_DOUBLE_LAYERS = {
    r"(?:norm1\.linear|img_mod\.lin)": "img_norm1.lin",
    r"(?:norm1_context\.linear|txt_mod\.lin)": "txt_norm1.lin",
    r"(?:attn\.to_out\.0|img_attn\.proj)": "attn.i_proj",
    r"(?:attn\.to_add_out|txt_attn\.proj)": "attn.e_proj",
    r"(?:attn\.norm_q|img_attn\.norm\.query_norm)": "attn.query_norm",
    r"(?:attn\.norm_k|img_attn\.norm\.key_norm)": "attn.key_norm",
    r"(?:attn\.norm_added_q|txt_attn\.norm\.query_norm)": "attn.encoder_query_norm",
    r"(?:attn\.norm_added_k|txt_attn\.norm\.key_norm)": "attn.encoder_key_norm",
    r"(?:ff\.net\.0\.proj|img_mlp\.0)": "img_mlp.layers_0",
    r"(?:ff\.net\.2|img_mlp\.2)": "img_mlp.layers_2",
    r"(?:ff_context\.net\.0\.proj|txt_mlp\.0)": "txt_mlp.layers_0",
    r"(?:ff_context\.net\.2|txt_mlp\.2)": "txt_mlp.layers_2",
}
_SINGLE_LAYERS = {
    r"(?:norm\.linear|modulation\.lin)": "norm.lin",
    r"(?:attn\.norm_q|norm\.query_norm)": "attn.query_norm",
    r"(?:attn\.norm_k|norm\.key_norm)": "attn.key_norm",
}
_TOP = {
    r"(?:x_embedder|img_in)": "img_in",
    r"(?:context_embedder|txt_in)": "txt_in",
    r"(?:proj_out|final_layer\.linear)": "proj_out",
    r"norm_out\.linear": "norm_out.linear",
    r"final_layer\.adaLN_modulation\.1": "norm_out.Dense_0",
}
_EMBEDDINGS = {
    r"(?:time_text_embed\.timestep_embedder|time_in)": "FlaxTimestepEmbedding_0",
    r"(?:time_text_embed\.guidance_embedder|guidance_in)": "FlaxTimestepEmbedding_1",
    r"(?:time_text_embed\.text_embedder|vector_in)": "PixArtAlphaTextProjection_0",
}


def _flux1(is_fused: bool) -> Iterator[Rule]:
    """Yields the rules of Flux 1; in those of fused sites, q, k and v are one site."""
    for site, leaf in _TOP.items():
        yield from layer(site, leaf)
    for site, leaf in _EMBEDDINGS.items():
        yield from layer(rf"{site}\.(?:linear_1|in_layer)", f"time_text_embed.{leaf}.linear_1")
        yield from layer(rf"{site}\.(?:linear_2|out_layer)", f"time_text_embed.{leaf}.linear_2")
    for block, index in (
        ("scanned_double_blocks.FluxTransformerBlock_0", r"\1"),
        (r"double_blocks_\1", None),
    ):
        for site, leaf in _DOUBLE_LAYERS.items():
            yield from layer(f"{_DOUBLE}{site}", f"{block}.{leaf}", index)
        yield from _attention(_DOUBLE, f"{block}.attn", index, is_fused)
    stack = "scanned_single_blocks.FluxSingleTransformerBlock_0"
    for block, out, index in ((stack, "mlp_and_out.", r"\1"), (r"single_blocks_\1", "", None)):
        for site, leaf in _SINGLE_LAYERS.items():
            yield from layer(f"{_SINGLE}{site}", f"{block}.{leaf}", index)
        yield from layer(rf"{_SINGLE}(?:proj_out|linear2)", f"{block}.{out}linear2", index)
    if is_fused:
        yield from layer(rf"{_SINGLE}linear1", r"single_blocks_\1.linear1")
        return
    qkv = [rf"{_SINGLE}attn\.to_{x}" for x in "qkv"]
    yield from parts_of(list(zip(qkv, _THIRDS, strict=True)), f"{stack}.lin_qkv", r"\1")
    yield from layer(rf"{_SINGLE}proj_mlp", f"{stack}.mlp_and_out.lin_mlp", r"\1")
    # The MLP has four times the width of the model.
    sevenths = ((qkv[0], "0/7"), (qkv[1], "1/7"), (qkv[2], "2/7"), (rf"{_SINGLE}proj_mlp", "3:/7"))
    yield from parts_of(sevenths, r"single_blocks_\1.linear1")


def _attention(site: str, leaf: str, index: str | None, is_fused: bool) -> Iterator[Rule]:
    """Yields the rules for the queries, keys and values of a double block."""
    if is_fused:
        yield from layer(rf"{site}img_attn\.qkv", f"{leaf}.i_qkv", index)
        yield from layer(rf"{site}txt_attn\.qkv", f"{leaf}.e_qkv", index)
        return
    for names, fused in (
        (("to_q", "to_k", "to_v"), "i_qkv"),
        (("add_q_proj", "add_k_proj", "add_v_proj"), "e_qkv"),
    ):
        sites = [rf"{site}attn\.{name}" for name in names]
        yield from parts_of(list(zip(sites, _THIRDS, strict=True)), f"{leaf}.{fused}", index)


_FLUX2_DOUBLE = {
    **{site: leaf for site, leaf in _DOUBLE_LAYERS.items() if r"(?:attn\." in site},
    r"(ff|ff_context)\.(linear_in|linear_out)": r"\2.\3",
}
_FLUX2_SINGLE = {
    r"attn\.to_qkv_mlp_proj": "linear1",
    r"attn\.to_out": "linear2",
    r"attn\.norm_q": "attn.query_norm",
    r"attn\.norm_k": "attn.key_norm",
}


def _flux2() -> Iterator[Rule]:
    """Yields the rules of Flux 2, whose single blocks are fused in diffusers too."""
    for name in ("x_embedder", "context_embedder", "proj_out"):
        yield from layer(name, name)
    yield from layer(r"norm_out\.linear", "norm_out.linear")
    yield from layer(
        r"(double_stream_modulation_img|double_stream_modulation_txt|single_stream_modulation)"
        r"\.linear",
        r"\1",
    )
    for embedder, number in (("timestep_embedder", "0"), ("guidance_embedder", "1")):
        site = rf"time_guidance_embed\.{embedder}\.(linear_\d)"
        yield from layer(site, rf"time_text_embed.{embedder}.\1")
        yield from layer(site, rf"time_text_embed.FlaxTimestepEmbedding_{number}.\1")
    for dot in (".", "_"):
        double, single = rf"double_blocks{dot}\1", rf"single_blocks{dot}\1"
        for site, leaf in _FLUX2_DOUBLE.items():
            yield from layer(f"{_DOUBLE}{site}", f"{double}.{leaf}")
        yield from _attention(_DOUBLE, f"{double}.attn", None, False)
        for site, leaf in _FLUX2_SINGLE.items():
            yield from layer(f"{_SINGLE}{site}", f"{single}.{leaf}")


_COMPONENT = ("transformer", "diffusion_model")
TABLES = (
    Layout("maxdiffusion_flux", of_component(tuple(_flux1(False)), *_COMPONENT)),
    Layout("maxdiffusion_flux_bfl", of_component(tuple(_flux1(True)), *_COMPONENT)),
    Layout("maxdiffusion_flux2", of_component(tuple(_flux2()), *_COMPONENT)),
)
