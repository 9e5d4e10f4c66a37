"""Files with dotted names: parts, sites, metadata, and the exact errors."""

from typing import Any

import numpy as np
import pytest

import jaxmix
from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError
from jaxmix.families import LoRA, Normed

from .formats.files import drawn, factors, save
from .peft.folders import refused

A, B = "lora_A.weight", "lora_B.weight"


def ab(*modules: str, a: str = A, b: str = B) -> dict[str, np.ndarray]:
    """Returns LoRA factors at these modules."""
    tensors = {f"{module}.{a}": drawn(2, 4) for module in modules}
    return tensors | {f"{module}.{b}": drawn(6, 2) for module in modules}


def update(path: Any, site: str = "mid.to_q", **options: Any) -> Any:
    """Returns the update at a site of the file."""
    return jaxmix.load(path, **options).updates[site]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("lora_A.weight", "lora_B.weight"),
        ("lora_A.default.weight", "lora_B.default.weight"),
        ("lora_down.weight", "lora_up.weight"),
        ("lora.down.weight", "lora.up.weight"),
        ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    ],
)
@pytest.mark.parametrize(
    "part", ["unet", "transformer", "diffusion_model", "model.diffusion_model", "transformer_2", ""]
)
def test_every_spelling_is_read(part, a, b, tmp_path):
    """Spellings of diffusers, ComfyUI and ai-toolkit are read; without an alpha the scale is 1."""
    module = f"{part}.mid.to_q" if part else "mid.to_q"
    loaded = update(save(tmp_path / "x.safetensors", ab(module, a=a, b=b)))
    assert isinstance(loaded, LoRA) and loaded.scale == 1.0
    assert np.array_equal(loaded.a, drawn(2, 4)) and np.array_equal(loaded.b, drawn(6, 2))


def test_lycoris_families_with_dotted_names(tmp_path):
    """LyCORIS tensors with alphas under dotted names, as written for ComfyUI, are read."""
    for form in ("loha", "lokr", "dora", "diff", "glora", "diag-oft", "ia3", "norm"):
        tensors = {f"diffusion_model.mid.to_q.{k}": x for k, x in factors(form).items()}
        assert jaxmix.load(save(tmp_path / "x.safetensors", tensors)).sites == ("mid.to_q",)


def test_attention_processors_of_old_diffusers(tmp_path):
    """Old attention processors of UNets and text encoders map to the layers' current names."""
    ends = {"a": "down.weight", "b": "up.weight"}
    tensors = {
        **ab("unet.attn1.processor.to_out_lora", a=ends["a"], b=ends["b"]),
        **ab("text_encoder.layers.0.self_attn.to_out_lora", a=ends["a"], b=ends["b"]),
    }
    tensors = {key.replace("_lora.", "_lora."): x for key, x in tensors.items()}
    adapter = jaxmix.load(save(tmp_path / "x.safetensors", tensors))
    assert set(adapter.sites) == {
        "unet.attn1.to_out.0",
        "text_encoder.layers.0.self_attn.out_proj",
    }


def test_several_models_in_one_file(tmp_path):
    """With several models, sites keep the part's name unless `part` or the base decides."""
    path = save(tmp_path / "x.safetensors", ab("unet.mid.to_q", "text_encoder.mid.to_q"))
    assert set(jaxmix.load(path).sites) == {"unet.mid.to_q", "text_encoder.mid.to_q"}
    assert jaxmix.load(path, part="unet").sites == ("mid.to_q",)
    assert jaxmix.load(path, part="unet", base=["unet.mid.to_q"]).sites == ("unet.mid.to_q",)
    assert jaxmix.load(path, part="unet", base=["mid.to_q"]).sites == ("mid.to_q",)
    assert refused(CheckpointError, path, part="vae") == (
        f"{path} has no keys for part='vae', expected one of text_encoder, unet."
    )
    message = refused(CheckpointError, path, base=["mid.to_q"])
    assert (
        "mid.to_q: claimed by text_encoder and unet" in message
        or "claimed by unet and text_encoder" in message
    )


def test_unknown_and_ambiguous_modules_are_listed(tmp_path):
    """Modules that the base lacks or has twice are listed."""
    path = save(tmp_path / "x.safetensors", ab("unet.mid.to_q", "unet.left.to_q"))
    message = refused(CheckpointError, path, base=["mid.to_q", "unet.mid.to_q"])
    assert "unet.left.to_q: no such module" in message
    assert "unet.mid.to_q: unet.mid.to_q and mid.to_q" in message
    assert "Expected the names of the base's modules (mid.to_q, unet.mid.to_q …)." in message


def test_recognition_of_files(tmp_path):
    """A checkpoint is not an adapter; a config next to a file of another format is ignored."""
    path = save(tmp_path / "x.safetensors", {"mid.to_q.weight": drawn(6, 4)})
    assert "is a file, expected" in refused(CheckpointError, path)
    path = save(tmp_path / "y.safetensors", ab("unet.mid.to_q"))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert jaxmix.load(path).sites == ("mid.to_q",)


def test_peft_file_needs_its_config(tmp_path):
    """PEFT's alpha is in the config, so its file alone is refused."""
    path = save(tmp_path / "x.safetensors", ab("base_model.model.model.layers.0.mlp.up_proj"))
    assert refused(UnsupportedError, path) == (
        f"{path} is a file of PEFT (base_model.model.…), whose alpha is in its config "
        f"and not in the file. Pass the folder that contains it and its "
        f"adapter_config.json."
    )


def test_unknown_and_duplicate_keys_are_listed(tmp_path):
    """Unknown keys, and two spellings of one key with other numbers, are listed."""
    tensors = ab("unet.mid.to_q") | {"unet.mid.to_q.lora_down.weight": 1 + drawn(2, 4)}
    path = save(tmp_path / "x.safetensors", tensors | {"unet.mid.to_q.lora_C": drawn(2)})
    message = refused(CheckpointError, path)
    assert "unet.mid.to_q.lora_C: unknown parameter" in message
    assert ": a duplicate of lora_down.weight" in message


# ------------------------------------------------------------------------------------ metadata


def with_metadata(tmp_path, extra: dict[str, np.ndarray] | None = None, **fields: Any):
    """Writes a LoRA file with diffusers' metadata."""
    config = {"r": 2, "lora_alpha": 3, **fields}
    metadata = {f"unet.{key}": value for key, value in config.items()}
    tensors = {**ab("unet.mid.to_q"), **(extra or {})}
    return save(tmp_path / "x.safetensors", tensors, {"lora_adapter_metadata": metadata})


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({}, 1.5),
        ({"use_rslora": True}, 3 / 2**0.5),
        ({"alpha_pattern": {"to_q": 8}}, 4.0),
        ({"alpha_pattern": {"^to_q": 8}}, 1.5),
        ({"alpha_pattern": {"(": 8}}, 1.5),
        ({"r": 4, "rank_pattern": {"mid.to_q": 2}}, 1.5),
        ({"lora_alpha": 0}, 0.0),
    ],
)
def test_scale_from_metadata(fields, scale, tmp_path):
    """The scale follows PEFT: patterns match the end of a name, and an alpha of 0 is 0."""
    assert update(with_metadata(tmp_path, **fields)).scale == scale


def test_metadata_of_a_single_model(tmp_path):
    """`save_lora_adapter` of a single model writes metadata without a part's name."""
    fields = {"r": 2, "lora_alpha": 1}
    path = tmp_path / "x.safetensors"
    save(path, ab("mid.to_q"), {"lora_adapter_metadata": fields})
    assert update(path).scale == 0.5


CONTRADICTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "rank": ({"r": 3}, {}, "lora_A has rank 2, the metadata 3"),
    "alpha": ({"lora_alpha": "3"}, {}, "lora_alpha is '3', expected a number"),
    "both": (
        {},
        {"unet.mid.to_q.alpha": np.asarray(1.0)},
        "alpha is both in the keys and in the meta",
    ),
    "dora": ({"use_dora": True}, {}, "use_dora is True, but lora_magnitude_vector is missing"),
    "no dora": (
        {},
        {"unet.mid.to_q.lora_magnitude_vector": drawn(6)},
        "use_dora is None, but lora_magnitude_vector is present",
    ),
    "bias": ({"lora_bias": True}, {}, "lora_bias is True, but lora_up.bias is missing"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_metadata_contradicting_the_keys_are_refused(case, tmp_path):
    """The error names the module and both values."""
    fields, extra, text = CONTRADICTIONS[case]
    path = with_metadata(tmp_path, extra, **fields)
    error = refused(CheckpointError, path)
    assert f"lora_adapter_metadata contradicts the keys:\n  unet.mid.to_q: {text}" in error
    assert error.endswith(" or remove the metadata: alpha is then the rank, as in diffusers.")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"init_lora_weights": "pissa_niter_4"},
            "unet.init_lora_weights = 'pissa_niter_4', which changes the base",
        ),
        ({"use_qalora": True}, "unet.use_qalora: QALoRA, which pools the inputs"),
        ({"alora_invocation_tokens": [1]}, "unet.alora_invocation_tokens: aLoRA, which is gated"),
        ({"target_parameters": ["w"]}, "unet.target_parameters: factors of experts"),
    ],
)
def test_unsupported_metadata_fields_are_refused(fields, text, tmp_path):
    """The error states the reason."""
    assert text in refused(UnsupportedError, with_metadata(tmp_path, **fields))


def test_invalid_metadata_are_refused(tmp_path):
    """Invalid JSON, other JSON types, and metadata without the part's fields are refused."""
    path = tmp_path / "x.safetensors"
    for text in ("{", "[]", "3"):
        save(path, ab("unet.mid.to_q"), {"lora_adapter_metadata": text})
        assert f"lora_adapter_metadata is {text!r}, expected an object" in refused(
            CheckpointError, path
        )
    save(path, ab("unet.mid.to_q"), {"lora_adapter_metadata": {"r": 2, "lora_alpha": 3}})
    assert "unet.mid.to_q: unet.r or unet.lora_alpha is missing" in refused(CheckpointError, path)


def test_peft_and_lycoris_dora(tmp_path):
    """PEFT's DoRA has a magnitude without epsilon, LyCORIS's a norm."""
    extra = {"unet.mid.to_q.lora_magnitude_vector.weight": drawn(6)}
    loaded = update(with_metadata(tmp_path, extra, use_dora=True))
    assert isinstance(loaded, LoRA) and loaded.magnitude is not None
    tensors = ab("unet.mid.to_q") | {"unet.mid.to_q.dora_scale": drawn(6, 1)}
    assert isinstance(update(save(tmp_path / "y.safetensors", tensors)), Normed)


def test_contradicting_ranks_are_refused(tmp_path):
    """Factors with different ranks are refused, as in kohya's files."""
    tensors = ab("unet.mid.to_q") | {"unet.mid.to_q.lora_B.weight": drawn(6, 3)}
    path = save(tmp_path / "x.safetensors", tensors)
    assert "expected lora_up (out, 2, 1 …)" in refused(ShapeError, path)
