"""Writes converters/names/images/*.json: image models' modules by both names.

Run as ``python -m tests.image_names``. The rows are written here, from the modules of the projects
that published the models and the renaming in diffusers' ``single_file_utils.py``;
``python -m tests.image_names --check`` converts checkpoints of tiny models with diffusers' own
functions, and compares every tensor.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "tables"]

FOLDER = Path(__file__).parents[1] / "converters" / "names" / "images"
Row = list[Any]


def _each(template: str, names: dict[str, str]) -> Iterator[Row]:
    """A row for each pair of names below a template ``original|diffusers``."""
    source, target = template.split("|")
    for original, other in names.items():
        yield [f"{source}{original}", *(f"{target}{name}" for name in other.split())]


def _flux() -> dict[str, Any]:
    rows: list[Row] = [
        ["img_in", "x_embedder"],
        ["txt_in", "context_embedder"],
        ["final_layer.linear", "proj_out"],
        ["final_layer.adaLN_modulation.1", "norm_out.linear", {"swap": True}],
    ]
    times = {
        "time": "timestep_embedder",
        "vector": "text_embedder",
        "guidance": "guidance_embedder",
    }
    for name, embedder in times.items():
        rows += [
            [f"{name}_in.in_layer", f"time_text_embed.{embedder}.linear_1"],
            [f"{name}_in.out_layer", f"time_text_embed.{embedder}.linear_2"],
        ]
    rows += _double("img_attn.qkv", "img_mlp.0", "img_mlp.2", "img_mod.lin")
    rows += _single(["single_blocks.{}.modulation.lin", "single_transformer_blocks.{}.norm.linear"])
    rows += _each(
        "distilled_guidance_layer.layers.{}.|distilled_guidance_layer.layers.{}.",
        {"in_layer": "linear_1", "out_layer": "linear_2"},
    )
    rows += _same("in_proj out_proj norms.{}", "distilled_guidance_layer.")
    rows += _xlabs()
    return {
        "source": "black-forest-labs/flux, src/flux; lodestone-rock/flow for Chroma",
        "classes": ["FluxTransformer2DModel", "ChromaTransformer2DModel"],
        "component": "transformer",
        "suffixes": {"scale": "weight"},
        "modules": rows,
    }


def _same(names: str, prefix: str = "") -> list[Row]:
    """Rows of modules that have the same name in both schemes."""
    return [[prefix + name] for name in names.split()]


def _xlabs() -> list[Row]:
    """The processors of XLabs' x-flux, which have adapters only."""
    double, single = "double_blocks.{}.processor.", "single_blocks.{}.processor."
    joint, single_block = "transformer_blocks.{}.attn.", "single_transformer_blocks.{}."
    return [
        [f"{double}qkv_lora1", *(f"{joint}to_{x}" for x in "qkv")],
        [f"{double}qkv_lora2", *(f"{joint}add_{x}_proj" for x in "qkv")],
        [f"{double}proj_lora1", f"{joint}to_out.0"],
        [f"{double}proj_lora2", f"{joint}to_add_out"],
        [f"{single}qkv_lora", *(f"{single_block}attn.to_{x}" for x in "qkv")],
        [f"{single}proj_lora", f"{single_block}proj_out"],
    ]


def _double(qkv: str, mlp_in: str, mlp_out: str, modulation: str) -> list[Row]:
    """Flux's double blocks; Hunyuan's have other names below the streams."""
    attention = qkv.removesuffix("qkv")
    norms = ("norm.query_norm", "norm.key_norm") if "." in attention else ("q_norm", "k_norm")
    rows: list[Row] = []
    for stream, q, k, v, out, added, ff, norm in (
        ("img", "to_q", "to_k", "to_v", "to_out.0", "", "ff", "norm1"),
        ("txt", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "added_", "ff_context",
         "norm1_context"),
    ):  # fmt: skip

        def named(name: str, stream: str = stream) -> str:
            return name.replace("img", stream, 1)

        rows += _each(
            "double_blocks.{}.|transformer_blocks.{}.",
            {
                named(qkv): f"attn.{q} transformer_blocks.{{}}.attn.{k} "
                f"transformer_blocks.{{}}.attn.{v}",
                named(f"{attention}proj"): f"attn.{out}",
                named(f"{attention}{norms[0]}"): f"attn.norm_{added}q",
                named(f"{attention}{norms[1]}"): f"attn.norm_{added}k",
                named(mlp_in): f"{ff}.net.0.proj",
                named(mlp_out): f"{ff}.net.2",
                named(modulation): f"{norm}.linear",
            },
        )
    return [_joined(row) for row in rows]


def _joined(row: Row) -> Row:
    """A row whose further targets are written in full."""
    double = "transformer_blocks.{}.transformer_blocks.{}."
    return [item.replace(double, "transformer_blocks.{}.") for item in row]


def _single(modulation: Row) -> list[Row]:
    """Flux's and Hunyuan's single blocks."""
    block = "single_transformer_blocks.{}."
    parts = [f"{block}attn.to_q", f"{block}attn.to_k", f"{block}attn.to_v", f"{block}proj_mlp"]
    return [
        ["single_blocks.{}.linear1", *parts, {"ratio": [1, 1, 1, 4]}],
        ["single_blocks.{}.linear2", f"{block}proj_out"],
        modulation,
        ["single_blocks.{}.norm.query_norm", f"{block}attn.norm_q"],
        ["single_blocks.{}.norm.key_norm", f"{block}attn.norm_k"],
        ["single_blocks.{}.q_norm", f"{block}attn.norm_q"],
        ["single_blocks.{}.k_norm", f"{block}attn.norm_k"],
    ]


def _flux2() -> dict[str, Any]:
    rows: list[Row] = [
        ["img_in", "x_embedder"],
        ["txt_in", "context_embedder"],
        ["final_layer.linear", "proj_out"],
        ["final_layer.adaLN_modulation.1", "norm_out.linear", {"swap": True}],
        ["double_stream_modulation_img.lin", "double_stream_modulation_img.linear"],
        ["double_stream_modulation_txt.lin", "double_stream_modulation_txt.linear"],
        ["single_stream_modulation.lin", "single_stream_modulation.linear"],
    ]
    for name, embedder in {"time": "timestep_embedder", "guidance": "guidance_embedder"}.items():
        rows += [
            [f"{name}_in.in_layer", f"time_guidance_embed.{embedder}.linear_1"],
            [f"{name}_in.out_layer", f"time_guidance_embed.{embedder}.linear_2"],
        ]
    new = {"net.0.proj": "linear_in", "net.2": "linear_out"}
    for row in _double("img_attn.qkv", "img_mlp.0", "img_mlp.2", "img_mod.lin"):
        if "_mod." not in row[0]:
            for old, name in new.items():
                row = [item.replace(old, name) for item in row]
            rows.append(row)
    rows += _each(
        "single_blocks.{}.|single_transformer_blocks.{}.attn.",
        {
            "linear1": "to_qkv_mlp_proj",
            "linear2": "to_out",
            "norm.query_norm": "norm_q",
            "norm.key_norm": "norm_k",
        },
    )
    return {
        "source": "black-forest-labs/flux2, src/flux2",
        "classes": ["Flux2Transformer2DModel"],
        "component": "transformer",
        "suffixes": {"scale": "weight"},
        "modules": rows,
    }


def _hunyuan() -> dict[str, Any]:
    rows: list[Row] = [
        ["img_in.proj", "x_embedder.proj"],
        ["final_layer.linear", "proj_out"],
        ["final_layer.adaLN_modulation.1", "norm_out.linear", {"swap": True}],
        ["vector_in.in_layer", "time_text_embed.text_embedder.linear_1"],
        ["vector_in.out_layer", "time_text_embed.text_embedder.linear_2"],
    ]
    for name, embedder in {"time": "timestep_embedder", "guidance": "guidance_embedder"}.items():
        rows += [
            [f"{name}_in.mlp.0", f"time_text_embed.{embedder}.linear_1"],
            [f"{name}_in.mlp.2", f"time_text_embed.{embedder}.linear_2"],
        ]
    rows += _double("img_attn_qkv", "img_mlp.fc1", "img_mlp.fc2", "img_mod.linear")
    rows += _single(
        ["single_blocks.{}.modulation.linear", "single_transformer_blocks.{}.norm.linear"]
    )
    embed = "context_embedder.time_text_embed."
    rows += [
        ["txt_in.input_embedder", "context_embedder.proj_in"],
        ["txt_in.t_embedder.mlp.0", f"{embed}timestep_embedder.linear_1"],
        ["txt_in.t_embedder.mlp.2", f"{embed}timestep_embedder.linear_2"],
        ["txt_in.c_embedder.linear_1", f"{embed}text_embedder.linear_1"],
        ["txt_in.c_embedder.linear_2", f"{embed}text_embedder.linear_2"],
    ]
    refiner = "context_embedder.token_refiner.refiner_blocks.{}."
    blocks = "txt_in.individual_token_refiner.blocks.{}."
    rows.append([f"{blocks}self_attn_qkv", *(f"{refiner}attn.to_{x}" for x in "qkv")])
    rows += _each(
        f"{blocks}|{refiner}",
        {
            "self_attn_proj": "attn.to_out.0",
            "mlp.fc1": "ff.net.0.proj",
            "mlp.fc2": "ff.net.2",
            "adaLN_modulation.1": "norm_out.linear",
            "norm1": "norm1",
            "norm2": "norm2",
        },
    )
    # ComfyUI's names of the embedders.
    for name, embedder in (
        ("time_in", "time_text_embed.timestep_embedder"),
        ("guidance_in", "time_text_embed.guidance_embedder"),
        ("txt_in.t_embedder", f"{embed}timestep_embedder"),
        ("txt_in.c_embedder", f"{embed}text_embedder"),
    ):
        rows += [
            [f"{name}.in_layer", f"{embedder}.linear_1"],
            [f"{name}.out_layer", f"{embedder}.linear_2"],
        ]
    return {
        "source": "Tencent/HunyuanVideo, hyvideo/modules; ComfyUI, comfy/supported_models.py",
        "classes": ["HunyuanVideoTransformer3DModel", "HunyuanVideoFramepackTransformer3DModel"],
        "component": "transformer",
        "modules": rows,
    }


def _wan() -> dict[str, Any]:
    rows: list[Row] = [
        ["head.head", "proj_out"],
        ["head.modulation", "scale_shift_table", {"tensor": True}],
        ["blocks.{}.modulation", "blocks.{}.scale_shift_table", {"tensor": True}],
        ["blocks.{}.norm3", "blocks.{}.norm2"],
        ["blocks.{}.ffn.0", "blocks.{}.ffn.net.0.proj"],
        ["blocks.{}.ffn.2", "blocks.{}.ffn.net.2"],
        ["time_projection.1", "condition_embedder.time_proj"],
    ]
    for name, embedder in {"time": "time_embedder", "text": "text_embedder"}.items():
        rows += [
            [f"{name}_embedding.0", f"condition_embedder.{embedder}.linear_1"],
            [f"{name}_embedding.2", f"condition_embedder.{embedder}.linear_2"],
        ]
    image = {"0": "norm1", "1": "ff.net.0.proj", "3": "ff.net.2", "4": "norm2"}
    rows += _each("img_emb.proj.|condition_embedder.image_embedder.", image)
    names = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q"}
    names |= {"norm_k": "norm_k"}
    added = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}
    rows += _each("blocks.{}.self_attn.|blocks.{}.attn1.", names)
    rows += _each("blocks.{}.cross_attn.|blocks.{}.attn2.", {**names, **added})
    rows += _same("patch_embedding")
    return {
        "source": "Wan-Video/Wan2.1 and Wan2.2, wan/modules/model.py",
        "classes": ["WanTransformer3DModel", "WanVACETransformer3DModel"],
        "component": "transformer",
        "modules": rows,
    }


def _sd3() -> dict[str, Any]:
    rows: list[Row] = [
        ["x_embedder.proj", "pos_embed.proj"],
        ["t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_1"],
        ["t_embedder.mlp.2", "time_text_embed.timestep_embedder.linear_2"],
        ["y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1"],
        ["y_embedder.mlp.2", "time_text_embed.text_embedder.linear_2"],
        ["final_layer.linear", "proj_out"],
        ["final_layer.adaLN_modulation.1", "norm_out.linear", {"swap": True}],
    ]
    new = "transformer_blocks.{}."
    for block, names, out, added, ff in (
        ("x_block", ("to_q", "to_k", "to_v"), "to_out.0", "", "ff"),
        ("context_block", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "added_",
         "ff_context"),
    ):  # fmt: skip
        old = f"joint_blocks.{{}}.{block}."
        rows += [
            [f"{old}attn.qkv", *(f"{new}attn.{name}" for name in names)],
            [f"{old}attn.proj", f"{new}attn.{out}"],
            [f"{old}attn.ln_q", f"{new}attn.norm_{added}q"],
            [f"{old}attn.ln_k", f"{new}attn.norm_{added}k"],
            [f"{old}mlp.fc1", f"{new}{ff}.net.0.proj"],
            [f"{old}mlp.fc2", f"{new}{ff}.net.2"],
        ]
    old = "joint_blocks.{}.x_block."
    rows += [
        [f"{old}attn2.qkv", *(f"{new}attn2.to_{x}" for x in "qkv")],
        [f"{old}attn2.proj", f"{new}attn2.to_out.0"],
        [f"{old}attn2.ln_q", f"{new}attn2.norm_q"],
        [f"{old}attn2.ln_k", f"{new}attn2.norm_k"],
        [f"{old}adaLN_modulation.1", f"{new}norm1.linear"],
        # The last block's has a scale and a shift only, which are swapped in diffusers.
        [
            "joint_blocks.{}.context_block.adaLN_modulation.1",
            f"{new}norm1_context.linear",
            {"swap_ratio": 2},
        ],
        *_same("context_embedder"),
    ]
    return {
        "source": "Stability-AI/sd3.5, mmditx.py",
        "classes": ["SD3Transformer2DModel"],
        "component": "transformer",
        "modules": rows,
    }


def _unet() -> dict[str, Any]:
    rows: list[Row] = [
        ["time_embed.0", "time_embedding.linear_1"],
        ["time_embed.2", "time_embedding.linear_2"],
        ["input_blocks.0.0", "conv_in"],
        ["out.0", "conv_norm_out"],
        ["out.2", "conv_out"],
        ["label_emb.0.0", "add_embedding.linear_1"],
        ["label_emb.0.2", "add_embedding.linear_2"],
    ]
    resnet = {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
        "emb_layers.1": "time_emb_proj",
        "skip_connection": "conv_shortcut",
    }
    inner = ["norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"]
    inner += [f"attn{n}.{name}" for n in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")]
    names = ["norm", "proj_in", "proj_out", *(f"transformer_blocks.{{}}.{name}" for name in inner)]
    attention = {name: name for name in names}
    for i in range(12):
        block, layer = divmod(i, 3)
        up = f"up_blocks.{block}."
        rows += _each(f"output_blocks.{i}.0.|{up}resnets.{layer}.", resnet)
        rows += _each(f"output_blocks.{i}.1.|{up}attentions.{layer}.", attention)
        if layer == 2:
            rows += [[f"output_blocks.{i}.{n}.conv", f"{up}upsamplers.0.conv"] for n in (1, 2)]
        if i == 0:
            continue
        block, layer = divmod(i - 1, 3)
        down = f"down_blocks.{block}."
        if layer == 2:
            rows.append([f"input_blocks.{i}.0.op", f"{down}downsamplers.0.conv"])
            continue
        rows += _each(f"input_blocks.{i}.0.|{down}resnets.{layer}.", resnet)
        rows += _each(f"input_blocks.{i}.1.|{down}attentions.{layer}.", attention)
    for i in (0, 2):
        rows += _each(f"middle_block.{i}.|mid_block.resnets.{i // 2}.", resnet)
    rows += _each("middle_block.1.|mid_block.attentions.0.", attention)
    # In files with the whole model, SDXL's second text encoder, its refiner's, and that of SD 2.
    rows += _clip_rows("conditioner.embedders.1.model.", "text_encoder_2.")
    rows += _clip_rows("conditioner.embedders.0.model.", "text_encoder_2.")
    rows += _clip_rows("cond_stage_model.model.", "text_encoder.")
    return {
        "source": "Stability-AI/generative-models, sgm/modules/diffusionmodules/openaimodel.py; "
        "mlfoundations/open_clip, src/open_clip/transformer.py",
        "classes": ["UNet2DConditionModel"],
        "component": "unet",
        "suffixes": _PARAMETERS,
        "modules": rows,
    }


# Parameters of OpenCLIP's text encoder that are no module's weight, as if they were.
_PARAMETERS = {
    "in_proj_weight": "in_proj.weight",
    "in_proj_bias": "in_proj.bias",
    "positional_embedding": "positional_embedding.weight",
    "text_projection": "text_projection.weight",
}


def _clip_rows(prefix: str, component: str) -> list[Row]:
    """OpenCLIP's text encoder below a name, and that of transformers below a component."""
    model, block = f"{component}text_model.", "transformer.resblocks.{}."
    layer = f"{model}encoder.layers.{{}}."
    rows: list[Row] = [
        [f"{prefix}{block}attn.in_proj", *(f"{layer}self_attn.{x}_proj" for x in "qkv")],
        [f"{prefix}text_projection", f"{component}text_projection", {"transposed": True}],
    ]
    names = {
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
    }
    rows += _each(f"{prefix}{block}|{layer}", names)
    rest = {
        "token_embedding": "embeddings.token_embedding",
        "positional_embedding": "embeddings.position_embedding",
        "ln_final": "final_layer_norm",
    }
    return rows + list(_each(f"{prefix}|{model}", rest))


def _z_image() -> dict[str, Any]:
    rows: list[Row] = [
        ["x_embedder", "all_x_embedder.2-1"],
        ["final_layer.linear", "all_final_layer.2-1.linear"],
        ["final_layer.adaLN_modulation.1", "all_final_layer.2-1.adaLN_modulation.1"],
    ]
    for part in ("layers", "noise_refiner", "context_refiner"):
        attention = f"{part}.{{}}.attention."
        rows += [
            [f"{attention}qkv", *(f"{attention}to_{x}" for x in "qkv"), {"ratio": [0, 0, 0]}],
            [f"{attention}out", f"{attention}to_out.0"],
            [f"{attention}q_norm", f"{attention}norm_q"],
            [f"{attention}k_norm", f"{attention}norm_k"],
        ]
        rows += _same("attention_norm1 attention_norm2 ffn_norm1 ffn_norm2", f"{part}.{{}}.")
        rows += _same("w1 w2 w3", f"{part}.{{}}.feed_forward.")
        if part != "context_refiner":
            rows += _same(f"{part}.{{}}.adaLN_modulation.{{}}")
    rows += _same("cap_embedder.{} t_embedder.mlp.{}")
    return {
        "source": "Tongyi-MAI/Z-Image, and ComfyUI's comfy/ldm/lumina/model.py",
        "classes": ["ZImageTransformer2DModel"],
        "component": "transformer",
        "modules": rows,
    }


def _lumina2() -> dict[str, Any]:
    rows: list[Row] = [
        ["cap_embedder.0", "time_caption_embed.caption_embedder.0"],
        ["cap_embedder.1", "time_caption_embed.caption_embedder.1"],
        ["t_embedder.mlp.0", "time_caption_embed.timestep_embedder.linear_1"],
        ["t_embedder.mlp.2", "time_caption_embed.timestep_embedder.linear_2"],
        ["final_layer.adaLN_modulation.1", "norm_out.linear_1"],
        ["final_layer.linear", "norm_out.linear_2"],
    ]
    for part in ("layers", "noise_refiner", "context_refiner"):
        block = f"{part}.{{}}."
        is_plain = part == "context_refiner"
        rows += [
            [
                f"{block}attention.qkv",
                *(f"{block}attn.to_{x}" for x in "qkv"),
                {"ratio": [0, 0, 0]},
            ],
            [f"{block}attention.out", f"{block}attn.to_out.0"],
            [f"{block}attention.q_norm", f"{block}attn.norm_q"],
            [f"{block}attention.k_norm", f"{block}attn.norm_k"],
            [f"{block}attention_norm1", f"{block}norm1" + ("" if is_plain else ".norm")],
            [f"{block}attention_norm2", f"{block}norm2"],
            *([f"{block}feed_forward.w{n}", f"{block}feed_forward.linear_{n}"] for n in (1, 2, 3)),
        ]
        if not is_plain:
            rows.append([f"{block}adaLN_modulation.1", f"{block}norm1.linear"])
        rows += _same("ffn_norm1 ffn_norm2", block)
    rows += _same("x_embedder")
    return {
        "source": "Alpha-VLLM/Lumina-Image-2.0, models/model.py",
        "classes": ["Lumina2Transformer2DModel"],
        "component": "transformer",
        "modules": rows,
    }


def _ltx() -> dict[str, Any]:
    rows: list[Row] = []
    embed = ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
    times = {
        "adaln_single": "time_embed",
        "audio_adaln_single": "audio_time_embed",
        "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
        "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
        "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
        "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    }
    for old, new in times.items():
        rows += [[f"{old}.{name}", f"{new}.{name}"] for name in embed]
    rows += [["patchify_proj", "proj_in"], ["audio_patchify_proj", "audio_proj_in"]]
    attentions = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn")
    for attention in (*attentions, "video_to_audio_attn"):
        prefix = f"transformer_blocks.{{}}.{attention}."
        rows += [[f"{prefix}q_norm", f"{prefix}norm_q"], [f"{prefix}k_norm", f"{prefix}norm_k"]]
        rows += _same("to_q to_k to_v to_out.{}", prefix)
    rows += _same(
        "ff.net.{} ff.net.{}.proj audio_ff.net.{} audio_ff.net.{}.proj", "transformer_blocks.{}."
    )
    for part in ("", "audio_"):
        rows += _same("caption_projection.linear_1 caption_projection.linear_2 proj_out", part)
    return {
        "source": "Lightricks/LTX-Video and LTX-2, ltx_video/models/transformers",
        "classes": ["LTXVideoTransformer3DModel", "LTX2VideoTransformer3DModel"],
        "component": "transformer",
        "modules": rows,
    }


def _qwen_image() -> dict[str, Any]:
    attention = "to_q to_k to_v to_out.{} add_q_proj add_k_proj add_v_proj to_add_out"
    norms = "norm_q norm_k norm_added_q norm_added_k"
    rows = _same(f"{attention} {norms}", "transformer_blocks.{}.attn.")
    for stream in ("img", "txt"):
        rows += _same("mlp.net.{} mlp.net.{}.proj mod.{}", f"transformer_blocks.{{}}.{stream}_")
    rows += _same("img_in txt_in txt_norm norm_out.linear proj_out")
    rows += _same("linear_1 linear_2", "time_text_embed.timestep_embedder.")
    return {
        "source": "QwenLM/Qwen-Image, whose model is that of diffusers",
        "classes": ["QwenImageTransformer2DModel"],
        "component": "transformer",
        "modules": rows,
    }


def _hidream() -> dict[str, Any]:
    rows: list[Row] = []
    attention = "to_q to_k to_v to_out q_rms_norm k_rms_norm"
    for blocks, streams in (("double", ("", "_t")), ("single", ("",))):
        prefix = f"{blocks}_stream_blocks.{{}}.block."
        for stream in streams:
            rows += [[f"{prefix}attn1.{name}{stream}"] for name in attention.split()]
        for ff in ("ff_i.experts.{}", "ff_i.shared_experts", "ff_t")[: 2 + len(streams) // 2]:
            rows += _same("w1 w2 w3", f"{prefix}{ff}.")
        rows += _same("ff_i.gate adaLN_modulation.{}", prefix)
    rows += _same("caption_projection.{}.linear final_layer.adaLN_modulation.{} x_embedder.proj")
    rows += _same("final_layer.linear")
    for embedder in ("p_embedder.pooled_embedder.", "t_embedder.timestep_embedder."):
        rows += _same("linear_1 linear_2", embedder)
    return {
        "source": "HiDream-ai/HiDream-I1, whose model is that of diffusers",
        "classes": ["HiDreamImageTransformer2DModel"],
        "component": "transformer",
        "modules": rows,
    }


def tables() -> dict[str, dict[str, Any]]:
    """Returns the tables by the name of their file."""
    makers = {
        "flux": _flux,
        "flux2": _flux2,
        "hidream": _hidream,
        "hunyuan_video": _hunyuan,
        "ltx": _ltx,
        "lumina2": _lumina2,
        "qwen_image": _qwen_image,
        "sd3": _sd3,
        "unet": _unet,
        "wan": _wan,
        "z_image": _z_image,
    }
    return {name: make() for name, make in makers.items()}


def text_of(table: dict[str, Any]) -> str:
    """Returns a table as JSON with a row a line."""
    rows = ",\n    ".join(json.dumps(row) for row in table["modules"])
    head = {name: value for name, value in table.items() if name != "modules"}
    text = json.dumps(head, indent=2)
    return f'{text[:-2]},\n  "modules": [\n    {rows}\n  ]\n}}\n'


def main() -> None:
    """Writes the tables, or checks them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        from . import image_names_check

        image_names_check.main()
        return
    for name, table in tables().items():
        (FOLDER / f"{name}.json").write_text(text_of(table), encoding="utf-8")


if __name__ == "__main__":
    main()
