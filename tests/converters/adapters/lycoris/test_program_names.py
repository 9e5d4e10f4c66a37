"""Adapters of image models, written by the names that each program reads."""

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import jaxmix
from jaxmix.converters.comfyui import export_comfyui, export_original
from jaxmix.converters.diffusers import export_diffusers
from jaxmix.converters.kohya import export_kohya
from jaxmix.converters.names.images.models import image_models
from jaxmix.errors import AdapterError, CheckpointError, LayoutError, UnsupportedError
from jaxmix.families import Delta, DiagOFT, LoHa, LoKr, LoRA, Normed, Together, Update

from ....messages import full_text
from ...names.test_images import rows_of, trees
from ..formats import readers

EXPORTS: dict[str, Callable[..., Path]] = {
    "diffusers": export_diffusers,
    "kohya": export_kohya,
    "comfyui": export_comfyui,
    "original": export_original,
}
MODELS = "flux flux2 hidream hunyuan_video ltx lumina2 qwen_image sd3 wan z_image sd15 sdxl".split()
Arrays = dict[str, np.ndarray]


@cache
def sides(name: str) -> tuple[Arrays, Arrays]:
    """A small model's weights in the original names and in those of diffusers."""
    (model,) = [model for model in image_models() if model.name == name]
    rows = [
        row
        for row in rows_of(model.table.name, 60)
        if not re.search(rf"norm|{model.without}", row.source)
        and not row.targets[0].startswith("text_encoder")
        and not re.match(model.lacks, row.source)
        and not re.match(model.lacks, row.targets[0].replace("{}", "1"))
    ]
    if name == "sd15":
        rows = [row for row in rows if "transformer_blocks.{}" not in row.source]
    return trees(rows)


def normal(draw: np.random.Generator, *size: int) -> Any:
    """Random numbers."""
    return (draw.normal(size=size) / 2).astype(np.float32)


def lora(shape: tuple[int, ...], draw: np.random.Generator) -> Update:
    """A LoRA of rank 2."""
    return LoRA(normal(draw, 2, shape[1]), normal(draw, shape[0], 2), 0.5)


def dora(shape: tuple[int, ...], draw: np.random.Generator) -> Update:
    """A DoRA of rank 2."""
    a, b = normal(draw, 2, shape[1]), normal(draw, shape[0], 2)
    return LoRA(a, b, 0.5, magnitude=1 + np.abs(normal(draw, shape[0])))


def loha(shape: tuple[int, ...], draw: np.random.Generator) -> Update:
    """A LoHa of rank 2."""
    b1, b2 = normal(draw, shape[0], 2), normal(draw, shape[0], 2)
    a1, a2 = normal(draw, 2, shape[1]), normal(draw, 2, shape[1])
    return LoHa(b1, a1, b2, a2, 0.5)


def lokr(shape: tuple[int, ...], draw: np.random.Generator) -> Update:
    """A LoKr of two whole factors."""
    return LoKr((normal(draw, 2, 1),), (normal(draw, shape[0] // 2, shape[1]),), 0.5)


def diff(shape: tuple[int, ...], draw: np.random.Generator) -> Update:
    """A dense difference."""
    return Delta(normal(draw, *shape))


def rotation(shape: tuple[int, ...], draw: np.random.Generator) -> Update:
    """A Diag-OFT with blocks of 2."""
    return DiagOFT(normal(draw, shape[0] // 2, 2, 2))


def adapter_on(
    tree: Mapping[str, np.ndarray], kind: Callable[..., Update], start: str = ""
) -> jaxmix.Adapter:
    """An adapter on all weights of a tree."""
    draw = np.random.default_rng(1)
    updates = {start + k.removesuffix(".weight"): kind(x.shape, draw) for k, x in tree.items()}
    return jaxmix.Adapter(updates, name="style")


def composed(tree: Mapping[str, np.ndarray], adapter: jaxmix.Adapter, model: str) -> Arrays:
    """The tree with an adapter, in float64."""
    names = image_models(model)[0].table.name
    wide = {key: np.asarray(x, np.float64) for key, x in tree.items()}
    with jax.enable_x64(True):
        tensors = jaxmix.compose(wide, [adapter], names=names)
        return {key: np.asarray(x) for key, x in tensors.items()}


def assert_close(tensors: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Compares trees up to the rounding of float32 factors."""
    assert tensors.keys() == expected.keys()
    for key, x in expected.items():
        np.testing.assert_allclose(tensors[key], x, atol=3e-6, err_msg=key)


@dataclass(frozen=True)
class Case:
    """An adapter in the names of one scheme, and the weights of both schemes before and after."""

    adapter: jaxmix.Adapter
    original: Arrays
    memory: Arrays
    on_disk: Arrays
    in_memory: Arrays


@cache
def case_of(model: str, scheme: str, kind: Callable[..., Update]) -> Case:
    """An adapter of a kind on a small model, for all programs."""
    original, memory = sides(model)
    adapter = adapter_on(memory if scheme == "diffusers" else original, kind)
    after = (composed(tree, adapter, model) for tree in (original, memory))
    return Case(adapter, original, memory, *after)


def exported(program: str, adapter: jaxmix.Adapter, folder: Path, **options: Any) -> Path:
    """A file, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return EXPORTS[program](adapter, folder / "x.safetensors", force=True, **options)


def read_by(program: str, model: str, file: Path, original: Arrays, memory: Arrays) -> Arrays:
    """The weights after another program, and those before, as one pair of trees."""
    tensors = load_file(file)
    (image_model,) = [m for m in image_models() if m.name == model]
    if program == "diffusers":
        start = f"{image_model.table.prefix}."
        out = readers.diffusers(tensors, {start + key: x for key, x in memory.items()})
        return {key.removeprefix(start): x for key, x in out.items()}
    if program == "kohya":
        return readers.kohya(tensors, memory if image_model.is_renamed_by_kohya else original)
    if program == "original":
        return readers.original(tensors, original)
    start = "diffusion_model."
    renamed = {key: _in_comfyui(key) if model == "hunyuan_video" else key for key in original}
    out = readers.comfyui(tensors, {start + renamed[key]: x for key, x in original.items()})
    return {key: out[start + new] for key, new in renamed.items()}


def _in_comfyui(key: str) -> str:
    """The name of HunyuanVideo's weight in ComfyUI's model.

    Source: ``comfy/supported_models.py`` (``HunyuanVideo.process_unet_state_dict``).
    """
    for old, new in (
        ("txt_in.t_embedder.mlp.0.", "txt_in.t_embedder.in_layer."),
        ("txt_in.t_embedder.mlp.2.", "txt_in.t_embedder.out_layer."),
        ("txt_in.c_embedder.linear_1.", "txt_in.c_embedder.in_layer."),
        ("txt_in.c_embedder.linear_2.", "txt_in.c_embedder.out_layer."),
        ("_mod.linear.", "_mod.lin."),
        ("_attn_qkv.", "_attn.qkv."),
        ("mlp.fc1.", "mlp.0."),
        ("mlp.fc2.", "mlp.2."),
        ("_attn_proj.", "_attn.proj."),
        (".modulation.linear.", ".modulation.lin."),
        ("_in.mlp.2.", "_in.out_layer."),
        ("_in.mlp.0.", "_in.in_layer."),
    ):
        key = key.replace(old, new)
    return key


@pytest.mark.one_of(3)
@pytest.mark.parametrize("program", EXPORTS)
@pytest.mark.parametrize("scheme", ["diffusers", "original"])
@pytest.mark.parametrize("model", MODELS)
def test_lora_is_read_by_each_program(
    model: str, scheme: str, program: str, tmp_path: Path
) -> None:
    """LoRAs of either scheme have the same effect in every program, and in jaxmix."""
    case = case_of(model, scheme, lora)
    file = exported(program, case.adapter, tmp_path, names=model)
    reloaded = jaxmix.load(file, base=case.memory)
    assert_close(composed(case.memory, reloaded, model), case.in_memory)
    output = read_by(program, model, file, case.original, case.memory)
    is_memory = output.keys() == case.in_memory.keys()
    assert_close(output, case.in_memory if is_memory else case.on_disk)


@pytest.mark.one_of(2)
@pytest.mark.parametrize("kind", [dora, loha, lokr, diff, rotation], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("scheme", ["diffusers", "original"])
@pytest.mark.parametrize("program", EXPORTS)
def test_kinds_of_flux(
    program: str, scheme: str, kind: Callable[..., Update], tmp_path: Path
) -> None:
    """Every kind keeps its effect, or the error lists the kinds that diffusers reads."""
    case = case_of("flux", scheme, kind)
    if program == "diffusers" and kind is not dora:
        with pytest.raises(UnsupportedError) as caught:
            export_diffusers(case.adapter, tmp_path / "x.safetensors")
        if kind is not rotation or scheme == "diffusers":
            assert str(caught.value).startswith(
                "style: files for diffusers hold LoRA and DoRA only, and "
            )
        return
    file = exported(program, case.adapter, tmp_path)
    reloaded = jaxmix.load(file, base=case.memory)
    assert_close(composed(case.memory, reloaded, "flux"), case.in_memory)
    output = read_by(program, "flux", file, case.original, case.memory)
    assert_close(output, case.in_memory if program == "diffusers" else case.on_disk)


@pytest.mark.parametrize("scheme", ["diffusers", "original"])
def test_round_trip_keeps_the_factors(scheme: str, tmp_path: Path) -> None:
    """From the original names to diffusers' and back, q, k and v share A: the rank stays."""
    original, _ = sides("flux")
    kohya_adapter = adapter_on(original, lora)
    file = export_diffusers(
        kohya_adapter, tmp_path / "a.safetensors", patterns=scheme == "diffusers"
    )
    back = export_original(jaxmix.load(file), tmp_path / "b.safetensors")
    tensors = load_file(back)
    for site, update in kohya_adapter.updates.items():
        assert isinstance(update, LoRA)
        up, down = (tensors[f"{site}.lora_{x}.weight"] for x in ("up", "down"))
        np.testing.assert_array_equal(down, update.a)
        factor = 1.0 if scheme == "diffusers" else 0.5  # the scale goes into B, or the metadata
        np.testing.assert_array_equal(up, np.asarray(update.b) * np.float32(factor))


def test_components_of_a_pipeline(tmp_path: Path) -> None:
    """Each component has the prefix that the program reads, CLIP's names with `text_model.`."""
    update = LoRA(np.ones((1, 4)), np.ones((4, 1)), 1.0)
    clip, t5 = "encoder.layers.0.mlp.fc1", "encoder.block.0.layer.0.SelfAttention.q"
    flux, sdxl = "single_transformer_blocks.0.norm.linear", "up_blocks.0.attentions.0.proj_in"
    cases: dict[str, list[tuple[str, list[str]]]] = {
        "kohya": [
            (f"transformer.{flux}", ["lora_unet_single_blocks_0_modulation_lin"]),
            (f"text_encoder.{clip}", ["lora_te1_text_model_encoder_layers_0_mlp_fc1"]),
            (f"text_encoder_2.{t5}", ["lora_te3_encoder_block_0_layer_0_SelfAttention_q"]),
        ],
        "comfyui": [
            (f"transformer.{flux}", ["diffusion_model.single_blocks.0.modulation.lin"]),
            (f"text_encoder.{clip}", [f"text_encoder.text_model.{clip}"]),
            (f"text_encoder_2.{t5}", [f"text_encoders.t5xxl.transformer.{t5}"]),
        ],
        "diffusers": [
            ("double_blocks.0.img_mod.lin", ["transformer.transformer_blocks.0.norm1.linear"]),
            (f"text_encoder.{clip}", [f"text_encoder.text_model.{clip}"]),
        ],
    }
    for program, pairs in cases.items():
        adapter = jaxmix.Adapter({site: update for site, _ in pairs})
        file = exported(program, adapter, tmp_path, names="flux")
        keys = {re.split(r"\.(?:lora_|alpha)", key)[0] for key in load_file(file)}
        assert keys == {name for _, names in pairs for name in names}
    adapter = jaxmix.Adapter(
        {f"unet.{sdxl}": update, f"text_encoder.{clip}": update, f"text_encoder_2.{clip}": update}
    )
    keys = set(load_file(exported("kohya", adapter, tmp_path)))
    assert "lora_unet_output_blocks_0_1_proj_in.alpha" in keys
    assert "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha" in keys
    assert "lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha" in keys
    with safe_open(exported("diffusers", adapter, tmp_path), "np") as file:
        # diffusers renames CLIP's modules in the keys only, so the file has no metadata.
        assert file.metadata() == {"format": "pt"}
        assert f"text_encoder_2.text_model.{clip}.lora_A.weight" in file.keys()
    projection = {f"unet.{sdxl}": update, "text_encoder_2.text_projection": update}
    keys = set(load_file(exported("comfyui", jaxmix.Adapter(projection), tmp_path)))
    assert "text_encoders.clip_g.transformer.text_projection.alpha" in keys
    only_text = jaxmix.Adapter({f"text_model.{clip}": update, "text_projection": update})
    keys = set(load_file(exported("comfyui", only_text, tmp_path)))
    assert f"text_encoder.text_model.{clip}.alpha" in keys
    assert "text_encoders.clip_l.transformer.text_projection.alpha" in keys


def test_unets_differ(tmp_path: Path) -> None:
    """Kohya's scripts have diffusers' names of SD 1.5 and the original ones of SDXL."""
    update = LoRA(np.ones((1, 4)), np.ones((4, 1)), 1.0)
    sd15, sdxl = "down_blocks.0.attentions.0.proj_in", "up_blocks.0.attentions.0.proj_in"
    up = "up_blocks.0.upsamplers.0.conv"
    for site, upsampler, kohya in (
        (sd15, "output_blocks.2.1.conv", "down_blocks_0_attentions_0_proj_in"),
        (sdxl, "output_blocks.2.2.conv", "output_blocks_0_1_proj_in"),
    ):
        adapter = jaxmix.Adapter({f"unet.{site}": update, f"unet.{up}": update})
        assert f"lora_unet_{kohya}.alpha" in load_file(exported("kohya", adapter, tmp_path))
        tensors = load_file(exported("comfyui", adapter, tmp_path))
        assert f"diffusion_model.{upsampler}.alpha" in tensors
    # What both have: the answer for kohya differs, that for ComfyUI does not.
    adapter_of_both = jaxmix.Adapter({"unet.down_blocks.1.attentions.0.proj_in": update})
    with pytest.raises(LayoutError) as caught:
        export_kohya(adapter_of_both, tmp_path / "y.safetensors")
    assert str(caught.value) == (
        "adapter: its modules (down_blocks.1.attentions.0.proj_in …) may be those of sd15 or sdxl, "
        "which have different names in files of kohya's scripts. Say which model it is: "
        "names='sd15', or pass its base: base=…."
    )
    file = export_comfyui(adapter_of_both, tmp_path / "y.safetensors")
    assert "diffusion_model.input_blocks.4.1.proj_in.alpha" in load_file(file)
    base = [f"unet.{name}" for name in (sdxl, "down_blocks.1.attentions.0.proj_in")]
    file = export_kohya(adapter_of_both, file, base=base, force=True)
    assert "lora_unet_input_blocks_4_1_proj_in.alpha" in load_file(file)


def test_sizes_of_absent_parts(tmp_path: Path) -> None:
    """Without k and v, the rows of a fused weight follow from q, proportions or the base."""
    q = LoRA(np.ones((1, 6)), np.ones((6, 1)), 1.0)
    flux = jaxmix.Adapter({"single_transformer_blocks.0.attn.to_q": q})
    file = export_original(flux, tmp_path / "x.safetensors", names="flux")
    assert load_file(file)["single_blocks.0.linear1.lora_up.weight"].shape == (42, 1)
    z_image = jaxmix.Adapter({"layers.0.attention.to_q": q}, name="z")
    with pytest.raises(UnsupportedError) as caught:
        export_original(z_image, file, force=True)
    assert str(caught.value) == (
        "updates that can't be mapped to the names of z_image's own project:\n"
        "  layers.0.attention.to_q: has updates of 1 of the 3 weights that are fused in it, and "
        "the sizes of the others are unknown: pass the base (base=…)\n"
        "If it is another model, pass its name: names=…. jaxmix.to_lora(mix, params) makes a LoRA "
        "of any mix, which can be joined."
    )
    weights = {
        f"layers.0.attention.to_{x}.weight": np.ones((n, 6))
        for x, n in zip("qkv", (6, 2, 2), strict=True)
    }
    for base in (weights, {"layers.0.attention.qkv.weight": np.ones((10, 6))}):
        export_original(z_image, file, base=base, force=True)
        up = load_file(file)["layers.0.attention.qkv.lora_up.weight"]
        assert up.tolist() == [[1.0]] * 6 + [[0.0]] * 4


def test_bias_of_a_lora(tmp_path: Path) -> None:
    """A difference of the bias is PEFT's lora_bias in diffusers, cut like the weight."""
    draw = np.random.default_rng(0)
    qkv = LoRA(normal(draw, 2, 4), normal(draw, 6, 2), 0.5)
    both = Together((qkv, Delta(bias=normal(draw, 6))))
    adapter = jaxmix.Adapter({"double_blocks.0.img_attn.qkv": both})
    tensors = load_file(exported("diffusers", adapter, tmp_path))
    assert len(tensors) == 9
    biases = [tensors[f"transformer.transformer_blocks.0.attn.to_{x}.lora_B.bias"] for x in "qkv"]
    np.testing.assert_allclose(np.concatenate(biases), np.asarray(both.parts[1].bias), rtol=1e-6)


def test_xlabs_names_become_those_of_flux(tmp_path: Path) -> None:
    """XLabs' processors have names that only adapters have, and that ComfyUI's models lack."""
    update = LoRA(np.ones((1, 4)), np.ones((6, 1)), 1.0)
    adapter = jaxmix.Adapter({"double_blocks.0.processor.qkv_lora1": update})
    tensors = load_file(exported("comfyui", adapter, tmp_path))
    assert tensors["diffusion_model.double_blocks.0.img_attn.qkv.lora_up.weight"].shape == (6, 1)


def test_embedders_of_hunyuan_in_comfyui(tmp_path: Path) -> None:
    """ComfyUI renames these modules, and jaxmix reads its names."""
    update = LoRA(np.ones((1, 4)), np.ones((4, 1)), 1.0)
    site = "time_text_embed.timestep_embedder.linear_1"
    for name in (f"transformer.{site}", "time_in.mlp.0", "time_in.in_layer"):
        adapter = jaxmix.Adapter({name: update})
        file = exported("comfyui", adapter, tmp_path, names="hunyuan_video")
        assert "diffusion_model.time_in.in_layer.alpha" in load_file(file)
        tensors = load_file(exported("kohya", adapter, tmp_path, names="hunyuan_video"))
        assert "lora_unet_time_in_mlp_0.alpha" in tensors


# ---------------------------------------------------------------------------------- refusals


def refusal(program: str, updates: dict[str, Any], folder: Path, **options: Any) -> str:
    """The message of an error."""
    adapter = jaxmix.Adapter(updates, name="style")
    with pytest.raises((AdapterError, LayoutError, UnsupportedError)) as caught:
        EXPORTS[program](adapter, folder / "x.safetensors", **options)
    assert not list(folder.iterdir())
    return str(caught.value)


ONE = LoRA(np.ones((1, 4)), np.ones((4, 1)), 1.0)


def test_kinds_that_diffusers_ignores(tmp_path: Path) -> None:
    """The error states the kinds that were found, those that diffusers reads, and the remedy."""
    loha_one = LoHa(np.ones((4, 1)), np.ones((1, 4)), np.ones((4, 1)), np.ones((1, 4)), 1.0)
    assert refusal("diffusers", {"unet.x": loha_one, "unet.y": ONE}, tmp_path) == (
        "style: files for diffusers hold LoRA and DoRA only, and this adapter has:\n"
        "  unet.x: LoHa\n"
        "Write it for ComfyUI or kohya's scripts, which read more kinds. Or convert it to a LoRA: "
        "jaxmix.to_lora(adapter, params)."
    )
    assert refusal("diffusers", {"x": ONE}, tmp_path, prefix="diffusion_model") == (
        "the prefix 'diffusion_model' is that of ComfyUI, expected unet or transformer. Write the "
        "file for ComfyUI: jaxmix.converters.comfyui.export_comfyui."
    )


def test_text_encoders_that_diffusers_ignores(tmp_path: Path) -> None:
    """Diffusers loads no adapters of Flux's T5."""
    t5 = "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"
    updates = {"transformer.transformer_blocks.0.attn.to_q": ONE, t5: ONE}
    assert refusal("diffusers", updates, tmp_path, names="flux") == (
        f"style: diffusers loads no adapters of these text encoders for flux:\n  {t5}\n"
        "Leave them out, or write the file for ComfyUI or kohya's scripts."
    )


def test_unknown_modules_and_models(tmp_path: Path) -> None:
    """A module that the model's table lacks, and a model without a table."""
    updates = {"double_blocks.0.img_mod.lin": ONE, "transformer_blocks.0.norm9.linear": ONE}
    assert refusal("comfyui", updates, tmp_path) == (
        "style: ComfyUI would get names of flux, whose table lacks:\n"
        "  transformer_blocks.0.norm9.linear\n"
        "If it is another model, say which: names=…. To write the names as they are, pass names=''."
    )
    assert refusal("kohya", updates, tmp_path, names="fluxx").startswith(
        "there is no image or video model 'fluxx', expected one of sd15, sdxl, sdxl_refiner, flux,"
    )
    file = export_comfyui(jaxmix.Adapter(updates), tmp_path / "x.safetensors", names="")
    assert "diffusion_model.transformer_blocks.0.norm9.linear.alpha" in load_file(file)


def test_two_models_of_one_role(tmp_path: Path) -> None:
    """A file holds the adapter of one of Wan's two transformers."""
    updates = {f"{part}.blocks.0.ffn.0": ONE for part in ("transformer", "transformer_2")}
    assert refusal("diffusers", updates, tmp_path) == (
        "style: has sites of transformer and transformer_2, and a file covers one of them. Write a "
        "file for each, with the sites of one component: load(path, part=…)."
    )
    second = jaxmix.Adapter({"transformer_2.blocks.0.ffn.0": ONE})
    file = export_diffusers(second, tmp_path / "x.safetensors")
    assert "transformer.blocks.0.ffn.net.0.proj.lora_A.weight" in load_file(file)


def test_sites_that_are_one_module(tmp_path: Path) -> None:
    """A module under two components' names, or in both schemes."""
    six = LoRA(np.ones((1, 4)), np.ones((6, 1)), 1.0)
    both = {"double_blocks.0.img_attn.qkv": six, "transformer_blocks.0.attn.to_q": ONE}
    assert refusal("comfyui", both, tmp_path, names="flux").startswith(
        "updates that can't be mapped to the names of flux's own project:\n"
        "  double_blocks.0.img_attn.qkv: has several updates\n"
    )
    assert refusal("diffusers", both, tmp_path).startswith(
        "updates that can't be joined or split as the weights of flux are in memory:\n"
        "  transformer_blocks.0.attn.to_q: has several updates\n"
    )
    updates = {"unet.x": ONE, "diffusion_model.x": ONE}
    assert refusal("comfyui", updates, tmp_path) == (
        "style: sites that are one module:\n  unet.x and diffusion_model.x"
    )
    for program in EXPORTS:
        with pytest.raises(
            AdapterError,
            match=full_text(
                "got a Mix, expected one adapter. Convert a mix to one: "
                "jaxmix.to_lora(mix, params)."
            ),
        ):
            adapter = jaxmix.Adapter({"x": ONE})
            EXPORTS[program](jaxmix.mix(adapter, adapter.renamed("b")), tmp_path / "x.safetensors")


def test_updates_that_can_not_be_joined(tmp_path: Path) -> None:
    """DoRA needs the norms of all rows; a norm by input is that of all."""
    draw = np.random.default_rng(0)
    prefix = "transformer_blocks.0.attn.to_"
    assert refusal("kohya", {f"{prefix}q": dora((4, 6), draw)}, tmp_path, names="flux") == (
        "updates that can't be mapped to the names of flux's own project:\n"
        f"  {prefix}q: DoRA of 1 of 3 weights can't be joined into one update\n"
        "If it is another model, pass its name: names=…. jaxmix.to_lora(mix, params) makes a LoRA "
        "of any mix, which can be joined."
    )
    by_input = Normed(loha((4, 6), draw), np.ones(6, np.float32), axis="in")
    updates = {f"{prefix}{x}": by_input for x in "qkv"}
    assert "Normed can't be joined into one update" in refusal(
        "kohya", updates, tmp_path, names="flux"
    )
    rotation = DiagOFT(normal(draw, 2, 2, 2), bound=0.1)
    assert "norm_out.linear: DiagOFT can't be cut into rows of its weight" in refusal(
        "kohya", {"norm_out.linear": rotation}, tmp_path, names="flux"
    )


def test_kinds_that_comfyui_computes_differently(tmp_path: Path) -> None:
    """ComfyUI ignores a rotation's rescaling and Flux's norms, and has another norm for DoRA."""
    rescaled = DiagOFT(np.ones((2, 2, 2)), np.ones(4))
    updates = {"single_blocks.0.modulation.lin": rescaled}
    updates |= {"single_blocks.0.norm.query_norm": Delta(np.ones(4))}
    assert refusal("comfyui", updates, tmp_path) == (
        "style: updates that ComfyUI can't apply:\n"
        "  single_blocks.0.modulation.lin: a rescaled DiagOFT, whose rescaling ComfyUI ignores\n"
        "  single_blocks.0.norm.query_norm: a norm that ComfyUI does not find by its name\n"
        "jaxmix.to_lora(adapter, params) makes a LoRA of rotations; norms must be left out."
    )
    draw = np.random.default_rng(0)
    normed = jaxmix.Adapter({"x": dora((4, 6), draw)})
    with pytest.warns(UserWarning) as caught:
        export_comfyui(normed, tmp_path / "x.safetensors")
    assert str(caught[0].message) == (
        "adapter: ComfyUI divides DoRA's magnitude by the norm of W, not of W + Δ, so its result "
        "differs at:\n  x\nA LoRA is exact up to its rank: jaxmix.to_lora(adapter, params)."
    )
    assert caught[0].filename == __file__


def test_dense_differences_are_reported(tmp_path: Path) -> None:
    """The LoKrs of q, k and v can't be joined into one LoKr of the fused weight."""
    draw = np.random.default_rng(0)
    updates = {f"transformer_blocks.0.attn.to_{x}": lokr((4, 6), draw) for x in "qkv"}
    with pytest.warns(UserWarning) as caught:
        export_kohya(jaxmix.Adapter(updates), tmp_path / "x.safetensors", names="flux")
    assert str(caught[0].message) == (
        "adapter: joined updates that only a dense difference expresses:\n"
        "  double_blocks.0.img_attn.qkv\nThe file is exact and large; a LoRA is smaller: "
        "jaxmix.to_lora(adapter, params)."
    )
    assert caught[0].filename == __file__
    assert load_file(tmp_path / "x.safetensors").keys() == {
        "lora_unet_double_blocks_0_img_attn_qkv.diff"
    }


# -------------------------------------------------------------------- kohya's names without a base


@pytest.mark.parametrize("model", ["flux", "hunyuan_video", "wan", "sdxl", "z_image"])
def test_kohya_is_read_by_the_tables(model: str, tmp_path: Path) -> None:
    """Names with underscores need no base if a table has all of them."""
    original, memory = sides(model)
    adapter = adapter_on(original, lora)
    file = exported("kohya", adapter, tmp_path, names=model)
    expected = composed(memory, adapter, model)
    assert_close(composed(memory, jaxmix.load(file), model), expected)


def test_components_are_read_by_the_tables(tmp_path: Path) -> None:
    """Flux's text encoders have the names of its pipeline's components."""
    t5 = "text_encoder_2.encoder.block.0.layer.1.DenseReluDense.wi_0"
    clip = "text_encoder.text_model.encoder.layers.0.self_attn.out_proj"
    sites = ("transformer.double_blocks.0.img_mod.lin", clip, t5)
    adapter = jaxmix.Adapter(dict.fromkeys(sites, ONE))
    file = exported("kohya", adapter, tmp_path)
    assert set(jaxmix.load(file).sites) == set(sites)
    # A name that is in no table, and one that is in the tables of several models.
    for unknown in ("double_blocks.0.foo.bar", "double_blocks.0.img_attn.qkv"):
        adapter = jaxmix.Adapter({unknown: ONE})
        file = exported("kohya", adapter, tmp_path, names="")
        message = (
            f"{file}: the names of its modules have underscores for dots "
            f"(lora_unet_{unknown.replace('.', '_')} …), so the file alone does not determine the "
            "modules. Pass the model that it was trained on: load(path, base=…), its Hugging Face "
            "folder, its params, or a list of the names of its modules."
        )
        with pytest.raises(CheckpointError, match=full_text(message)):
            jaxmix.load(file)
