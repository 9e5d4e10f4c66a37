"""AdapterHub's folders: LoRA and IA3, which its ``adapters`` package wrote.

A key is ``<module>.loras.<name>.lora_A`` (r, in) or ``lora_B`` (out, r); IA3 has lora_B (out, 1)
alone. A fused attention projection has its q, k and v rows in thirds, of which only those in
``attn_matrices`` have factors, one after the other.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.base import base_model
from jaxmix.converters.adapters.lycoris.files import json_of
from jaxmix.converters.adapters.peft.keys import Sites
from jaxmix.converters.adapters.peft.shapes import Factors, shapes
from jaxmix.converters.adapters.peft.sidecars import read_sidecars
from jaxmix.converters.adapters.peft.tensors import FLOATS, read_tensors
from jaxmix.converters.adapters.peft.values import NUMBER
from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError, listing
from jaxmix.families import IA3, LoRA, Replace, Together, Update
from jaxmix.untrusted.files import read_small

__all__ = ["PICKLE_FILE", "WEIGHTS_FILE", "is_adapterhub", "is_adapterhub_file", "read_adapterhub"]

WEIGHTS_FILE = "adapter.safetensors"
PICKLE_FILE = "pytorch_adapter.bin"
_CONFIG_FILE = "adapter_config.json"
_KEY = re.compile(r"(?P<site>.+)\.loras\.(?P<name>[^.]+)\.(?P<factor>lora_[AB])")
# The linear layers that hold q, k and v in one.
_FUSED = ("c_attn", "in_proj")
_READ = {"architecture", "r", "alpha", "composition_mode", "attn_matrices"}
_HARMLESS = {
    *("selfattn_lora", "intermediate_lora", "output_lora", "leave_out", "dropout", "dtype"),
    *("init_weights", "init_weights_seed"),
}


def is_adapterhub(path: Path) -> bool:
    """Whether it is a folder that AdapterHub's ``adapters`` wrote, or the weights in one.

    Its config nests that of the method under ``config``, and names no ``peft_type``.
    """
    if path.is_file():
        return is_adapterhub_file(path.name) and bool(_config(path.parent))
    return bool(_config(path))


def is_adapterhub_file(name: str) -> bool:
    """Whether a file of this name holds the adapter's own tensors."""
    return name in (WEIGHTS_FILE, PICKLE_FILE)


def read_adapterhub(
    path: Path,
    name: str,
    strength: Any = 1.0,
    *,
    base: Any = None,
    beside: Sequence[str] = (),
) -> Adapter:
    """Reads the LoRA or IA3 in a folder that AdapterHub's ``adapters`` wrote.

    Args:
        path: The folder, or its file of tensors.
        name: What to call the adapter.
        strength: The strength with which it enters a mix, a real scalar.
        base: The model that it was trained on, to tell what is beside it from other modules.
        beside: The names of other files of weights in the folder, to be read as replaced leaves:
            ``model_head.safetensors``.

    Returns:
        The adapter. LoRA's scale is alpha / r; IA3 scales outputs, the bias included.

    Raises:
        UnsupportedError: If it is of another method, or a field of the config can't be honoured.
        CheckpointError: If a file is missing or damaged, or keys mean nothing.
        ShapeError: If factors disagree with each other or with the config.
        AdapterError: If a number is not finite.

    Example:
        >>> read_adapterhub(Path("no/such/folder"), "style")
        Traceback (most recent call last):
        ...
        jaxmix.errors.CheckpointError: no/such/folder has no adapter_config.json of ...

    Source: adapter-hub/adapters, ``src/adapters/methods/lora.py``.
    """
    folder = path.parent if path.is_file() else path
    told = _config(folder)
    config = _checked(told, folder)
    files = [folder / WEIGHTS_FILE, folder / PICKLE_FILE]
    file = path if path.is_file() else next((f for f in files if f.is_file()), files[0])
    is_transposed = told.get("model_type") == "gpt2"
    updates: dict[str, Update] = {}
    wrong: list[str] = []
    sites = _sites(read_tensors(file), file)
    for site, factors in sites.items():
        try:
            if config["composition_mode"] == "scale":
                updates[site] = _ia3(site, factors, config, is_transposed)
            else:
                updates[site] = _lora(site, factors, config, is_transposed)
        except ShapeError as error:
            wrong.append(f"{site}: {error}")
    if wrong:
        raise ShapeError(
            f"{file}: factors that do not fit the config:{listing(wrong)}\nWas the file edited?"
        )
    model = base_model(base) if base is not None and beside else None
    for site, leaves in read_sidecars(folder, beside, Sites(sites), model).items():
        own: dict[str, Any] = dict(leaves)
        whole = Replace(own.get("weight"), own.get("bias"))
        updates[site] = Together((whole, updates[site])) if site in updates else whole
    return Adapter(updates, name=name) * strength


def _config(folder: Path) -> dict[str, Any]:
    """The config, if it is AdapterHub's; else an empty dict."""
    try:
        found: Any = json_of(read_small(folder / _CONFIG_FILE).decode())
    except (OSError, ValueError):
        return {}
    is_theirs = isinstance(found, dict) and "config" in found and "peft_type" not in found
    return found if is_theirs and ("model_name" in found or "model_type" in found) else {}


def _checked(told: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The method's config, of LoRA or IA3 and of nothing that can't be honoured."""
    if not told:
        raise CheckpointError(
            f"{folder} has no {_CONFIG_FILE} of AdapterHub's, expected an object with config and "
            "model_type. Give the folder that model.save_adapter wrote."
        )
    found = told.get("config")
    method = found.get("architecture", "bottleneck") if isinstance(found, dict) else found
    if not isinstance(found, dict) or method != "lora":
        raise UnsupportedError(
            f"{folder} was saved by AdapterHub's adapters, and its method is {method!r}, expected "
            "'lora', which is LoRA or IA3. No change of the weights computes what others do."
        )
    config = {"composition_mode": "add", "attn_matrices": ["q", "v"], "r": 8, "alpha": 8, **found}
    problems = [
        f"{field} = {value!r}"
        for field, value in config.items()
        if field not in _READ | _HARMLESS and value not in (None, False)
    ]
    if problems:
        raise UnsupportedError(
            f"{folder} was saved by AdapterHub's adapters, with fields that jaxmix can't honour:"
            f"{listing(problems)}\nMerge it there with model.merge_adapter(name), if it can be."
        )
    is_whole = type(config["r"]) is int and config["r"] > 0 and NUMBER.holds(config["alpha"])
    is_known = config["composition_mode"] in ("add", "scale")
    if not is_whole or not is_known or not isinstance(config["attn_matrices"], list):
        raise CheckpointError(
            f"{folder / _CONFIG_FILE}: r, alpha, composition_mode and attn_matrices are "
            f"{[config[x] for x in ('r', 'alpha', 'composition_mode', 'attn_matrices')]!r}, "
            "expected a positive integer, a number, 'add' or 'scale', and a list. Was it edited?"
        )
    return config


def _sites(tensors: Mapping[str, np.ndarray], file: Path) -> dict[str, Factors]:
    """The tensors by module."""
    sites: dict[str, Factors] = {}
    names: set[str] = set()
    unknown: list[str] = []
    for key, tensor in tensors.items():
        found = _KEY.fullmatch(key)
        if found is None or tensor.dtype not in FLOATS:
            unknown.append(f"{key}: {tensor.dtype} {tensor.shape}")
        else:
            names.add(found["name"])
            sites.setdefault(found["site"], {})[found["factor"]] = tensor
    if unknown:
        raise CheckpointError(
            f"{file}: keys that mean nothing in a LoRA or IA3 of AdapterHub's:{listing(unknown)}\n"
            "Expected floats under <module>.loras.<name>.lora_A or lora_B."
        )
    if len(names) > 1:
        raise CheckpointError(
            f"{file} holds several adapters: {', '.join(sorted(names))}. Save each in a folder of "
            "its own with model.save_adapter."
        )
    return sites


def _thirds(site: str, config: Mapping[str, Any]) -> list[int]:
    """Which thirds of a fused projection have factors; none for any other layer."""
    is_fused = site.rpartition(".")[2] in _FUSED
    return [i for i, x in enumerate("qkv") if is_fused and x in config["attn_matrices"]]


def _lora(
    site: str, factors: dict[str, Any], config: Mapping[str, Any], is_transposed: bool
) -> Update:
    """W + alpha / r · BA."""
    thirds, rank = _thirds(site, config), config["r"]
    count = len(thirds) or 1
    a, b = (_matrix(factors, name) for name in ("lora_A", "lora_B"))
    if a.shape[0] != count * rank or b.shape[1] != rank or b.shape[0] % count:
        raise ShapeError(
            f"{shapes(factors)}, expected lora_A ({count * rank}, in), lora_B (out, {rank})"
        )
    if thirds:
        rows = b.shape[0] // count
        whole: Any = np.zeros((3 * rows, count * rank), b.dtype)
        for j, i in enumerate(thirds):
            block = b[j * rows : (j + 1) * rows]
            whole[i * rows : (i + 1) * rows, j * rank : (j + 1) * rank] = block
        b = whole
    return LoRA(a, b, config["alpha"] / rank, transposed=is_transposed)


def _ia3(
    site: str, factors: dict[str, Any], config: Mapping[str, Any], is_transposed: bool
) -> Update:
    """diag(alpha · l) W, and the bias likewise."""
    thirds = _thirds(site, config)
    count = len(thirds) or 1
    b = _matrix(factors, "lora_B")
    if b.shape[1] != 1 or b.shape[0] % count or len(factors) > 1 or config["r"] != 1:
        raise ShapeError(f"{shapes(factors)} and r = {config['r']}, expected lora_B (out, 1) alone")
    vector = b[:, 0]
    if thirds:
        whole: Any = np.ones((3, len(vector) // count), vector.dtype)
        whole[thirds] = vector.reshape(count, -1)
        vector = whole.reshape(-1)
    vector = vector if config["alpha"] == 1 else vector * np.asarray(config["alpha"], vector.dtype)
    return IA3(vector, transposed=is_transposed)


def _matrix(factors: dict[str, Any], name: str) -> Any:
    """A factor with two axes."""
    if name not in factors or factors[name].ndim != 2:
        raise ShapeError(f"{shapes(factors)}, expected {name} with two axes")
    return factors[name]
