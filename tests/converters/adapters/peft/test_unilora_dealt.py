"""UniLoRA without its indices: errors about file, base and order, and accepted cases."""

from typing import Any

import numpy as np
import pytest

from jaxmix import load
from jaxmix.errors import CheckpointError, JaxmixError, ShapeError

from .folders import Form, keyed, refused, save

_CONFIG = {"r": 2, "theta_d_length": 5, "save_indices": False, "proj_seed": 42}
_THETA = {"base_model.unilora_theta_d": np.arange(5.0)}
_RNG = np.random.default_rng(0)


def _base(*modules: str) -> dict[str, Any]:
    """A state_dict of layers."""
    params: dict[str, Any] = {}
    for module in modules:
        params[f"{module}.weight"] = _RNG.normal(size=(6, 4))
        params[f"{module}.bias"] = _RNG.normal(size=6)
    return params


_QK = _base("layers.0.q", "layers.0.k", "layers.1.q", "layers.1.k")
_ASKS = "base={name: array for name, array in model.state_dict().items()}"


def _save(folder, tensors=_THETA, **fields):
    return save(folder, Form("UNILORA", {**_CONFIG, "target_modules": ["q", "k"]}, {}), tensors,
        **fields)  # fmt: skip


def test_indices_are_drawn_in_the_order_of_sites(tmp_path):
    """The uses of the vector's numbers differ by at most one; sites are in order."""
    updates = load(_save(tmp_path), base=_QK).updates
    assert list(updates) == ["layers.0.q", "layers.0.k", "layers.1.q", "layers.1.k"]
    indices = [np.ravel(x) for u in updates.values() for x in (u.a_indices, u.b_indices)]
    counts = np.bincount(np.concatenate(indices))
    assert counts.tolist() == [16] * 5
    assert updates["layers.0.q"].a_scales.dtype == np.float64
    assert np.all(updates["layers.1.k"].b_scales == 0.25)


def test_indices_without_the_config_field(tmp_path):
    """If the config has no such field, the file's tensors decide."""
    tensors = {
        "unilora_indices_A": np.zeros((2, 4), np.int64),
        "unilora_indices_B": np.zeros((6, 2), np.int64),
        "unilora_scales_A": np.ones((2, 4)),
        "unilora_scales_B": np.ones((6, 2)),
    }
    folder = _save(tmp_path, {**keyed(tensors, "layers.0.q"), **_THETA}, save_indices=None)
    assert list(load(folder).updates) == ["layers.0.q"]


def _sorted(base: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(base.items()))


_NESTED = {"layers": {"q": {"kernel": np.ones((4, 6))}, "k": {"kernel": np.ones((4, 6))}}}
_TIED = {**_QK, "layers.1.q.weight": _QK["layers.0.q.weight"]}

NO_ORDER: dict[str, tuple[Any, str]] = {
    "none": (None, "found no base. Pass the model's leaves in the model's order, from torch: "),
    "names": (["layers.0.q", "layers.0.k"], "found a list of module names, which has no order"),
    "nested": (_NESTED, "found the params given as base, which has no order"),
    "sorted": (_sorted(_QK), "as base, whose names in layers.0 are sorted. Pass the model's"),
    "by number": (
        {f"{name}.weight": np.ones((6, 4)) for name in ("b.2.k", "b.10.k", "c.q")},
        "whose names in the whole model are sorted",
    ),
    "numbers as texts": (_base(*(f"layers.{i}.q" for i in (0, 1, 10, 2)), "layers.2.k"),
        "in which layers.10.q is before layers.2.q"),
    "torn": (_base("layers.0.q", "layers.1.q", "layers.0.k"),
        "whose leaves of layers.0 are not adjacent"),
}  # fmt: skip


@pytest.mark.parametrize(("base", "message"), NO_ORDER.values(), ids=NO_ORDER)
def test_unknown_order_is_refused(base, message, tmp_path):
    text = refused(CheckpointError, _save(tmp_path), base=base)
    assert message in text, text
    assert "save_indices = false: the file has one vector and no modules." in text
    assert _ASKS in text and "persistent = True" in text


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], type[JaxmixError], str]] = {
    "all-linear": ({"target_modules": "all-linear"}, _QK, CheckpointError,
        ("target_modules is 'all-linear', which depends on the model's classes; "
        "expected names")),
    "no targets": ({"target_modules": None}, _QK, CheckpointError, "target_modules is None, which"),
    "targets": ({"target_modules": ["q", 3]}, _QK, CheckpointError,
        "target_modules is [\"q\", 3], expected a string or a list of them"),
    "layers": ({"layers_to_transform": ["1"]}, _QK, CheckpointError,
        "layers_to_transform is [\"1\"], expected an integer or a list of them"),
    "no expression": ({"target_modules": "(q"}, _QK, CheckpointError,
        ("target_modules, layers_pattern or modules_to_save is not a valid regular "
        "expression: missing ")),
    "not there": ({"target_modules": ["q", "lm_head"]}, _QK, CheckpointError,
        "the base has no modules for:\n  lm_head\nWas the adapter trained on another model, or "
        "does the base lack some of its leaves? If it was trained on this one, remove them from "),
    "none": ({"layers_to_transform": [7]}, _QK, CheckpointError,
        "no modules for target_modules ['q', 'k'], layers_to_transform [7]\nWas the "),
    "seed": ({"proj_seed": None}, _QK, CheckpointError, "proj_seed is missing, from which PEFT"),
    "negative seed": ({"proj_seed": -1}, _QK, CheckpointError,
        "proj_seed is -1, expected a non-negative integer"),
    "vector": ({"theta_d_length": 6}, _QK, ShapeError,
        "unilora_theta_d has shape (5,), expected (6,) from the config"),
    "no layer": ({"target_modules": ["q", "1"]}, _QK, CheckpointError,
        "are not linear layers in the params given as base:\n  layers.1: no layers.1.weight\n"),
    "three axes": ({}, {**_QK, "layers.1.k.weight": np.ones((6, 4, 3))}, CheckpointError,
        "  layers.1.k: weight (6, 4, 3) float64\nExpected floats (out, in), or (in, out) for"),
    "integers": ({}, {**_QK, "layers.1.k.weight": np.ones((6, 4), np.int8)}, CheckpointError,
        "  layers.1.k: weight (6, 4) int8\n"),
    "bias": ({}, {**_QK, "layers.0.q.bias": np.ones(5)}, CheckpointError,
        "  layers.0.q: weight (6, 4), bias (5,)\n"),
    "twins": ({}, _TIED, CheckpointError, "modules with the same weights in the params given as "
    "base:\n  layers.0.q = "
    "layers.1.q\nPEFT adapts one module with two names once"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "base", "kind", "message"), BAD.values(), ids=BAD)
def test_invalid_files_are_refused(fields, base, kind, message, tmp_path):
    text = refused(kind, _save(tmp_path, **fields), base=base)
    assert message in text, text


def test_indices_that_peft_would_pass_over(tmp_path):
    tensors = keyed({"unilora_indices_A": np.zeros((2, 4), np.int64)}, "layers.0.q")
    text = refused(CheckpointError, _save(tmp_path, {**tensors, **_THETA}), base=_QK)
    assert "save_indices is false, but the file has indices, which PEFT then ignores" in text


def test_missing_vector_is_refused(tmp_path):
    message = "unilora_theta_d is missing, which all sites share"
    folder = _save(tmp_path, keyed({"bias": np.ones(6)}, "head"), modules_to_save=["head"])
    assert message in refused(CheckpointError, folder, base=_QK)


def test_folder_has_no_order(tmp_path):
    base = save(tmp_path / "base", Form("UNILORA", {}, {}), _QK)
    (base / "adapter_model.safetensors").rename(base / "model.safetensors")
    text = refused(CheckpointError, _save(tmp_path / "adapter"), base=base)
    assert f"found {base}, which has no order" in text and _ASKS in text, text


def test_same_numbers_in_another_shape_are_another_module(tmp_path):
    base = {"layers.q.weight": np.ones((6, 4)), "layers.k.weight": np.ones((4, 6))}
    assert len(load(_save(tmp_path), base=base).updates) == 2
