"""kohya's and LyCORIS's files: names, scales, and the exact errors."""

from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxmix
from jaxmix.errors import AdapterError, CheckpointError, UnsupportedError
from jaxmix.families import LoKr, LoRA, Normed, Together

from .formats.files import BASE, FACTORS, changed, drawn, factors, kohya, save
from .peft.folders import refused


def save_lora(tmp_path, **changes: Any):
    """Writes a LoRA file with tensors changed; None removes one."""
    return save(tmp_path / "x.safetensors", changed("lora", changes))


# -------------------------------------------------------------------------------------- names


def test_base_restores_dots_in_names(tmp_path):
    """The base may be a list of names, a flat dict, a tree or a folder."""
    name = "lora_unet_mid_attn_1_to_q"
    path = save(tmp_path / "x.safetensors", kohya("lora", name))
    folder = tmp_path / "base"
    folder.mkdir()
    weight = drawn(6, 4)
    save_file({f"{module}.weight": weight for module in BASE}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    tree = {"mid": {"attn_1": {"to_q": {"kernel": weight.T}}}}
    for base in (list(BASE), {f"{module}.weight": weight for module in BASE}, folder, tree):
        assert jaxmix.load(path, base=base).sites == ("mid.attn_1.to_q",)


def test_parts_are_read_together_or_alone(tmp_path):
    """Sites get the part's name if the base's modules have it; `part` reads one part alone."""
    tensors = {
        f"{name}.{key}": tensor
        for name in ("lora_unet_a_b", "lora_te1_a_b", "lora_te2_a_b", "lora_te3_c_d")
        for key, tensor in factors("lora").items()
    }
    path = save(tmp_path / "x.safetensors", tensors)
    sites = ["unet.a.b", "text_encoder.a.b", "text_encoder_2.a.b", "text_encoder_3.c.d"]
    assert sorted(jaxmix.load(path, base=sites).sites) == sorted(sites)
    assert jaxmix.load(path, base=["a.b"], part="lora_unet").sites == ("a.b",)
    message = refused(CheckpointError, path, base=["a.b", "c.d"])
    assert "lora_unet_a_b: is a.b, and so is lora_te1_a_b" in message
    assert (
        "If the file covers several models, select one with part='…', the prefix of its" in message
    )
    assert refused(CheckpointError, path, base=["a.b"], part="lora_te") == (
        f"{path} has no keys for part='lora_te', expected one of lora_te1, lora_te2, "
        f"lora_te3, lora_unet."
    )


def test_missing_and_ambiguous_modules_are_listed(tmp_path):
    """Names that match no module or several are listed."""
    tensors = {**kohya("lora", "lora_unet_a_b_c"), **kohya("lora", "lora_unet_x_y")}
    path = save(tmp_path / "x.safetensors", tensors)
    assert refused(CheckpointError, path, base=["a.b_c", "a_b.c", "z"]) == (
        f"{path}: names with underscores for dots that the base does not resolve:"
        "\n  lora_unet_a_b_c: may be a.b_c or a_b.c"
        "\n  lora_unet_x_y: no module of this name"
        "\nExpected each to match exactly one of the base's 3 modules (a.b_c, a_b.c, z …). Was "
        "the adapter trained on another model, or does the file use other names for its modules? "
        "If the file covers several models, select one with part='…', the prefix of its names."
    )


def test_name_with_underscores_needs_a_base(tmp_path):
    """A name without underscores needs no base; for others the error says how to give it."""
    path = save(tmp_path / "x.safetensors", kohya("lora"))
    assert jaxmix.load(path).sites == ("proj",)
    path = save(tmp_path / "y.safetensors", kohya("lora", "lora_unet_mid_attn"))
    message = (
        "{}: the names of its modules {}, so the file alone does not determine the modules. Pass "
        "the model that it was trained on: load(path, base=…), its Hugging Face folder, its "
        "params, or a list of the names of its modules."
    )
    problem = "have underscores for dots (lora_unet_mid_attn …)"
    assert refused(CheckpointError, path) == message.format(path, problem)
    both = {**kohya("lora", "lora_te1_proj"), **kohya("lora", "lora_te2_proj")}
    path = save(tmp_path / "z.safetensors", both)
    problem = "are equal in several models (proj …)"
    assert refused(CheckpointError, path) == message.format(path, problem)


def test_forced_format_chooses_the_reader(tmp_path):
    """`format` chooses the reader of a file that is not recognised."""
    path = save(tmp_path / "x.safetensors", {"proj.lora_down.weight": drawn(2, 4)})
    assert "unknown prefix" in refused(CheckpointError, path, format="kohya")


# ------------------------------------------------------------------------------------- scales


@pytest.mark.parametrize(
    ("alpha", "scale"),
    [(3.0, 1.5), (0.0, 1.0), (None, 1.0), (-1.0, -0.5), ([3.0], 1.5)],
)
def test_alpha_over_rank(alpha, scale, tmp_path):
    """The scale is alpha / rank; a missing or zero alpha means the rank."""
    tensor = None if alpha is None else np.asarray(alpha, ml_dtypes.bfloat16)
    update: Any = jaxmix.load(save_lora(tmp_path, alpha=tensor)).updates["proj"]
    assert update.scale == scale


def test_scale_tensor_overrides_alpha(tmp_path):
    """A scale tensor takes precedence over alpha, as in A1111."""
    path = save_lora(tmp_path, alpha=np.asarray(3.0), scale=np.asarray(0.25))
    update: Any = jaxmix.load(path).updates["proj"]
    assert update.scale == 0.25


def test_contradicting_metadata_are_ignored(tmp_path):
    """The original libraries read only the keys, so metadata are ignored."""
    metadata = {
        "ss_network_dim": "64",
        "ss_network_alpha": "9",
        "ss_network_module": "networks.oft",
    }
    path = save(tmp_path / "x.safetensors", kohya("lora"), metadata)
    update: Any = jaxmix.load(path).updates["proj"]
    assert isinstance(update, LoRA) and update.a.shape == (2, 4)


def test_full_lokr_has_scale_1(tmp_path):
    """A LoKr of full factors has scale 1 for any alpha, as in LyCORIS."""
    path = save(tmp_path / "x.safetensors", kohya("lokr-full"))
    update = jaxmix.load(path).updates["proj"]
    assert isinstance(update, LoKr) and update.scale == 1.0


def test_norm_axis_follows_its_shape(tmp_path):
    """A norm is (out, 1) or (1, in); (1, 1) belongs to a weight with one output."""
    for form, axis in (("dora", "out"), ("dora-in", "in")):
        update = jaxmix.load(save(tmp_path / "x.safetensors", kohya(form))).updates["proj"]
        assert isinstance(update, Normed) and update.axis == axis
        assert update.eps == float(np.finfo(np.float32).eps)
    path = save_lora(tmp_path, lora_up__weight=drawn(1, 2), dora_scale=drawn(1, 1))
    update = jaxmix.load(path).updates["proj"]
    assert isinstance(update, Normed) and update.axis == "out"


def test_diff_b_adds_a_bias(tmp_path):
    """``diff_b`` is read with every family, LoRA included, as in ComfyUI."""
    path = save(tmp_path / "x.safetensors", kohya("lora-bias"))
    update = jaxmix.load(path).updates["proj"]
    assert isinstance(update, Together) and [p.family for p in update.parts] == ["LoRA", "Delta"]


@pytest.mark.parametrize("form", FACTORS)
@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, np.float64], ids=lambda d: d.__name__
)
def test_dtypes_are_kept_or_float32(form, dtype, tmp_path):
    """Factors keep the file's dtype, or become float32 if they are multiplied."""
    tensors = {k: x if x.dtype.kind == "i" else x.astype(dtype) for k, x in kohya(form).items()}
    adapter = jaxmix.load(save(tmp_path / "x.safetensors", tensors))
    least = {np.dtype(dtype), np.promote_types(dtype, np.float32), np.dtype(np.int32)}
    arrays = [leaf for leaf in jax.tree.leaves(adapter.updates) if np.ndim(leaf)]
    assert arrays and {x.dtype for x in arrays} <= least


# ----------------------------------------------------------------------------------- errors


def test_unknown_keys_are_listed(tmp_path):
    """All unknown keys are listed, each with a reason."""
    extra = {
        "lora_unet_proj.lora_left.weight": drawn(2, 2),
        "lora_unet_proj.lokr_t1": drawn(2, 2),
        "lora_unet_proj.lambda_layer": drawn(2, 2),
        "lora_unet_proj.scalar": drawn(1),
        "other.x.alpha": drawn(1),
        "lora_unet_a.b.scalars": drawn(1),
        "lora_unet_proj.lora_A.weight": drawn(2, 4),
    }
    path = save(tmp_path / "x.safetensors", {**kohya("lora"), **extra})
    message = refused(CheckpointError, path)
    for line in (
        "lora_unet_proj.lora_left.weight: unknown parameter",
        "lora_unet_proj.lokr_t1: no version of LyCORIS writes or reads it",
        "lora_unet_proj.lambda_layer: T-LoRA, whose rank depends on the timestep",
        "lora_unet_proj.scalar: a scale that LyCORIS itself ignores when it loads",
        "other.x.alpha: unknown prefix",
        "lora_unet_a.b.scalars: unknown parameter",
        "lora_unet_proj.lora_down.weight: a duplicate of lora_down.weight",
    ):
        assert line in message or line.replace("lora_down.weight:", "lora_A.weight:") in message
    assert "Expected <prefix>_<module>.<parameter>, with one of lora_unet" in message


def test_nan_is_refused(tmp_path):
    """NaN is refused in every tensor, alpha included."""
    path = save_lora(tmp_path, alpha=np.asarray(np.nan, np.float32))
    assert "lora_unet_proj.alpha: 1 of 1" in refused(AdapterError, path)


def test_truncated_file_and_folder_are_refused(tmp_path):
    """With a forced format, the reader reports a truncated file and a folder."""
    path = save_lora(tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    assert "is not a complete safetensors file" in refused(CheckpointError, path, format="kohya")
    message = refused(CheckpointError, tmp_path, format="kohya")
    assert message == f"{tmp_path} is not a file, expected a .safetensors. Pass its path."


def test_sd_scripts_oft_with_alpha_0_is_refused(tmp_path):
    """In sd-scripts' OFT an alpha of 0 forbids every rotation, so it is refused."""
    tensors = kohya("diag-oft", "oft_unet_proj")
    tensors["oft_unet_proj.alpha"] = np.asarray(0.0, np.float32)
    del tensors["oft_unet_proj.rescale"]
    path = save(tmp_path / "x.safetensors", tensors)
    assert "oft_unet_proj: alpha is 0" in refused(UnsupportedError, path)
