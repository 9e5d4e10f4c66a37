"""Valid files of each format, and random changes to them."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from .files import FACTORS, drawn, factors

__all__ = ["FILES", "MUTATIONS", "Content", "mutated", "write"]


class Content(NamedTuple):
    """A file to write: tensors, metadata, a config next to it, and options for loading."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]
    config: dict[str, Any] | None
    options: dict[str, Any]


_SITES = ("mid.attn_1.to_q", "proj")
_BASE = {"base": [*_SITES, "mid.attn_1.to_k"]}


def _kohya(form: str) -> Content:
    names = {site: f"lora_unet_{site.replace('.', '_')}" for site in _SITES}
    tensors = {f"{name}.{k}": x for name in names.values() for k, x in factors(form).items()}
    return Content(tensors, {"ss_network_dim": "2"}, None, _BASE)


def _dotted(form: str, metadata: bool = False) -> Content:
    spelling = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    tensors = {
        f"unet.{site}.{spelling.get(k, k)}": x
        for site in _SITES
        for k, x in factors(form).items()
        if not metadata or k != "alpha"
    }
    config = {"unet.r": 2, "unet.lora_alpha": 3, "unet.alpha_pattern": {"proj": 5}}
    metadata_strings = {"lora_adapter_metadata": json.dumps(config)} if metadata else {}
    return Content(tensors, metadata_strings, None, {})


def _mlx(kind: str) -> Content:
    shapes = {"lora_a": (4, 2), "lora_b": (2, 6), **({"m": (6,)} if kind == "dora" else {})}
    if kind == "full":
        shapes = {"weight": (6, 4), "bias": (6,)}
    tensors = {f"{site}.{k}": drawn(*shape) for site in _SITES for k, shape in shapes.items()}
    config = {"fine_tune_type": kind, "lora_parameters": {"rank": 2, "scale": 2.0}}
    return Content(tensors, {}, config, {})


def _qwix(stacked: bool) -> Content:
    layers = (3,) if stacked else ()
    leaf = "decoder/layers/attn/query" if stacked else "decoder/layers/0/attn/query"
    tensors = {
        f"{leaf}/kernel_lora_a": drawn(*layers, 4, 2),
        f"{leaf}/kernel_lora_b": drawn(*layers, 2, 6),
    }
    return Content(tensors, {"lora_alpha": "4"}, None, {})


FILES: dict[str, Callable[[], Content]] = {
    **{f"kohya {form}": (lambda form=form: _kohya(form)) for form in FACTORS},
    **{f"dotted {form}": (lambda form=form: _dotted(form)) for form in ("lora", "lokr", "loha")},
    "dotted metadata": lambda: _dotted("lora", True),
    **{f"mlx {kind}": (lambda kind=kind: _mlx(kind)) for kind in ("lora", "dora", "full")},
    "qwix": lambda: _qwix(False),
    "qwix stacked": lambda: _qwix(True),
}


# -------------------------------------------------------------------------------- changes


def _some(content: Content, rng: random.Random) -> str:
    return rng.choice(sorted(content.tensors))


def _drop(content: Content, rng: random.Random) -> None:
    del content.tensors[_some(content, rng)]


def _rename(content: Content, rng: random.Random) -> None:
    """Swaps the end or module of a key with another's, or changes a letter."""
    key, other = _some(content, rng), _some(content, rng)
    i = rng.randrange(len(key) + 1)
    new = rng.choice(
        [
            key.rpartition(".")[0] + "." + other.rpartition(".")[2],
            key[:i] + rng.choice(" .-/_lA0é") + key[i + 1 :],
            key[:i] + key[i + 1 :],
            rng.choice(_PREFIXES) + key.partition(".")[2],
            key.replace(".weight", rng.choice(["", ".bias", ".default.weight", ".weight.weight"])),
            "",
        ]
    )
    content.tensors[new] = content.tensors.pop(key)


_PREFIXES = ("lora_te_", "lora_unet_", "lycoris_", "unet.", "base_model.model.", "lora_te1_proj.")


def _twice(content: Content, rng: random.Random) -> None:
    """Adds a copy of a tensor under another spelling."""
    key = _some(content, rng)
    spelling = {
        "lora_down": "lora_A",
        "lora_A": "lora.down",
        "lora_up": "lora_B",
        "lora_B": "lora.up",
    }
    for old, new in spelling.items():
        if old in key:
            content.tensors[key.replace(old, new)] = content.tensors[key]


def _shape(content: Content, rng: random.Random) -> None:
    key = _some(content, rng)
    x = content.tensors[key]
    content.tensors[key] = rng.choice(
        [
            x.T,
            x[..., None],
            x[None],
            x.reshape(-1),
            x.reshape(-1)[:1].reshape(() if x.size else (0,)),
            x.reshape(-1)[:0],
            np.zeros((0, *x.shape[1:]), x.dtype) if x.ndim else x,
            np.concatenate([x, x]) if x.ndim else x,
            np.concatenate([x, x], -1) if x.ndim else x,
            np.stack([x, x]),
            x[:-1] if x.ndim else x,
            x.reshape((*x.shape, 1, 1, 1, 1, 1)),
        ]
    )


def _dtype(content: Content, rng: random.Random) -> None:
    key = _some(content, rng)
    dtypes = [np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.int8, np.bool_]
    dtypes += [np.uint8, np.uint16, np.int16, np.uint64, np.uint32]
    content.tensors[key] = content.tensors[key].astype(rng.choice(dtypes))


def _number(content: Content, rng: random.Random) -> None:
    key = _some(content, rng)
    x = content.tensors[key].copy()
    if x.dtype.kind not in "iub" and x.size:
        x.reshape(-1)[rng.randrange(x.size)] = rng.choice(
            [np.nan, np.inf, -np.inf, 0, -1, 1e38, 1e-44]
        )
    content.tensors[key] = x


def _foreign(content: Content, rng: random.Random) -> None:
    """Adds a tensor of another family."""
    form = rng.choice(sorted(FACTORS))
    module = _some(content, rng).partition(".")[0]
    name, tensor = rng.choice(sorted(factors(form).items()))
    content.tensors[f"{module}.{name}"] = tensor


def _metadata(content: Content, rng: random.Random) -> None:
    texts = ["", "{", "null", "[]", "1e999", "NaN", '{"unet.r": 2}', '{"unet.r": "2"}', "é", "-0"]
    texts += ['{"unet.r": 2, "unet.lora_alpha": null}', '{"unet.r": true, "unet.lora_alpha": 3}']
    texts += ['{"unet.r": 2, "unet.lora_alpha": 1e999}', '{"unet.r": 2, "unet.lora_alpha": NaN}']
    texts += ['{"unet.r": 2, "unet.lora_alpha": 1, "unet.rank_pattern": {"[": 3}}']
    texts += ['{"unet.r": 2, "unet.lora_alpha": 1, "unet.alpha_pattern": {"proj": "x"}}']
    texts += ['{"unet.r": 2, "unet.lora_alpha": 1, "unet.alpha_pattern": 7}']
    key = rng.choice(["lora_adapter_metadata", "lora_alpha", "alpha", "format", "ss_network_dim"])
    content.metadata[key] = rng.choice(texts)


def _config(content: Content, rng: random.Random) -> None:
    if content.config is None:
        return
    values = [None, 3, -1.5, "lora", "full", [], {}, True, {"scale": 1}, {"scale": True}, 1e400]
    values += [{"rank": 2, "scale": 1.0, "alpha": 4}, {"scale": float("nan")}, {"scale": 10**400}]
    content.config[rng.choice([*content.config, "fine_tune_type", "lora_parameters"])] = rng.choice(
        values
    )


def _option(content: Content, rng: random.Random) -> None:
    values: list[Any] = [None, [], ["proj"], ["a", 3], {}, {"proj.weight": drawn(6, 4)}, 7, "x", ()]
    values += [[""], ["mid.attn_1.to_q", "mid_attn.1.to_q", "proj"], "unet", "lora_unet", 0.5, "é"]
    content.options[rng.choice(["base", "part", "alpha", "axis", "scale"])] = rng.choice(values)


MUTATIONS: dict[str, Callable[[Content, random.Random], None]] = {
    "drop": _drop,
    "rename": _rename,
    "twice": _twice,
    "shape": _shape,
    "dtype": _dtype,
    "number": _number,
    "foreign": _foreign,
    "metadata": _metadata,
    "config": _config,
    "option": _option,
}


def mutated(name: str, seed: int) -> tuple[Content, random.Random]:
    """Returns a valid file with one to three changes; its bytes are still unchanged."""
    rng, content = random.Random(f"{name} {seed}"), FILES[name]()
    content = Content(*(part if part is None else dict(part) for part in content))  # pyright: ignore
    for _ in range(rng.choice([1, 1, 2, 3])):
        if content.tensors:
            MUTATIONS[rng.choice(sorted(MUTATIONS))](content, rng)
    return content, rng


def write(content: Content, folder: Path, rng: random.Random | None = None) -> Path:
    """Writes the file, or the folder of a format with a config; with rng, changes some bytes."""
    name = "x.safetensors" if content.config is None else "adapters.safetensors"
    path = folder / name
    tensors = {k: np.ascontiguousarray(x).reshape(x.shape) for k, x in content.tensors.items()}
    save_file(tensors, path, metadata=content.metadata)
    if content.config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(content.config))
    if rng is not None and rng.random() < 0.2:
        data = bytearray(path.read_bytes())
        for _ in range(rng.choice([1, 1, 4])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        if rng.random() < 0.1 and len(data) > 8:
            data[:8] = struct.pack("<Q", rng.choice([0, 1, 2**63, len(data)]))
        path.write_bytes(bytes(data))
    return path if content.config is None else folder
