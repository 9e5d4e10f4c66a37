"""Changes of a file of tensors: of what it holds, and of its header."""

import json
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from ..tensorfile import SIZES, BadFileError, Tensor, encoded, pack, split, unpack
from .texts import VALUES, bytes_changed, json_changed

__all__ = ["tensors_changed"]

Tensors = dict[str, Tensor]


def tensors_changed(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """One change; of bytes, if the file is damaged already."""
    how = rng.choice(["inside", "inside", "inside", "header", "header", "bytes", "data", "length"])
    try:
        tensors, metadata = unpack(data)
    except BadFileError:
        return bytes_changed(data, rng)
    if how == "inside" and tensors:
        name, change = rng.choice(_INSIDE)
        what = change(tensors, rng)
        if name == "metadata":
            what = _metadata(metadata, rng)
        return pack(tensors, metadata), f"{name}: {what}"
    header, rest = split(data)
    if how == "header":
        text, what = _header(header, rng)
        text += b" " * (-len(text) % 8) if rng.random() < 0.5 else b""
        return len(text).to_bytes(8, "little") + text + rest, f"header: {what}"
    if how == "data":
        new, what = bytes_changed(rest, rng)
        return data[: 8 + len(header)] + new, f"data: {what}"
    if how == "length":
        length = rng.choice(
            [0, 1, 2, len(header) - 1, len(header) + 1, len(data), 2**32, 2**63, 2**64 - 1]
        )
        return length.to_bytes(8, "little") + data[8:], f"header's length {length}"
    return bytes_changed(data, rng)


# ------------------------------------------------------------------------ what the file holds


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
    """A key's end or module becomes another's, or has a letter changed."""
    key, other = _pick(tensors, rng), _pick(tensors, rng)
    at = rng.randrange(len(key) + 1)
    new = rng.choice(
        [
            key.rpartition(".")[0] + "." + other.rpartition(".")[2],
            other.rpartition(".")[0] + "." + key.rpartition(".")[2],
            key[:at] + rng.choice(" .-/_lA0é\0") + key[at + 1 :],
            key[:at] + key[at + 1 :],
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


def _twice(tensors: Tensors, rng: random.Random) -> str:
    """The same under another name."""
    key = _pick(tensors, rng)
    fitting = [pair for pair in _SPELLINGS.items() if pair[0] in key]
    if fitting:
        new = key.replace(*rng.choice(fitting))
        tensors[new] = tensors[_pick(tensors, rng)] if rng.random() < 0.3 else tensors[key]
        return f"{key} as {new} too"
    return key


def _shape(tensors: Tensors, rng: random.Random) -> str:
    """Other axes, with numbers that fit them."""
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
    """The same numbers in another dtype, as far as it holds them."""
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
    one, other = _pick(tensors, rng), _pick(tensors, rng)
    tensors[one], tensors[other] = tensors[other], tensors[one]
    return f"{one} and {other}"


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
    """A tensor of another family, or of another sort, beside those of a module."""
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
    ("drop", _drop), ("rename", _rename), ("rename", _rename), ("twice", _twice), ("shape", _shape),
    ("shape", _shape), ("dtype", _dtype), ("number", _number), ("number", _number), ("swap", _swap),
    ("order", _order), ("foreign", _foreign), ("metadata", _nothing),
]  # fmt: skip


# ------------------------------------------------------------------------------- the header


def _header(text: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A changed header, whose length is told as it is."""
    header = json.loads(text)
    keys = [key for key in header if key != "__metadata__"]
    if not keys or rng.random() < 0.2:
        return json_changed(text, rng)
    key = rng.choice(keys)
    entry = header[key]
    how = rng.choice(
        ["dtype", "shape", "offsets", "swap", "extra", "field", "twice", "spaces", "metadata"]
    )
    if how == "dtype":
        same = [name for name, size in SIZES.items() if size == SIZES[entry["dtype"]]]
        entry["dtype"] = rng.choice(
            [*same, *SIZES, "f32", "F4", "F8_E4M3FNUZ", "I4", "X", "", None, 3]
        )
    elif how == "shape":
        shape, size = entry["shape"], math.prod(entry["shape"])
        entry["shape"] = rng.choice(
            [
                shape[::-1],
                [size],
                [1, *shape],
                [*shape, 1],
                [],
                [size + 1],
                [0],
                [-1, *shape],
                [-size, -1],
                [2**32, 2**32],
                [2**63, 0],
                [float(n) for n in shape],
                "x",
                None,
                [str(n) for n in shape],
                [2, size // 2],
                [True],
                [*shape, 0],
                [[size]],
            ]
        )
    elif how == "offsets":
        start, end = entry["data_offsets"]
        other = header[rng.choice(keys)]["data_offsets"]
        entry["data_offsets"] = rng.choice(
            [
                [start + 1, end],
                [start, end + 8],
                [start + 8, end + 8],
                [end, start],
                [0, end - start],
                [start, end - 8],
                [2**62, 2**62 + end - start],
                [-8, end],
                [start, 2**64],
                [start],
                [start, end, end],
                [float(start), float(end)],
                None,
                "x",
                other,
                [start, start],
            ]
        )
    elif how == "swap":
        other = rng.choice(keys)
        header[key], header[other] = header[other], header[key]
    elif how == "extra":
        header[rng.choice(["x", "", key + ".x"])] = rng.choice(
            [{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, dict(entry), 3, [], {}]
        )
    elif how == "field":
        entry[rng.choice([*entry, "x"])] = rng.choice(VALUES)
    elif how == "twice":
        copied = json.dumps(header[rng.choice(keys)])
        return text.rstrip()[:-1] + f", {json.dumps(key)}: {copied}}}".encode(), f"twice {key}"
    elif how == "spaces":
        spaces = rng.choice([b" ", b"\n\t", b" " * 5000])
        return rng.choice([spaces + text, text + spaces]), "spaces"
    else:
        header["__metadata__"] = rng.choice([*VALUES, {"format": 3}, {"format": "pt", "x": "y"}])
    return json.dumps(header).encode(), f"{how} {key}: {json.dumps(header.get(key))[:80]}"
