"""Files with dots in their names: parts, sites, metadata, and what is refused, word by word."""

from typing import Any

import numpy as np
import pytest

import jaxmix
from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError
from jaxmix.families import LoRA, Normed

from ..peft.folders import refused
from .files import drawn, factors, save

A, B = "lora_A.weight", "lora_B.weight"


def ab(*modules: str, a: str = A, b: str = B) -> dict[str, np.ndarray]:
    """LoRA's factors at these modules."""
    made = {f"{module}.{a}": drawn(2, 4) for module in modules}
    return made | {f"{module}.{b}": drawn(6, 2) for module in modules}


def update(path: Any, site: str = "mid.to_q", **options: Any) -> Any:
    """The update at a site of the file."""
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
def test_every_spelling(part, a, b, tmp_path):
    """diffusers', ComfyUI's and ai-toolkit's; without an alpha the scale is 1."""
    module = f"{part}.mid.to_q" if part else "mid.to_q"
    found = update(save(tmp_path / "x.safetensors", ab(module, a=a, b=b)))
    assert isinstance(found, LoRA) and found.scale == 1.0
    assert np.array_equal(found.a, drawn(2, 4)) and np.array_equal(found.b, drawn(6, 2))


def test_every_family_with_dots(tmp_path):
    """What ai-toolkit and others write for ComfyUI: LyCORIS's tensors, alpha beside them."""
    for form in ("loha", "lokr", "dora", "diff", "glora", "diag-oft", "ia3", "norm"):
        tensors = {f"diffusion_model.mid.to_q.{k}": x for k, x in factors(form).items()}
        assert jaxmix.load(save(tmp_path / "x.safetensors", tensors)).sites == ("mid.to_q",)


def test_processors_of_the_first_format(tmp_path):
    """Of a UNet and of a text encoder, whose layers have other names."""
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


def test_several_models_in_a_file(tmp_path):
    """Then the part stays in the site's name, unless one is asked for, or the base has it so."""
    path = save(tmp_path / "x.safetensors", ab("unet.mid.to_q", "text_encoder.mid.to_q"))
    assert set(jaxmix.load(path).sites) == {"unet.mid.to_q", "text_encoder.mid.to_q"}
    assert jaxmix.load(path, part="unet").sites == ("mid.to_q",)
    assert jaxmix.load(path, part="unet", base=["unet.mid.to_q"]).sites == ("unet.mid.to_q",)
    assert jaxmix.load(path, part="unet", base=["mid.to_q"]).sites == ("mid.to_q",)
    assert refused(CheckpointError, path, part="vae") == (
        f"{path} has no keys for part='vae', expected one of text_encoder, unet."
    )
    said = refused(CheckpointError, path, base=["mid.to_q"])
    assert (
        "mid.to_q: claimed by text_encoder and unet" in said
        or "claimed by unet and text_encoder" in said
    )


def test_names_that_are_not_the_base_s(tmp_path):
    """All are listed."""
    path = save(tmp_path / "x.safetensors", ab("unet.mid.to_q", "unet.left.to_q"))
    said = refused(CheckpointError, path, base=["mid.to_q", "unet.mid.to_q"])
    assert "unet.left.to_q: no such module" in said
    assert "unet.mid.to_q: unet.mid.to_q and mid.to_q" in said
    assert "Expected the names of the base's modules (mid.to_q, unet.mid.to_q …)." in said


def test_what_is_not_recognised(tmp_path):
    """A plain checkpoint, and a file beside PEFT's config that is not PEFT's."""
    path = save(tmp_path / "x.safetensors", {"mid.to_q.weight": drawn(6, 4)})
    assert "is a file, expected" in refused(CheckpointError, path)
    path = save(tmp_path / "y.safetensors", ab("unet.mid.to_q"))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert jaxmix.load(path).sites == ("mid.to_q",)


def test_peft_s_file_without_its_config(tmp_path):
    """Its alpha is elsewhere: nobody may guess it."""
    path = save(tmp_path / "x.safetensors", ab("base_model.model.mid.to_q"))
    assert refused(UnsupportedError, path) == (
        f"{path} is a file of PEFT (base_model.model.…), whose alpha is in its config "
        f"and not in the file. Give the folder that contains it and its "
        f"adapter_config.json."
    )


def test_keys_that_mean_nothing(tmp_path):
    """And those that mean the same."""
    tensors = ab("unet.mid.to_q") | {"unet.mid.to_q.lora_down.weight": drawn(2, 4)}
    path = save(tmp_path / "x.safetensors", tensors | {"unet.mid.to_q.lora_C": drawn(2)})
    said = refused(CheckpointError, path)
    assert "unet.mid.to_q.lora_C: unknown parameter" in said
    assert ": a duplicate of lora_down.weight" in said


# ------------------------------------------------------------------------------------ metadata


def with_metadata(tmp_path, extra: dict[str, np.ndarray] | None = None, **said: Any):
    """A LoRA's file with diffusers' metadata."""
    config = {"r": 2, "lora_alpha": 3, **said}
    named = {f"unet.{key}": value for key, value in config.items()}
    tensors = {**ab("unet.mid.to_q"), **(extra or {})}
    return save(tmp_path / "x.safetensors", tensors, {"lora_adapter_metadata": named})


@pytest.mark.parametrize(
    ("said", "scale"),
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
def test_the_scale_is_the_metadata_s(said, scale, tmp_path):
    """As PEFT takes them: patterns by the end of the name; an alpha of 0 is 0 here."""
    assert update(with_metadata(tmp_path, **said)).scale == scale


def test_metadata_without_a_part(tmp_path):
    """As a single model's save_lora_adapter writes them."""
    said = {"r": 2, "lora_alpha": 1}
    path = tmp_path / "x.safetensors"
    save(path, ab("mid.to_q"), {"lora_adapter_metadata": said})
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
def test_metadata_that_contradict_the_keys(case, tmp_path):
    """The module, and what each of the two says."""
    said, extra, text = CONTRADICTIONS[case]
    path = with_metadata(tmp_path, extra, **said)
    found = refused(CheckpointError, path)
    assert f"lora_adapter_metadata contradicts the keys:\n  unet.mid.to_q: {text}" in found
    assert found.endswith(" or remove the metadata: alpha is then the rank, as in diffusers.")


@pytest.mark.parametrize(
    ("said", "text"),
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
def test_kinds_that_are_not_done(said, text, tmp_path):
    """With the reason."""
    assert text in refused(UnsupportedError, with_metadata(tmp_path, **said))


def test_metadata_that_are_none(tmp_path):
    """No JSON, no object, nothing for the part."""
    path = tmp_path / "x.safetensors"
    for text in ("{", "[]", "3"):
        save(path, ab("unet.mid.to_q"), {"lora_adapter_metadata": text})
        assert f"lora_adapter_metadata is {text!r}, expected an object" in refused(
            CheckpointError, path
        )
    save(path, ab("unet.mid.to_q"), {"lora_adapter_metadata": {"r": 2, "lora_alpha": 3}})
    assert "unet.mid.to_q: unet.r or unet.lora_alpha is missing" in refused(CheckpointError, path)


def test_both_forms_of_dora(tmp_path):
    """PEFT's magnitude, without an epsilon; LyCORIS's norm."""
    extra = {"unet.mid.to_q.lora_magnitude_vector.weight": drawn(6)}
    found = update(with_metadata(tmp_path, extra, use_dora=True))
    assert isinstance(found, LoRA) and found.magnitude is not None
    tensors = ab("unet.mid.to_q") | {"unet.mid.to_q.dora_scale": drawn(6, 1)}
    assert isinstance(update(save(tmp_path / "y.safetensors", tensors)), Normed)


def test_shapes_that_disagree(tmp_path):
    """As in kohya's files."""
    tensors = ab("unet.mid.to_q") | {"unet.mid.to_q.lora_B.weight": drawn(6, 3)}
    path = save(tmp_path / "x.safetensors", tensors)
    assert "expected lora_up (out, 2, 1 …)" in refused(ShapeError, path)
