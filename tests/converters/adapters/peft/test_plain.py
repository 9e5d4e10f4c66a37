"""Keys that contain names of wrappers and of the adapter are read as PEFT would write them.

tests/parity/test_state_dicts.py compares the state dicts of all types with PEFT's own files.
"""

from typing import Any

import numpy as np
import pytest

import jaxmix
from jaxmix.errors import CheckpointError
from jaxmix.families import Replace, Tokens

from .folders import FORMS, SITE, Form, factors, keyed, params, refused, save

ROOT = "base_model.model."
WHOLE = np.full((5, 3), 2.0, np.float32)


def clean(form: str = "lora", site: str = SITE) -> dict[str, np.ndarray]:
    """A form's keys without a prefix."""
    return {f"{site}.{name}": array for name, array in factors(FORMS[form]).items()}


def same(folder: Any, form: str = "lora", **options: Any) -> bool:
    """Whether a folder has the form's adapter at its site."""
    expected = jaxmix.load(save(folder.parent / "clean", form))
    loaded = jaxmix.load(folder, **options)
    base = params(FORMS[form])
    left, right = (jaxmix.compose(base, adapter) for adapter in (expected, loaded))
    return loaded.sites == (SITE,) and all(np.array_equal(left[k], right[k]) for k in base)


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "_orig_mod.base_model.model.",
        "module.base_model.model.",
        "base_model.model.module.",
        "base_model.model._orig_mod.module.",
        "base_model.model.base_model.model.base_model.model.",
        "_fsdp_wrapped_module.base_model.model._fsdp_wrapped_module._checkpoint_wrapped_module.",
    ],
)
@pytest.mark.parametrize("form", ["lora", "loha", "oft", "adalora"])
def test_wrappers_around_the_model(prefix, form, tmp_path):
    """Outer and inner wrappers are removed, and PEFT's own any number of times."""
    tensors = {f"{prefix}{key}": array for key, array in clean(form).items()}
    assert same(save(tmp_path / "x", form, tensors), form)


@pytest.mark.parametrize(
    "spelling",
    [
        "{0}layer._checkpoint_wrapped_module.proj.{1}",
        "{0}layer.proj._orig_mod.{1}",
        "{0}_fsdp_wrapped_module.layer._fsdp_wrapped_module._orig_mod.proj.{1}",
    ],
)
def test_wrappers_within(spelling, tmp_path):
    """Wrappers of single layers are removed."""
    tensors = {spelling.format(ROOT, k): x for k, x in factors(FORMS["dora"]).items()}
    assert same(save(tmp_path / "x", "dora", tensors), "dora")


@pytest.mark.parametrize(
    ("form", "parameter", "spelled"),
    [
        ("lora", "lora_A.weight", "lora_A.default.weight"),
        ("lora", "lora_A.weight", "lora_A._orig_mod.my-style.weight"),
        ("lora-bias", "lora_B.bias", "lora_B.default.bias"),
        ("lora-embedding", "lora_embedding_A", "lora_embedding_A.0"),
        ("dora", "lora_magnitude_vector", "lora_magnitude_vector.default.weight"),
        ("dora", "lora_magnitude_vector", "lora_magnitude_vector.default"),
        ("loha", "hada_w1_a", "hada_w1_a.module"),
        ("oft", "oft_R.weight", "oft_R.style.weight"),
        ("shira", "shira_indices", "shira_indices.style"),
    ],
)
def test_adapter_name_in_keys(form, parameter, spelled, tmp_path):
    """Any adapter name is removed, whether in one key or in all."""
    tensors = keyed(factors(FORMS[form]))
    tensors[f"{ROOT}{SITE}.{spelled}"] = tensors.pop(f"{ROOT}{SITE}.{parameter}")
    assert same(save(tmp_path / "x", form, tensors), form)


def test_several_adapters_in_one_file(tmp_path):
    """A DPO run with a reference adapter saves such files; neither adapter is preferred."""
    tensors = {
        key.replace("lora_A", f"lora_A.{name}").replace("lora_B", f"lora_B.{name}"): array
        for name in ("default", "reference")
        for key, array in keyed(factors(FORMS["lora"])).items()
    }
    folder = save(tmp_path, tensors=tensors)
    text = refused(CheckpointError, folder)
    assert (
        f"{folder / 'adapter_model.safetensors'} contains several adapters, expected one:" in text
    )
    assert f"'default', as in {ROOT}{SITE}.lora_A.default.weight" in text
    assert f"'reference', as in {ROOT}{SITE}.lora_A.reference.weight" in text
    assert "Save each in its own folder with save_pretrained, or remove the keys" in text


@pytest.mark.parametrize("other", ["_orig_mod.{}", "{}.default", "base_model.model.{}"])
def test_keys_that_become_equal(other, tmp_path):
    """The error lists both keys."""
    tensors = keyed(factors(FORMS["loha"]))
    key = f"{ROOT}{SITE}.hada_w1_a"
    double = tensors | {other.format(key): tensors[key]}
    text = refused(CheckpointError, save(tmp_path, "loha", double))
    pairs = (key, other.format(key)), (other.format(key), key)
    assert any(f"{left}: the same as {right}; keep one of the two" in text for left, right in pairs)


def test_module_named_module(tmp_path):
    """The name is kept if not all keys have it, or if it is not the outermost."""
    sites = ("module.0", "head", "encoder.module.0")
    tensors: dict[str, np.ndarray] = {}
    for site in sites:
        tensors |= keyed(factors(FORMS["lora"]), site)
    assert set(jaxmix.load(save(tmp_path, tensors=tensors)).sites) == set(sites)


@pytest.mark.parametrize("root", ["module", "base_model.model"])
def test_base_overrides_the_rules(root, tmp_path):
    """A model may use wrappers' names: the base's names decide, also for finding leaves."""
    form = FORMS["lora"]
    folder = save(tmp_path, tensors=keyed(factors(form), f"{root}.{SITE}"))
    base = {f"{root}.{key}": leaf for key, leaf in params(form).items()}
    assert jaxmix.load(folder).sites == (SITE,)
    assert jaxmix.load(folder, base=base).sites == (f"{root}.{SITE}",)
    left, right = (jaxmix.compose(base, jaxmix.load(folder, base=b)) for b in (None, base))
    for key, leaf in base.items():
        assert np.array_equal(left[key], right[key])
        assert np.array_equal(left[key], leaf) == key.endswith("bias")
    # A base whose names lack the adapter's wrappers gives the same result as the rule.
    assert jaxmix.load(folder, base=params(form)).sites == (SITE,)


@pytest.mark.parametrize(
    "keys",
    [
        ("head.modules_to_save.default.weight", "head.original_module.weight"),
        ("head.modules_to_save.style.weight",),
        ("head.modules_to_save.weight", "head.original_module.weight"),
        ("_orig_mod.head._orig_mod.modules_to_save.default.weight",),
    ],
)
def test_saved_module(keys, tmp_path):
    """The trained leaf is read, the original one is not."""
    tensors = keyed(factors(FORMS["lora"]))
    for key in keys:
        tensors[ROOT + key] = WHOLE * ("original" not in key)
    update: Any = jaxmix.load(save(tmp_path, tensors=tensors)).updates["head"]
    assert isinstance(update, Replace) and np.array_equal(update.weight, WHOLE)


@pytest.mark.parametrize("name", ["default.", "style.", ""])
def test_parts_of_a_saved_module(name, tmp_path):
    """The original module distinguishes the adapter's name from a part's."""
    tensors = keyed(factors(FORMS["lora"])) | {
        f"{ROOT}cls.modules_to_save.{name}dense.weight": WHOLE,
        f"{ROOT}cls.original_module.dense.weight": 0 * WHOLE,
    }
    adapter = jaxmix.load(save(tmp_path, tensors=tensors, modules_to_save=["cls"]))
    assert adapter.sites == (SITE, "cls.dense")


def test_tokens_in_training(tmp_path):
    """The rows with the adapter's name, and the wrapper's copies of the base."""
    rows = np.ones((2, 3), np.float32)
    tensors = keyed(factors(FORMS["lora"])) | {
        f"{ROOT}emb.token_adapter.trainable_tokens_delta.default": rows,
        f"{ROOT}emb.token_adapter.trainable_tokens_original.default": 0 * rows,
    }
    folder = save(tmp_path, tensors=tensors, trainable_token_indices={"emb": [1, 4]})
    update: Any = jaxmix.load(folder).updates["emb"]
    assert isinstance(update, Tokens) and np.array_equal(update.values, rows)
    tensors[f"{ROOT}emb.token_adapter.base_layer.weight"] = WHOLE
    save(tmp_path, tensors=tensors, trainable_token_indices={"emb": [1, 4]})
    out = jaxmix.compose({"emb.weight": WHOLE, **params(FORMS["lora"])}, jaxmix.load(folder))
    leaf = np.asarray(out["emb.weight"])
    assert np.array_equal(leaf[[1, 4]], rows)
    assert np.array_equal(leaf[[0, 2, 3]], WHOLE[[0, 2, 3]])


VERA = Form("VERA", {"r": 2, "projection_prng_key": 0, "save_projection": True}, {})


def test_shared_tensors_at_each_module(tmp_path):
    """Training states have such copies; a copy that differs is an error."""
    shared = {"vera_A": np.ones((2, 4), np.float32), "vera_B": np.ones((6, 2), np.float32)}
    site = {"vera_lambda_b": np.ones(6, np.float32), "vera_lambda_d": np.ones(2, np.float32)}
    tensors = {f"base_model.{name}.default": x for name, x in shared.items()}
    tensors |= {f"{key}.default": x for key, x in keyed(site | shared).items()}
    assert jaxmix.load(save(tmp_path, VERA, tensors)).sites == (SITE,)
    own_tensors = {key: x for key, x in tensors.items() if SITE in key}
    assert jaxmix.load(save(tmp_path, VERA, own_tensors)).sites == (SITE,)
    tensors[f"{ROOT}{SITE}.vera_A.default"] = 2 * shared["vera_A"]
    text = refused(CheckpointError, save(tmp_path, VERA, tensors))
    assert "vera_A.default: not a copy of the model's vera_A, as expected" in text


def test_wrappers_in_names_of_the_config(tmp_path):
    """Patterns and names in the config of a compiled model match the same modules."""
    pattern = {r"^_orig_mod\.layer\.proj": 6}
    update: Any = jaxmix.load(save(tmp_path / "x", alpha_pattern=pattern)).updates[SITE]
    assert update.scale == 3.0
    masks = {f"_orig_mod.base_model.model.{SITE}.lora_E.default": [True, False, True]}
    tensors = {f"_orig_mod.{key}": x for key, x in keyed(factors(FORMS["adalora"])).items()}
    folder = save(tmp_path / "y", "adalora", tensors, rank_pattern=masks, init_r=3)
    update = jaxmix.load(folder).updates[SITE]
    assert update.a.shape[0] == 2
