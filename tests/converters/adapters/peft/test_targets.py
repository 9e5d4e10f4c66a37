"""Factors of modules that the config does not adapt: PEFT ignores them, so they are an error."""

from typing import Any

import numpy as np
import pytest

import jaxmix
from jaxmix.errors import CheckpointError

from .folders import FORMS, Form, factors, keyed, refused, save

SITES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.experts.3.up_proj", "lm_head")


def put(folder: Any, *sites: str, form: str | Form = "lora", **fields: Any) -> Any:
    """A folder with factors at these sites."""
    tensors: dict[str, np.ndarray] = {}
    for site in sites or SITES:
        tensors |= keyed(factors(FORMS[form] if isinstance(form, str) else form), site)
    return save(folder, form, tensors, **fields)


@pytest.mark.parametrize(
    ("fields", "site", "reason"),
    [
        ({"target_modules": ["q_proj", "lm_head"]}, SITES[1], "not in target_modules = ["),
        ({"target_modules": ["proj", "lm_head", "up_proj"]}, SITES[0], "not in target_modules"),
        ({"target_modules": r".*_proj"}, SITES[2], 'not in target_modules = ".*_proj"'),
        (
            {"target_modules": ["q_proj", "up_proj", "lm_head"], "exclude_modules": ["up_proj"]},
            SITES[1],
            'excluded by exclude_modules = ["up_proj"]',
        ),
        ({"exclude_modules": r".*\.experts\..*"}, SITES[1], "excluded by exclude_modules = "),
        (
            {"target_modules": "all-linear", "exclude_modules": ["lm_head"]},
            SITES[2],
            "excluded by exclude_modules",
        ),
    ],
)
@pytest.mark.parametrize("form", ["lora", "loha", "oft"])
def test_excluded_modules(fields, site, reason, form, tmp_path):
    """Each excluded module is listed with the field that excludes it; others are not."""
    folder = put(tmp_path, form=form, **fields)
    text = refused(CheckpointError, folder)
    assert f"{folder / 'adapter_config.json'}: the file has factors of modules that this" in text
    assert "adapt, so PEFT ignores them:" in text and f"{site}: {reason}" in text
    assert not any(f"{other}: " in text for other in SITES if other != site)
    assert "Correct it, or remove these modules' keys from the file." in text


def test_excluded_layers(tmp_path):
    """A layer's number is the first in the name, or the one after a pattern."""
    sites = [f"model.layers.{i}.q_proj" for i in range(3)]
    fields: dict[str, Any] = {"target_modules": ["q_proj"], "layers_to_transform": [0, 2]}
    text = refused(CheckpointError, put(tmp_path, *sites, **fields))
    assert f"{sites[1]}: not in layers_to_transform = [0, 2]\n" in text
    assert f"{sites[0]}: " not in text and f"{sites[2]}: " not in text
    text = refused(CheckpointError, put(tmp_path, *sites, **fields, layers_pattern="blocks"))
    assert f'{sites[0]}: not in layers_to_transform = [0, 2] and layers_pattern = "blocks"' in text
    complete = put(tmp_path, *sites, **{**fields, "target_modules": sites})
    assert jaxmix.load(complete).sites == tuple(sites)


def test_saved_module(tmp_path):
    """PEFT has no adapter within it."""
    tensors = keyed(factors(FORMS["lora"]), "cls.dense") | {
        "base_model.model.cls.dense.base_layer.bias": np.ones(6, np.float32)
    }
    fields: dict[str, Any] = {"target_modules": ["dense"], "modules_to_save": ["cls"]}
    text = refused(CheckpointError, save(tmp_path, tensors=tensors, **fields))
    assert 'cls.dense: excluded by modules_to_save = ["cls"]' in text


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"target_modules": None},
        {"target_modules": []},
        {"target_modules": "all-linear"},
        {"target_modules": "ALL-LINEAR"},
        {"target_modules": ["q_proj", "up_proj", "lm_head"]},
        {"target_modules": list(SITES)},
        {"target_modules": [f"language_model.{site}" for site in SITES]},
        {"target_modules": ["_orig_mod.lm_head", "self_attn.q_proj", "3.up_proj"]},
        {"target_modules": r"base_model\.model\.(model|lm_head).*"},
        {"target_modules": r"_orig_mod\.(model|lm_head).*"},
        {"target_modules": ["q_proj"], "ensure_weight_tying": True},
        {"target_modules": 3},
        {"target_modules": [["q_proj"]]},
        {"target_modules": "("},
        {"target_modules": list(SITES), "layers_to_transform": [7]},
        {"target_modules": r".*", "layers_to_transform": [7]},
    ],
)
def test_uncertain_modules_are_read(fields, tmp_path):
    """Nothing is refused that PEFT may read."""
    assert set(jaxmix.load(put(tmp_path, **fields)).sites) == set(SITES)


def test_number_of_an_expert(tmp_path):
    """Older versions of PEFT took an expert's number for the layer's."""
    fields: dict[str, Any] = {"target_modules": ["up_proj"], "layers_to_transform": [3]}
    assert jaxmix.load(put(tmp_path, SITES[1], **fields)).sites == (SITES[1],)
