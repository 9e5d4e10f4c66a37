"""Checks the name maps of image models against diffusers' converters of single files.

Run as ``python -m tests.image_names --check``, with torch and diffusers. Weights of tiny models are
written in the original names by the tables, and converted by diffusers' own functions; every
tensor must be the model's.
"""

import re
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from jaxmix.converters.names.images import image_maps
from jaxmix.placement.templates import Templates

__all__ = ["CASES", "Tensors", "main", "open_clip_tensors", "tiny_text_encoder"]

Tensors = dict[str, Any]
# Sizes of the published models in diffusers' functions, and those of the tiny ones.
_SIZES = {
    r"\b3072\b": "32",
    r"\b12288\b": "128",
    "q_dim = 2304": "q_dim = 32",
    "k_dim = v_dim = 768": "k_dim = v_dim = 16",
}
_SMALL: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}
_FLUX: dict[str, Any] = {
    **_SMALL,
    "in_channels": 4,
    "num_single_layers": 2,
    "joint_attention_dim": 24,
}
_UNET: dict[str, Any] = {
    "sample_size": 8,
    "norm_num_groups": 8,
    "layers_per_block": 2,
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
}
_WAN: dict[str, Any] = {
    **_SMALL,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 24,
    "freq_dim": 16,
    "ffn_dim": 48,
}
_LTX: dict[str, Any] = {
    **_SMALL,
    "in_channels": 8,
    "out_channels": 8,
    "cross_attention_dim": 32,
    "caption_channels": 24,
}


class Case(NamedTuple):
    """A tiny model: its table, class, settings, and diffusers' converter."""

    table: str
    model: str
    settings: dict[str, Any]
    converter: str


CASES: dict[str, Case] = {
    "flux": Case(
        "flux",
        "FluxTransformer2DModel",
        {
            **_FLUX,
            "pooled_projection_dim": 20,
            "guidance_embeds": True,
            "axes_dims_rope": (4, 6, 6),
        },
        "convert_flux_transformer_checkpoint_to_diffusers",
    ),
    "chroma": Case(
        "flux",
        "ChromaTransformer2DModel",
        {
            **_FLUX,
            "axes_dims_rope": (4, 6, 6),
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
        },
        "convert_chroma_transformer_checkpoint_to_diffusers",
    ),
    "flux2": Case(
        "flux2",
        "Flux2Transformer2DModel",
        {**_FLUX, "axes_dims_rope": (4, 4, 4, 4), "timestep_guidance_channels": 16},
        "convert_flux2_transformer_checkpoint_to_diffusers",
    ),
    "hunyuan_video": Case(
        "hunyuan_video",
        "HunyuanVideoTransformer3DModel",
        {
            **_SMALL,
            "in_channels": 4,
            "out_channels": 4,
            "num_single_layers": 2,
            "num_refiner_layers": 1,
            "text_embed_dim": 24,
            "pooled_projection_dim": 20,
            "rope_axes_dim": (4, 6, 6),
        },
        "convert_hunyuan_video_transformer_to_diffusers",
    ),
    "ltx": Case(
        "ltx",
        "LTXVideoTransformer3DModel",
        _LTX,
        "convert_ltx_transformer_checkpoint_to_diffusers",
    ),
    "ltx2": Case(
        "ltx",
        "LTX2VideoTransformer3DModel",
        {
            **_LTX,
            "audio_in_channels": 8,
            "audio_out_channels": 8,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 8,
            "audio_cross_attention_dim": 16,
        },
        "convert_ltx2_transformer_to_diffusers",
    ),
    "lumina2": Case(
        "lumina2",
        "Lumina2Transformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 32,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "multiple_of": 16,
            "axes_dim_rope": (4, 2, 2),
            "axes_lens": (32, 32, 32),
            "cap_feat_dim": 24,
        },
        "convert_lumina2_to_diffusers",
    ),
    "sd3": Case(
        "sd3",
        "SD3Transformer2DModel",
        {
            **_SMALL,
            "sample_size": 8,
            "in_channels": 4,
            "joint_attention_dim": 32,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 32,
            "out_channels": 4,
            "qk_norm": "rms_norm",
            "dual_attention_layers": (0,),
            "pos_embed_max_size": 8,
        },
        "convert_sd3_transformer_checkpoint_to_diffusers",
    ),
    "sd15": Case(
        "unet",
        "UNet2DConditionModel",
        {**_UNET, "block_out_channels": (16, 32, 32, 32)},
        "convert_ldm_unet_checkpoint",
    ),
    "sdxl": Case(
        "unet",
        "UNet2DConditionModel",
        {
            **_UNET,
            "block_out_channels": (16, 32, 32),
            "use_linear_projection": True,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 3),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 64,
        },
        "convert_ldm_unet_checkpoint",
    ),
    "wan": Case("wan", "WanTransformer3DModel", _WAN, "convert_wan_transformer_to_diffusers"),
    "wan_i2v": Case(
        "wan",
        "WanTransformer3DModel",
        {**_WAN, "image_dim": 20, "added_kv_proj_dim": 32},
        "convert_wan_transformer_to_diffusers",
    ),
    "z_image": Case(
        "z_image",
        "ZImageTransformer2DModel",
        {
            "in_channels": 4,
            "dim": 32,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 24,
            "axes_dims": [4, 6, 6],
            "axes_lens": [32, 32, 32],
        },
        "convert_z_image_transformer_checkpoint_to_diffusers",
    ),
}
# Where the table lists several original names of a module: those that these checkpoints lack.
_UNUSED = {
    "flux": r"processor|[qk]_norm$",
    "chroma": r"processor|[qk]_norm$",
    "flux2": r"[^.][qk]_norm$",
    "hunyuan_video": r"norm\.(query|key)|(time_in|guidance_in|embedder)\.(in|out)_layer",
    "sd15": r"output_blocks\.2\.2\.conv|output_blocks\.[58]\.1\.conv",
    "sdxl": r"output_blocks\.[258]\.1\.conv",
}


def _converters() -> dict[str, Any]:
    """The module with diffusers' converters, with the sizes of the tiny models."""
    from diffusers.loaders import single_file_utils  # pyright: ignore[reportMissingImports]

    source = Path(single_file_utils.__file__ or "").read_text(encoding="utf-8")
    for size, small in _SIZES.items():
        source = re.sub(size, small, source)
    # The functions are those of the installed package, so this runs no code of others.
    exec(compile(source, single_file_utils.__file__ or "", "exec"), single_file_utils.__dict__)
    return single_file_utils.__dict__


def _tiny(case: Case) -> Any:
    """A model with random weights."""
    import diffusers  # pyright: ignore[reportMissingImports]
    import torch

    model = getattr(diffusers, case.model)(**case.settings)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return model


def _original(name: str, table: Templates, state: Mapping[str, Any]) -> Tensors:
    """A model's tensors in the original names."""
    import torch

    tensors, used = Tensors(), set[str]()
    scales = {new: old for old, new in table.suffixes}
    unused = re.compile(_UNUSED.get(name, "$^"))
    for source, targets in table.sources({key.rpartition(".")[0] for key in state}).items():
        if unused.search(source):
            continue
        for end in ("weight", "bias"):
            keys = [f"{target}.{end}" for target in targets]
            if not all(key in state for key in keys):
                continue
            tensor = torch.cat([state[key] for key in keys])
            if _is_swapped(table, targets[0], state):
                tensor = torch.cat(tensor.chunk(2)[::-1])
            is_norm = end == "weight" and "norm." in source
            tensors[f"{source}.{scales.get(end, end) if is_norm else end}"] = tensor
            used.update(keys)
    for row in table.rows if any(row.is_tensor for row in table.rows) else ():
        pattern = re.compile(re.escape(row.targets[0]).replace(r"\{\}", r"(\d+)"))
        for key in state:
            if row.is_tensor and (match := pattern.fullmatch(key)):
                tensors[row.source.format(*match.groups())] = state[key]
                used.add(key)
    rest = {key: tensor for key, tensor in state.items() if key not in used}
    return _without_rows(name, {**tensors, **rest})


def _is_swapped(table: Templates, target: str, state: Mapping[str, Any]) -> bool:
    """Whether the halves of a module's rows are in the other order in its original."""
    template = re.sub(r"\.\d+\.", ".{}.", target)
    row = next((row for row in table.rows if template in row.targets), None)
    if row is None or not row.swap_ratio:
        return row is not None and row.has_swapped_halves
    rows, columns = state[f"{target}.weight"].shape
    return rows == row.swap_ratio * columns


def _without_rows(name: str, tensors: Tensors) -> Tensors:
    """Renames what has no row, as no adapter changes it."""
    renamed = Tensors()
    for key, tensor in tensors.items():
        if name == "sd3" and key == "pos_embed.pos_embed":
            key = "pos_embed"
        elif name == "chroma" and key.startswith("distilled_guidance_layer.norms"):
            key = key.replace("weight", "scale")
        renamed[key] = tensor
    return renamed


def _problems(name: str, case: Case, convert: Callable[..., Tensors]) -> tuple[int, list[str]]:
    """The number of a model's tensors, and those that diffusers has under other names or rows."""
    import torch

    model = _tiny(case)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    table = next(names for names in image_maps() if names.name == case.table).templates
    assert table is not None
    tensors, options = _original(name, table, state), {}
    if case.table == "unet":
        tensors = {f"model.diffusion_model.{key}": x for key, x in tensors.items()}
        options = {"config": dict(model.config)}
    converted = convert(tensors, **options)
    problems = [f"{key}: only on one side" for key in sorted(converted.keys() ^ state.keys())]
    for key in sorted(converted.keys() & state.keys()):
        if not torch.equal(converted[key], state[key]):
            problems.append(f"{key}: other numbers")
    return len(state), problems


# Where OpenCLIP's text encoders are in single files, and the component of a pipeline that each is.
_TEXT = {
    "conditioner.embedders.1.model.": "text_encoder_2.",
    "conditioner.embedders.0.model.": "text_encoder_2.",
    "cond_stage_model.model.": "text_encoder.",
}


def open_clip_tensors(prefix: str, component: str, state: Mapping[str, Any]) -> Tensors:
    """A text encoder of transformers under OpenCLIP's names, by the table.

    Args:
        prefix: The prefix of OpenCLIP's names.
        component: The prefix of the names in the table.
        state: The model's tensors.
    """
    import torch

    table = next(names for names in image_maps() if names.name == "unet").templates
    assert table is not None
    parameters = {new: old for old, new in table.suffixes}
    transposed = {row.source for row in table.rows if row.is_transposed}
    tensors = Tensors()
    modules = {f"{component}{key.rpartition('.')[0]}" for key in state}
    for source, targets in table.sources(modules).items():
        for end in ("weight", "bias") if source.startswith(prefix) else ():
            keys = [f"{target.removeprefix(component)}.{end}" for target in targets]
            if all(key in state for key in keys):
                tensor = torch.cat([state[key] for key in keys])
                tensor = tensor.T.contiguous() if source in transposed else tensor
                start, _, module = source.rpartition(".")
                name = f"{module}.{end}"
                tensors[f"{start}.{parameters.get(name, name)}"] = tensor
    return tensors


def tiny_text_encoder(seed: int = 1) -> Any:
    """A text encoder of CLIP with a projection and random weights."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    sizes = {"hidden_size": 16, "intermediate_size": 32, "projection_dim": 12, "vocab_size": 50}
    torch.manual_seed(seed)
    config = CLIPTextConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)
    model = CLIPTextModelWithProjection(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def _text_problems(prefix: str, convert: Callable[..., Tensors]) -> tuple[int, list[str]]:
    """As `_problems`, for a text encoder in OpenCLIP's names."""
    import torch

    model = tiny_text_encoder()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    converted = convert(model, open_clip_tensors(prefix, _TEXT[prefix], state), prefix=prefix)
    # diffusers leaves the projection of Stable Diffusion 2 out, which has no use there.
    absent = {"text_projection.weight"} if _TEXT[prefix] == "text_encoder." else set[str]()
    problems = [f"{k}: only on one side" for k in sorted(converted.keys() ^ state.keys() - absent)]
    for key in sorted(converted.keys() & state.keys()):
        if not torch.equal(converted[key], state[key]):
            problems.append(f"{key}: other numbers")
    return len(state), problems


def main() -> None:
    """Compares every model; exits with an error that lists what differs."""
    converters = _converters()
    failed = False
    text = {
        prefix: _text_problems(prefix, converters["convert_open_clip_checkpoint"])
        for prefix in _TEXT
    }
    models = (
        (name, _problems(name, case, converters[case.converter])) for name, case in CASES.items()
    )
    for name, (count, problems) in chain(text.items(), models):
        print(f"{name}: {count} tensors, {len(problems)} differ", *problems[:5], sep="\n  ")
        failed = failed or bool(problems)
    if failed:
        raise SystemExit(1)
