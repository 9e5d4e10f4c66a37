r"""maxdiffusion's models of Wan, LTX-Video and LTX-2, with layers stacked or not, and of Z-Image.

Sites have the names of diffusers; those of Wan, LTX and LTX-2 may also have their authors' names.
Source: ``wan/wan_utils.py``, ``ltx2/ltx2_utils.py``, ``z_image/z_image_utils.py`` and
``ltx_video/utils/torch_compat.py`` in ``maxdiffusion/models``, and
``loaders/lora_conversion_utils.py``, at 7cfb880 (August 2026).
"""

from collections.abc import Iterator

from jaxmix.converters.layouts.flax_layers import layer, of_component
from jaxmix.placement.layout import Layout, Rule

__all__ = ["TABLES"]

_BLOCK = r"blocks\.(\d+)\."

# Wan's layers by the names of diffusers and of Wan.
_WAN_BLOCK = {
    r"(?:norm2|norm3)": "norm2.layer_norm",
    r"(?:ffn\.net\.0\.proj|ffn\.0)": "ffn.act_fn.proj",
    r"(?:ffn\.net\.2|ffn\.2)": "ffn.proj_out",
    r"(?:attn2\.add_k_proj|cross_attn\.k_img)": "attn2.add_k_proj",
    r"(?:attn2\.add_v_proj|cross_attn\.v_img)": "attn2.add_v_proj",
    r"(?:attn2\.norm_added_k|cross_attn\.norm_k_img)": "attn2.norm_added_k",
    **{
        rf"(?:{attn}\.{site}|{original}\.{short})": f"{attn}.{leaf}"
        for attn, original in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for site, short, leaf in (
            ("to_q", "q", "query"),
            ("to_k", "k", "key"),
            ("to_v", "v", "value"),
            (r"to_out\.0", "o", "proj_attn"),
            ("norm_q", "norm_q", "norm_q"),
            ("norm_k", "norm_k", "norm_k"),
        )
    },
}
_EMBEDDER = r"condition_embedder\."
_WAN_TOP = {
    "patch_embedding": "patch_embedding",
    r"(?:proj_out|head\.head)": "proj_out",
    rf"(?:{_EMBEDDER}time_proj|time_projection\.1)": "condition_embedder.time_proj",
    **{
        rf"(?:{_EMBEDDER}{name}_embedder\.linear_{i}|{name}_embedding\.{j})": (
            f"condition_embedder.{name}_embedder.linear_{i}"
        )
        for name in ("time", "text")
        for i, j in ((1, 0), (2, 2))
    },
    **{
        rf"(?:{_EMBEDDER}image_embedder\.{site}|img_emb\.proj\.{i})": (
            f"condition_embedder.image_embedder.{leaf}"
        )
        for site, i, leaf in (
            ("norm1", 0, "norm1.layer_norm"),
            (r"ff\.net\.0\.proj", 1, "ff.net_0"),
            (r"ff\.net\.2", 3, "ff.net_2"),
            ("norm2", 4, "norm2.layer_norm"),
        )
    },
}


def _wan() -> Iterator[Rule]:
    for site, leaf in _WAN_TOP.items():
        yield from layer(site, leaf)
    yield Rule(r"(?:scale_shift_table|head\.modulation)", "scale_shift_table")
    for block, index in (("blocks", r"\1"), (r"blocks.\1", None)):
        for site, leaf in _WAN_BLOCK.items():
            yield from layer(f"{_BLOCK}{site}", f"{block}.{leaf}", index)
        table = rf"{_BLOCK}(?:scale_shift_table|modulation)"
        yield Rule(table, f"{block}.adaln_scale_shift_table", None, index)


_STACK = "transformer_blocks.ScanRepeatableCarryBlock_0"
_LTX_BLOCKS = tuple(f"{_STACK}.{name}BasicTransformerBlock_0" for name in ("Checkpoint", ""))
_LTX_EMBEDDER = r"(?:time_embed|adaln_single)"


def _ltx() -> Iterator[Rule]:
    """Yields the rules of LTX-Video, whose layers are always stacked."""
    yield from layer(r"(?:proj_in|patchify_proj)", "patchify_proj")
    yield from layer("proj_out", "proj_out")
    yield from layer(rf"{_LTX_EMBEDDER}\.linear", "adaln_single.linear")
    embedder = r"emb\.timestep_embedder\.(linear_\d)"
    yield from layer(rf"{_LTX_EMBEDDER}\.{embedder}", r"adaln_single.emb.timestep_embedder.\1")
    yield from layer(r"caption_projection\.(linear_\d)", r"caption_projection.\1")
    yield Rule("scale_shift_table", "scale_shift_table")
    at = rf"transformer_{_BLOCK}"
    for block in _LTX_BLOCKS:
        yield from layer(rf"{at}(attn\d)\.(to_[qkv])", rf"{block}.\2.\3", r"\1")
        yield from layer(rf"{at}(attn\d)\.to_out\.0", rf"{block}.\2.to_out.0", r"\1")
        for x in "qk":
            yield from layer(
                rf"{at}(attn\d)\.(?:norm_{x}|{x}_norm)", rf"{block}.\2.{x}_norm", r"\1"
            )
        yield from layer(rf"{at}ff\.net\.0\.proj", f"{block}.ff.net.0.proj", r"\1")
        yield from layer(rf"{at}ff\.net\.2", f"{block}.ff.net.2", r"\1")
        yield Rule(rf"{at}scale_shift_table", f"{block}.scale_shift_table", None, r"\1")


# LTX-2's conditioning layers by the names of diffusers and of Lightricks.
_LTX2_ADALN = {
    "time_embed": "adaln_single",
    "audio_time_embed": "audio_adaln_single",
    "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
    "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
    "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
    "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
}


def _ltx2() -> Iterator[Rule]:
    for audio in ("", "audio_"):
        yield from layer(f"(?:{audio}proj_in|{audio}patchify_proj)", f"{audio}proj_in")
        yield from layer(f"{audio}proj_out", f"{audio}proj_out")
        caption = f"{audio}caption_projection"
        yield from layer(rf"{caption}\.(linear_\d)", rf"{caption}.\1")
        yield Rule(f"{audio}scale_shift_table", f"{audio}scale_shift_table")
    for name, original in _LTX2_ADALN.items():
        yield from layer(rf"(?:{name}|{original})\.linear", f"{name}.linear")
        yield from layer(
            rf"(?:{name}|{original})\.emb\.timestep_embedder\.(linear_\d)",
            rf"{name}.emb.timestep_embedder.\1",
        )
    at = rf"transformer_{_BLOCK}"
    for block, index in (("transformer_blocks", r"\1"), (r"transformer_blocks.\1", None)):
        yield from layer(
            rf"{at}(\w+)\.(to_[qkv]|to_gate_logits|norm_q|norm_k)", rf"{block}.\2.\3", index
        )
        yield from layer(rf"{at}(\w+)\.to_out\.0", rf"{block}.\2.to_out", index)
        yield from layer(rf"{at}(ff|audio_ff)\.net\.0\.proj", rf"{block}.\2.net_0", index)
        yield from layer(rf"{at}(ff|audio_ff)\.net\.2", rf"{block}.\2.net_2", index)
        yield Rule(rf"{at}(\w*scale_shift_table)", rf"{block}.\2", None, index)


_Z_IMAGE_TOP = {
    r"all_x_embedder\.2-1": "x_embedder",
    r"all_final_layer\.2-1\.linear": "final_layer.linear",
    r"all_final_layer\.2-1\.adaLN_modulation\.1": "final_layer.adaln_modulation",
    r"t_embedder\.mlp\.0": "t_embedder.mlp_in",
    r"t_embedder\.mlp\.2": "t_embedder.mlp_out",
    r"cap_embedder\.0": "cap_embedder_norm",
    r"cap_embedder\.1": "cap_embedder",
}


def _z_image() -> Iterator[Rule]:
    for site, leaf in _Z_IMAGE_TOP.items():
        yield from layer(site, leaf)
    yield Rule(r"(x_pad_token|cap_pad_token)", r"\1")
    at = r"(layers|noise_refiner|context_refiner)\.(\d+)\."
    for block, index in ((r"\1", r"\2"), (r"\1.\2", None)):
        yield from layer(rf"{at}(\w+norm\d)", rf"{block}.\3", index)
        yield from layer(
            rf"{at}(attention|feed_forward)\.(to_[qkv]|norm_[qk]|w\d)", rf"{block}.\3.\4", index
        )
        yield from layer(rf"{at}attention\.to_out\.0", rf"{block}.attention.to_out", index)
        yield from layer(rf"{at}adaLN_modulation\.0", rf"{block}.adaln_modulation", index)


_COMPONENT = ("transformer", "diffusion_model")
TABLES = (
    Layout("maxdiffusion_wan", of_component(tuple(_wan()), *_COMPONENT, "transformer_2")),
    Layout("maxdiffusion_ltx", of_component(tuple(_ltx()), *_COMPONENT)),
    Layout("maxdiffusion_ltx2", of_component(tuple(_ltx2()), *_COMPONENT)),
    Layout("maxdiffusion_z_image", of_component(tuple(_z_image()), *_COMPONENT)),
)
