"""AdapterHub's folders: the LoRA and IA3 of its ``adapters`` package.

A key is ``<module>.loras.<name>.lora_A`` (r, in) or ``lora_B`` (out, r); IA3 has only lora_B (out,
1). A fused attention projection has the rows of q, k and v in thirds. Only those in
``attn_matrices`` have factors, which are concatenated.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.common.base_model import base_model
from jaxmix.converters.adapters.common.shapes import SiteTensors, describe_shapes
from jaxmix.converters.adapters.common.sidecars import read_sidecars
from jaxmix.converters.adapters.common.tensor_files import CONFIG_FILE, parse_json_or_none
from jaxmix.converters.adapters.common.tensors import FACTOR_DTYPES, read_tensors
from jaxmix.converters.adapters.common.values import NUMBER
from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError, listing
from jaxmix.families import IA3, LoRA, Replace, Together, Update
from jaxmix.untrusted.files import read_small

__all__ = ["PICKLE_FILE", "WEIGHTS_FILE", "is_adapterhub", "is_adapterhub_file", "read_adapterhub"]

WEIGHTS_FILE = "adapter.safetensors"
PICKLE_FILE = "pytorch_adapter.bin"
_KEY = re.compile(r"(?P<site>.+)\.loras\.(?P<name>[^.]+)\.(?P<factor>lora_[AB])")
# The linear layers that combine q, k and v.
_FUSED = ("c_attn", "in_proj")
_SUPPORTED = {"architecture", "r", "alpha", "composition_mode", "attn_matrices"}
_HARMLESS = {
    *("selfattn_lora", "intermediate_lora", "output_lora", "leave_out", "dropout", "dtype"),
    *("init_weights", "init_weights_seed"),
}


def is_adapterhub(path: Path) -> bool:
    """Returns whether a path is a folder of AdapterHub's ``adapters``, or the weights in one.

    Its config nests that of the method under ``config``, and has no ``peft_type``.
    """
    if path.is_file():
        return is_adapterhub_file(path.name) and bool(_read_config(path.parent))
    return bool(_read_config(path))


def is_adapterhub_file(name: str) -> bool:
    """Returns whether a file of this name contains the adapter's own tensors."""
    return name in (WEIGHTS_FILE, PICKLE_FILE)


def read_adapterhub(
    path: Path,
    name: str,
    strength: Any = 1.0,
    *,
    base: Any = None,
    beside: Sequence[str] = (),
) -> Adapter:
    """Reads the LoRA or IA3 in a folder of AdapterHub's ``adapters``.

    Args:
        path: The folder, or its file of tensors.
        name: The adapter's name.
        strength: The adapter's strength in a mix, a real scalar.
        base: The model that it was trained on, to recognize the modules in ``beside``.
        beside: The names of further files of weights in the folder, which are read as replaced
            leaves: ``model_head.safetensors``.

    Returns:
        The adapter. LoRA's scale is alpha / r; IA3 scales outputs, including the bias.

    Raises:
        UnsupportedError: If the method, or a field of its config, is not supported.
        CheckpointError: If a file is missing or damaged, or a key is unknown.
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
    outer = _read_config(folder)
    config = _method_config(outer, folder)
    files = [folder / WEIGHTS_FILE, folder / PICKLE_FILE]
    file = path if path.is_file() else next((f for f in files if f.is_file()), files[0])
    is_transposed = outer.get("model_type") == "gpt2"
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
    extra = read_sidecars(folder, beside, split_leaf=_split_leaf, sites=sites, base=model)
    for site, leaves in extra.items():
        arrays: dict[str, Any] = dict(leaves)
        replaced = Replace(arrays.get("weight"), arrays.get("bias"))
        updates[site] = Together((replaced, updates[site])) if site in updates else replaced
    return Adapter(updates, name=name) * strength


def _read_config(folder: Path) -> dict[str, Any]:
    """Returns AdapterHub's config; empty if the folder has no such config."""
    try:
        config: Any = parse_json_or_none(read_small(folder / CONFIG_FILE).decode())
    except (OSError, ValueError):
        return {}
    is_adapterhub_config = (
        isinstance(config, dict) and "config" in config and "peft_type" not in config
    )
    return (
        config
        if is_adapterhub_config and ("model_name" in config or "model_type" in config)
        else {}
    )


def _method_config(outer: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The config of the method, which must be LoRA or IA3 with supported fields only."""
    if not outer:
        raise CheckpointError(
            f"{folder} has no {CONFIG_FILE} of AdapterHub, expected an object with config and "
            "model_type. Pass the folder that model.save_adapter wrote."
        )
    method_config = outer.get("config")
    method = (
        method_config.get("architecture", "bottleneck")
        if isinstance(method_config, dict)
        else method_config
    )
    if not isinstance(method_config, dict) or method != "lora":
        raise UnsupportedError(
            f"{folder} was saved by AdapterHub's adapters, and its method is {method!r}, expected "
            "'lora', which is LoRA or IA3. No other method can be expressed as changed weights."
        )
    config = {
        "composition_mode": "add",
        "attn_matrices": ["q", "v"],
        "r": 8,
        "alpha": 8,
        **method_config,
    }
    problems = [
        f"{field} = {value!r}"
        for field, value in config.items()
        if field not in _SUPPORTED | _HARMLESS and value not in (None, False)
    ]
    if problems:
        raise UnsupportedError(
            f"{folder} was saved by AdapterHub's adapters, with fields that jaxmix does not "
            f"support:{listing(problems)}\nIf possible, merge it there with "
            "model.merge_adapter(name)."
        )
    is_valid = type(config["r"]) is int and config["r"] > 0 and NUMBER.holds(config["alpha"])
    is_valid = is_valid and config["composition_mode"] in ("add", "scale")
    if not is_valid or not isinstance(config["attn_matrices"], list):
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: r, alpha, composition_mode and attn_matrices are "
            f"{[config[x] for x in ('r', 'alpha', 'composition_mode', 'attn_matrices')]!r}, "
            "expected a positive integer, a number, 'add' or 'scale', and a list. Was it edited?"
        )
    return config


def _sites(tensors: Mapping[str, np.ndarray], file: Path) -> dict[str, SiteTensors]:
    """The tensors by module."""
    sites: dict[str, SiteTensors] = {}
    names: set[str] = set()
    unknown: list[str] = []
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None or tensor.dtype not in FACTOR_DTYPES:
            unknown.append(f"{key}: {tensor.dtype} {tensor.shape}")
        else:
            names.add(match["name"])
            sites.setdefault(match["site"], {})[match["factor"]] = tensor
    if unknown:
        raise CheckpointError(
            f"{file}: keys that a LoRA or IA3 of AdapterHub does not have:{listing(unknown)}\n"
            "Expected floats under <module>.loras.<name>.lora_A or lora_B."
        )
    if len(names) > 1:
        raise CheckpointError(
            f"{file} contains several adapters: {', '.join(sorted(names))}. Save each in its own "
            "folder with model.save_adapter."
        )
    return sites


def _split_leaf(path: str) -> tuple[str, str] | None:
    """The module and leaf of a key; None if it is not a module's own weight or bias."""
    module, _, leaf = path.rpartition(".")
    return (module, leaf) if module and leaf in ("weight", "bias") else None


def _thirds(site: str, config: Mapping[str, Any]) -> list[int]:
    """The thirds of a fused projection that have factors; empty for any other layer."""
    is_fused = site.rpartition(".")[2] in _FUSED
    return [i for i, x in enumerate("qkv") if is_fused and x in config["attn_matrices"]]


def _lora(
    site: str, factors: SiteTensors, config: Mapping[str, Any], is_transposed: bool
) -> Update:
    """W + alpha / r · BA."""
    thirds, rank = _thirds(site, config), config["r"]
    count = len(thirds) or 1
    a, b = (_matrix(factors, name) for name in ("lora_A", "lora_B"))
    if a.shape[0] != count * rank or b.shape[1] != rank or b.shape[0] % count:
        raise ShapeError(
            f"{describe_shapes(factors)}, expected lora_A ({count * rank}, in), lora_B (out, "
            f"{rank})"
        )
    if thirds:
        rows = b.shape[0] // count
        stacked: Any = np.zeros((3 * rows, count * rank), b.dtype)
        for j, i in enumerate(thirds):
            block = b[j * rows : (j + 1) * rows]
            stacked[i * rows : (i + 1) * rows, j * rank : (j + 1) * rank] = block
        b = stacked
    return LoRA(a, b, config["alpha"] / rank, transposed=is_transposed)


def _ia3(site: str, factors: SiteTensors, config: Mapping[str, Any], is_transposed: bool) -> Update:
    """diag(alpha · l) W; the bias is scaled likewise."""
    thirds = _thirds(site, config)
    count = len(thirds) or 1
    b = _matrix(factors, "lora_B")
    if b.shape[1] != 1 or b.shape[0] % count or len(factors) > 1 or config["r"] != 1:
        raise ShapeError(
            f"{describe_shapes(factors)} and r = {config['r']}, expected only lora_B (out, 1)"
        )
    vector = b[:, 0]
    if thirds:
        stacked: Any = np.ones((3, len(vector) // count), vector.dtype)
        stacked[thirds] = vector.reshape(count, -1)
        vector = stacked.reshape(-1)
    vector = vector if config["alpha"] == 1 else vector * np.asarray(config["alpha"], vector.dtype)
    return IA3(vector, transposed=is_transposed)


def _matrix(factors: SiteTensors, name: str) -> Any:
    """A factor with two axes."""
    if name not in factors or factors[name].ndim != 2:
        raise ShapeError(f"{describe_shapes(factors)}, expected {name} with two axes")
    return factors[name]
