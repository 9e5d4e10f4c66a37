"""Small valid files of each format, of which tests of errors change one part."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

__all__ = ["BASE", "FACTORS", "changed", "drawn", "factors", "kohya", "save"]

# The base's modules: names with dots and underscores.
BASE = ("mid.attn_1.to_q", "mid.attn_1.to_k", "mid.conv", "proj")


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    """Returns random numbers in float32."""
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


_HADA = {f"hada_w{i}_{x}": (6, 2) if x == "a" else (2, 4) for i in "12" for x in "ab"}
_CORED = {
    **{f"hada_w{i}_a": (2, 6) for i in "12"},
    **{f"hada_w{i}_b": (2, 4) for i in "12"},
    **{f"hada_t{i}": (2, 2, 3, 1) for i in "12"},
}
_AB: dict[str, tuple[int, ...]] = {"lora_down.weight": (2, 4), "lora_up.weight": (6, 2)}
_CONV: dict[str, tuple[int, ...]] = {
    "lora_down.weight": (2, 4, 1, 1),
    "lora_mid.weight": (2, 2, 3, 1),
    "lora_up.weight": (6, 2, 1, 1),
}
# Shapes of one module's tensors by family and form, for a weight (6, 4) or (6, 4, 3, 1).
FACTORS: dict[str, dict[str, tuple[int, ...]]] = {
    "lora": {**_AB, "alpha": ()},
    "lora-scale": {**_AB, "scale": ()},
    "lora-bias": {**_AB, "diff_b": (6,)},
    "locon-tucker": {**_CONV, "alpha": ()},
    "dora": {**_AB, "dora_scale": (6, 1)},
    "dora-in": {**_AB, "dora_scale": (1, 4)},
    "loha": {**_HADA, "alpha": ()},
    "loha-tucker": {**_CORED, "alpha": ()},
    "lokr": {"lokr_w1": (2, 2), "lokr_w2_a": (3, 1), "lokr_w2_b": (1, 2), "alpha": ()},
    "lokr-full": {"lokr_w1": (2, 2), "lokr_w2": (3, 2), "alpha": ()},
    "lokr-core": {
        "lokr_w1": (2, 2),
        "lokr_w2_a": (1, 3),
        "lokr_w2_b": (1, 2),
        "lokr_t2": (1, 1, 3, 1),
        "alpha": (),
    },
    "diff": {"diff": (6, 4), "diff_b": (6,)},
    "norm": {"w_norm": (6,), "b_norm": (6,)},
    "ia3": {"weight": (6,), "on_input": ()},
    "diag-oft": {"oft_blocks": (2, 3, 3), "rescale": (6, 1), "alpha": ()},
    "boft": {"oft_blocks": (2, 3, 2, 2), "alpha": ()},
    "glora": {
        "a1.weight": (4, 2),
        "a2.weight": (2, 4),
        "b1.weight": (6, 2),
        "b2.weight": (2, 4),
        "alpha": (),
    },
}
# A butterfly needs a power of two blocks: 4 of size 2, not 3.
FACTORS["boft"]["oft_blocks"] = (2, 2, 2, 2)


def factors(form: str) -> dict[str, np.ndarray]:
    """Returns one module's tensors."""
    tensors = {name: drawn(*shape) for name, shape in FACTORS[form].items()}
    if "on_input" in tensors:
        tensors["on_input"] = np.asarray(0, np.int64)
    return tensors


def kohya(form: str, module: str = "lora_unet_proj") -> dict[str, np.ndarray]:
    """Returns the tensors of a kohya file with one module."""
    return {f"{module}.{name}": tensor for name, tensor in factors(form).items()}


def changed(form: str, changes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns that file with tensors changed (``__`` stands for a dot) or removed (None)."""
    tensors = kohya(form)
    for name, tensor in changes.items():
        key = f"lora_unet_proj.{name.replace('__', '.')}"
        tensors.pop(key, None)
        if tensor is not None:
            tensors[key] = tensor
    return tensors


def save(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> Path:
    """Writes a file; metadata that are not strings are written as JSON."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()}
    save_file(dict(tensors), path, metadata=texts)
    return path
