"""What other programs read, restated from their sources: keys and formulas, in NumPy."""

import re
from collections.abc import Mapping

import numpy as np

__all__ = ["comfyui", "diffusers", "kohya", "original"]

Arrays = Mapping[str, np.ndarray]
_CLIP_KEYS = r"encoder\.layers\.\d+\.(mlp\.fc[12]|self_attn\.[kqv]_proj|self_attn\.out_proj)"


def comfyui(file: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """ComfyUI's patches, by its table of keys and its formulas.

    Source: Comfy-Org/ComfyUI, ``comfy/lora.py``, ``comfy/weight_adapter``.

    Args:
        file: The adapter's tensors.
        weights: ``{key in ComfyUI's model: weight}``: ``diffusion_model.….weight``,
            ``clip_l.transformer.….weight``.
    """
    table: dict[str, str] = {}
    for key in weights:
        module = key.removesuffix(".weight")
        if key.startswith("diffusion_model."):
            table[module if key.endswith(".weight") else key] = key
            continue
        table[f"text_encoders.{module}"] = key
        for model, name in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2")):
            inner = module.removeprefix(f"{model}.transformer.")
            if inner != module and re.fullmatch(rf"text_model\.{_CLIP_KEYS}", inner):
                table[f"{name}.{inner}"] = key
    # HunyuanVideo's keys in the files of its own trainers.
    for name, key in tuple(table.items()):
        name = re.sub(r"_mod\.lin$", "_mod.linear", name).replace(
            "modulation.lin", "modulation.linear"
        )
        name = re.sub(r"_attn\.(qkv|proj)$", r"_attn_\1", name)
        name = re.sub(r"mlp\.0$", "mlp.fc1", re.sub(r"mlp\.2$", "mlp.fc2", name))
        table[name] = key
    return _patched(file, weights, table)


def kohya(file: Arrays, weights: Arrays, prefix: str = "lora_unet") -> dict[str, np.ndarray]:
    """Modules of sd-scripts and LyCORIS: names with underscores for dots.

    Source: kohya-ss/sd-scripts, ``networks/lora.py`` (``create_modules``).
    """
    table = {
        f"{prefix}_{key.removesuffix('.weight').replace('.', '_')}": key
        for key in weights
        if key.endswith(".weight")
    }
    return _patched(file, weights, table)


def original(file: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """Modules by their own names."""
    return _patched(file, weights, {key.removesuffix(".weight"): key for key in weights})


def diffusers(file: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """Diffusers' modules with PEFT's factors and a scale of 1.

    Source: huggingface/diffusers, ``loaders/peft.py`` (``load_lora_adapter``).
    """
    out = dict(weights)
    used = set[str]()
    for key, weight in weights.items():
        module = key.removesuffix(".weight")
        a, b = (f"{module}.lora_{x}.weight" for x in "AB")
        if a not in file:
            continue
        used |= {a, b}
        new = weight + (_flat(file[b]) @ _flat(file[a])).reshape(weight.shape)
        if (magnitude := file.get(f"{module}.lora_magnitude_vector")) is not None:
            used.add(f"{module}.lora_magnitude_vector")
            norms = np.linalg.norm(_flat(new), axis=1)
            new = new * (magnitude.reshape(-1) / norms).reshape(-1, *(1,) * (new.ndim - 1))
        out[key] = new
    assert used == set(file), sorted(set(file) - used)
    return out


def _patched(file: Arrays, weights: Arrays, table: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The weights with a file's updates; every tensor of the file must be one of them."""
    out, used = dict(weights), set[str]()
    for name, key in table.items():
        keys = {k.removeprefix(f"{name}."): k for k in file if k.startswith(f"{name}.")}
        factors = {end: np.asarray(file[k], np.float64) for end, k in keys.items()}
        delta = _delta(factors, weights[key])
        if delta is None:
            continue
        used.update(keys.values())
        out[key] = weights[key] + delta
    assert used == set(file), sorted(set(file) - used)
    return out


def _delta(f: Arrays, weight: np.ndarray) -> np.ndarray | None:
    """The difference of one weight."""
    alpha = f.get("alpha")
    if "lora_up.weight" in f:
        down, up = _flat(f["lora_down.weight"]), _flat(f["lora_up.weight"])
        delta = (up @ down).reshape(weight.shape) * (1.0 if alpha is None else alpha / len(down))
        if "dora_scale" not in f:
            return delta
        new = weight + delta
        return new * (f["dora_scale"] / np.linalg.norm(new, axis=1, keepdims=True)) - weight
    if "hada_w1_a" in f:
        both = (f["hada_w1_a"] @ f["hada_w1_b"]) * (f["hada_w2_a"] @ f["hada_w2_b"])
        return both * (1.0 if alpha is None else alpha / len(f["hada_w1_b"]))
    if "lokr_w1" in f:
        return np.kron(f["lokr_w1"], f["lokr_w2"])
    if "diff" in f:
        return f["diff"]
    if "oft_blocks" in f:
        assert alpha is not None and not alpha
        blocks = f["oft_blocks"]
        q, eye = blocks - blocks.swapaxes(1, 2), np.eye(blocks.shape[1])
        r = (eye + q) @ np.linalg.inv(eye - q)
        rotated = np.einsum("knm,kni->kmi", r, weight.reshape(*blocks.shape[:2], -1))
        return rotated.reshape(weight.shape) - weight
    return None


def _flat(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float64).reshape(len(x), -1)
