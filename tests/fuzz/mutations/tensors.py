"""Changes a file of tensors: its tensors, its header or its bytes."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from ..tensorfile import SIZES, BadFileError, Tensor, encoded, pack, split, unpack
from .headers import header_changed
from .texts import bytes_changed

__all__ = ["tensors_changed"]

Tensors = dict[str, Tensor]


def tensors_changed(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Makes one change; of bytes, if the file is already damaged."""
    place = rng.choice(
        ["inside", "inside", "inside", "header", "header", "bytes", "data", "length"]
    )
    try:
        tensors, metadata = unpack(data)
    except BadFileError:
        return bytes_changed(data, rng)
    if place == "inside" and tensors:
        name, change = rng.choice(_INSIDE)
        description = change(tensors, rng)
        if name == "metadata":
            description = _metadata(metadata, rng)
        return pack(tensors, metadata), f"{name}: {description}"
    header, rest = split(data)
    if place == "header":
        text, description = header_changed(header, rng)
        text += b" " * (-len(text) % 8) if rng.random() < 0.5 else b""
        return len(text).to_bytes(8, "little") + text + rest, f"header: {description}"
    if place == "data":
        new, description = bytes_changed(rest, rng)
        return data[: 8 + len(header)] + new, f"data: {description}"
    if place == "length":
        length = rng.choice(
            [0, 1, 2, len(header) - 1, len(header) + 1, len(data), 2**32, 2**63, 2**64 - 1]
        )
        return length.to_bytes(8, "little") + data[8:], f"header's length {length}"
    return bytes_changed(data, rng)


def _pick(tensors: Tensors, rng: random.Random) -> str:
    return rng.choice(list(tensors))


def _drop(tensors: Tensors, rng: random.Random) -> str:
    key = _pick(tensors, rng)
    del tensors[key]
    return key


_PREFIXES = (
    "base_model.model.", "base_model.model.model.", "model.", "module.", "_orig_mod.", "unet.",
    "lora_unet_", "lora_te_", "lycoris_", "base_model.model._orig_mod.", "transformer.", "",
)  # fmt: skip


def _rename(tensors: Tensors, rng: random.Random) -> str:
    """Replaces a key's end or module by another's, or changes a letter."""
    key, other = _pick(tensors, rng), _pick(tensors, rng)
    position = rng.randrange(len(key) + 1)
    new = rng.choice(
        [
            key.rpartition(".")[0] + "." + other.rpartition(".")[2],
            other.rpartition(".")[0] + "." + key.rpartition(".")[2],
            key[:position] + rng.choice(" .-/_lA0é\0") + key[position + 1 :],
            key[:position] + key[position + 1 :],
            rng.choice(_PREFIXES) + key,
            rng.choice(_PREFIXES) + key.partition(".")[2],
            key.replace(".weight", rng.choice(["", ".bias", ".default.weight", ".weight.weight"])),
            key.replace("layers.0", "layers.1"),
            key.replace(".weight", ".modules_to_save.weight"),
            key.replace("lora_A", "lora_B"),
            "",
            "__metadata__",
        ]
    )
    items = [
        (new if name == key else name, tensor)
        for name, tensor in tensors.items()
        if name != new or name == key
    ]
    tensors.clear()
    tensors.update(items)
    return f"{key} to {new}"


_SPELLINGS = {
    "lora_down": "lora_A", "lora_A": "lora_A.default", "lora_up": "lora.up", "lora_B": "lora.up",
    "base_model.model.": "", "ia3_l": "ia3_l.default", "weight": "modules_to_save.default.weight",
    "model.": "model.model.",
}  # fmt: skip


def _duplicate(tensors: Tensors, rng: random.Random) -> str:
    """Stores a tensor again under another name."""
    key = _pick(tensors, rng)
    fitting = [pair for pair in _SPELLINGS.items() if pair[0] in key]
    if fitting:
        new = key.replace(*rng.choice(fitting))
        tensors[new] = tensors[_pick(tensors, rng)] if rng.random() < 0.3 else tensors[key]
        return f"{key} as {new} too"
    return key


def _shape(tensors: Tensors, rng: random.Random) -> str:
    """Changes the axes, with numbers that fit them."""
    key = _pick(tensors, rng)
    tensor = tensors[key]
    size = SIZES[tensor.dtype]
    kind = np.dtype(f"V{size}")
    x = np.frombuffer(tensor.data, kind).reshape(tensor.shape)
    flat = x.reshape(-1)
    ways: list[Callable[[], Any]] = [
        lambda: x.T, lambda: x[..., None], lambda: x[None], lambda: flat, lambda: flat[:0],
        lambda: flat[:1].reshape(() if x.size else (0,)), lambda: x[..., None, None],
    ]  # fmt: skip
    if x.ndim:
        ways += [
            lambda: np.concatenate([x, x]), lambda: np.concatenate([x, x], -1), lambda: x[:-1],
            lambda: x[..., :-1], lambda: np.stack([x, x]), lambda: x[::-1], lambda: x[:1],
            lambda: x[:0],
        ]  # fmt: skip
    new = rng.choice(ways)()
    tensors[key] = Tensor(tensor.dtype, new.shape, np.ascontiguousarray(new).tobytes())
    return f"{key} {tensor.shape} to {new.shape}"


def _dtype(tensors: Tensors, rng: random.Random) -> str:
    """Stores the same numbers in another dtype, as far as it can hold them."""
    key, dtype = _pick(tensors, rng), rng.choice([name for name in SIZES if name != "F8_E8M0"])
    with np.errstate(all="ignore"):
        tensors[key] = encoded(np.nan_to_num(tensors[key].numbers, posinf=9, neginf=-9), dtype)
    return f"{key} to {dtype}"


def _number(tensors: Tensors, rng: random.Random) -> str:
    key = _pick(tensors, rng)
    numbers = tensors[key].numbers.copy()
    value = rng.choice(
        [np.nan, np.inf, -np.inf, 0, 0, -1, 2.5, 100, 1e38, -3e38, 1e-44, 65000, 1e5]
    )
    if numbers.size and (tensors[key].is_float or abs(value) < 100):
        numbers.reshape(-1)[rng.randrange(numbers.size)] = value
        dtype = tensors[key].dtype
        tensors[key] = encoded(numbers, dtype if dtype != "F8_E8M0" else "F32")
    return f"{value} in {key}"


def _swap(tensors: Tensors, rng: random.Random) -> str:
    first, second = _pick(tensors, rng), _pick(tensors, rng)
    tensors[first], tensors[second] = tensors[second], tensors[first]
    return f"{first} and {second}"


def _order(tensors: Tensors, rng: random.Random) -> str:
    items = list(tensors.items())
    rng.shuffle(items)
    tensors.clear()
    tensors.update(items)
    return "of the tensors"


_FOREIGN = (
    "lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector",
    "hada_w1_a", "lokr_w1",
    "oft_R.weight", "ia3_l", "weight", "bias", "alpha", "lora_E", "base_layer.weight", "x",
    "lora_embedding_A", "weight_scale", "weight_scale_inv", "input_scale", "dora_scale",
)  # fmt: skip


def _foreign(tensors: Tensors, rng: random.Random) -> str:
    """Adds a tensor of another family, or of another kind, to those of a module."""
    key = _pick(tensors, rng)
    module = key.partition(".lora")[0].rpartition(".weight")[0] or key.rpartition(".")[0]
    new = f"{module}.{rng.choice(_FOREIGN)}"
    if new not in tensors:
        tensors[new] = tensors[_pick(tensors, rng)]
    return new


def _nothing(tensors: Tensors, rng: random.Random) -> str:
    return ""


_METADATA = (
    "", "{", "null", "[]", "1e999", "NaN", "é", "-0", '{"unet.r": 2}', '{"unet.r": "2"}',
    '{"unet.r": 2, "unet.lora_alpha": null}', '{"unet.r": true, "unet.lora_alpha": 3}',
    '{"unet.r": 2, "unet.lora_alpha": 1e999}', '{"unet.r": 2, "unet.lora_alpha": 7}',
    '{"unet.r": 2, "unet.lora_alpha": 1, "unet.rank_pattern": {"[": 3}}',
    '{"unet.r": 2, "unet.lora_alpha": 1, "unet.alpha_pattern": {"to_q": 4}}',
    '{"unet.r": 2, "unet.lora_alpha": 1, "unet.alpha_pattern": {"proj": "x"}}',
    '{"unet.r": 2, "unet.lora_alpha": 1, "unet.alpha_pattern": 7}',
    '{"unet.r": 2, "unet.lora_alpha": 1, "unet.use_rslora": true}',
    '{"unet.r": 4, "unet.lora_alpha": 1}',
)  # fmt: skip


def _metadata(metadata: dict[str, str], rng: random.Random) -> str:
    key = rng.choice(["lora_adapter_metadata", "format", "ss_network_dim", "ss_network_alpha", "x"])
    metadata[key] = rng.choice(_METADATA)
    return f"{key} is {metadata[key]}"


_INSIDE: list[tuple[str, Callable[[Tensors, random.Random], str]]] = [
    ("drop", _drop), ("rename", _rename), ("rename", _rename), ("twice", _duplicate),
    ("shape", _shape),
    ("shape", _shape), ("dtype", _dtype), ("number", _number), ("number", _number), ("swap", _swap),
    ("order", _order), ("foreign", _foreign), ("metadata", _nothing),
]  # fmt: skip
