"""Folders like PEFT's, written by hand: without torch, and with any defect.

One row per family and form; all of them adapt one site, ``layer.proj``.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jaxmix import JaxmixError, load

__all__ = [
    "FORMS",
    "SITE",
    "Form",
    "factors",
    "keyed",
    "one",
    "packed",
    "params",
    "refused",
    "save",
]

SITE = "layer.proj"
_NAMES = {
    np.dtype(np.float64): "F64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.int64): "I64",
    np.dtype(np.int32): "I32",
    np.dtype(np.uint8): "U8",
    np.dtype(np.int8): "I8",
    np.dtype(np.bool_): "BOOL",
    np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3",
}


@dataclass(frozen=True)
class Form:
    """One form of a family: its config, the shapes of its factors, and the weight that they fit."""

    family: str
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    weight: tuple[int, ...] = (6, 4)
    bias: bool = True


_LORA = {"r": 2, "lora_alpha": 3}
_LYCORIS = {"r": 2, "alpha": 3}
_OFT = {
    "r": 0,
    "oft_block_size": 2,
    "use_cayley_neumann": False,
    "num_cayley_neumann_terms": 5,
    "eps": 6e-5,
    "coft": False,
    "peft_version": "0.21.2",
}
_AB = {"lora_A.weight": (2, 4), "lora_B.weight": (6, 2)}
_HADA = {"hada_w1_a": (6, 2), "hada_w1_b": (2, 4), "hada_w2_a": (6, 2), "hada_w2_b": (2, 4)}
_CORED = {
    **{f"hada_w{i}_a": (2, 6) for i in "12"},
    **{f"hada_w{i}_b": (2, 4) for i in "12"},
    **{f"hada_t{i}": (2, 2, 3, 5) for i in "12"},
}

FORMS: dict[str, Form] = {
    "lora": Form("LORA", _LORA, _AB),
    "dora": Form("LORA", {**_LORA, "use_dora": True}, {**_AB, "lora_magnitude_vector": (6,)}),
    "lora-bias": Form("LORA", {**_LORA, "lora_bias": True}, {**_AB, "lora_B.bias": (6,)}),
    "lora-conv": Form(
        "LORA", _LORA, {"lora_A.weight": (2, 4, 3), "lora_B.weight": (6, 2, 1)}, (6, 4, 3)
    ),
    "lora-embedding": Form(
        "LORA", _LORA, {"lora_embedding_A": (2, 6), "lora_embedding_B": (4, 2)}, bias=False
    ),
    "adalora": Form(
        "ADALORA",
        {"init_r": 2, "lora_alpha": 3, "total_step": 10},
        {"lora_A": (2, 4), "lora_B": (6, 2), "lora_E": (2, 1)},
    ),
    "loha": Form("LOHA", _LYCORIS, _HADA),
    "loha-effective": Form("LOHA", _LYCORIS, _CORED, (6, 4, 3, 5)),
    "lokr": Form("LOKR", _LYCORIS, {"lokr_w1": (2, 2), "lokr_w2": (3, 2)}),
    "lokr-low": Form(
        "LOKR",
        _LYCORIS,
        {"lokr_w1_a": (2, 2), "lokr_w1_b": (2, 2), "lokr_w2_a": (3, 2), "lokr_w2_b": (2, 2)},
    ),
    "lokr-tucker": Form(
        "LOKR",
        _LYCORIS,
        {"lokr_w1": (2, 2), "lokr_w2_a": (2, 3), "lokr_w2_b": (2, 2), "lokr_t2": (2, 2, 3, 5)},
        (6, 4, 3, 5),
    ),
    "oft": Form("OFT", _OFT, {"oft_R.weight": (2, 1)}),
    "oft-embedding": Form("OFT", _OFT, {"oft_embedding_R.weight": (2, 1)}, bias=False),
    "shira": Form("SHIRA", {}, {"shira_weight": (5,), "shira_indices": (2, 5)}),
}


def factors(form: Form, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Returns random factors of the form, by PEFT's names."""
    rng = np.random.default_rng(7)
    tensors = {name: rng.normal(size=shape).astype(dtype) for name, shape in form.shapes.items()}
    if "shira_indices" in tensors:
        tensors["shira_indices"] = np.array([[0, 1, 2, 5, 5], [0, 3, 1, 0, 3]], np.int32)
    return tensors


def keyed(tensors: Mapping[str, np.ndarray], site: str = SITE) -> dict[str, np.ndarray]:
    """Returns factors with PEFT's keys."""
    return {f"base_model.model.{site}.{name}": array for name, array in tensors.items()}


def params(form: Form) -> dict[str, np.ndarray]:
    """Returns a base with this site."""
    rng = np.random.default_rng(8)
    leaves = {f"{SITE}.weight": rng.normal(size=form.weight).astype(np.float32)}
    if form.bias:
        leaves[f"{SITE}.bias"] = rng.normal(size=form.weight[:1]).astype(np.float32)
    return leaves


def packed(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Returns a safetensors file, also with dtypes that safetensors' own writer does not accept."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for key, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[key] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": offsets,
        }
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def save(
    folder: Path,
    form: Form | str = "lora",
    tensors: Mapping[str, np.ndarray] | None = None,
    **fields: Any,
) -> Path:
    """Saves the form's folder, with other tensors (by key) or other fields of its config."""
    form = FORMS[form] if isinstance(form, str) else form
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": form.family, **form.config, **fields}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    contents = keyed(factors(form)) if tensors is None else tensors
    (folder / "adapter_model.safetensors").write_bytes(packed(contents))
    return folder


def one(field: str, value: Any) -> dict[str, Any]:
    """Returns a field with a computed name, for `save`."""
    return {field: value}


def refused(kind: type[JaxmixError], folder: Path | str, **options: Any) -> str:
    """Returns the error's message when reading a folder; asserts its exact class."""
    with pytest.raises(JaxmixError) as caught:
        load(folder, **options)
    assert caught.type is kind
    return str(caught.value)
