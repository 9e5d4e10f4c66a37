"""PEFT's tensors: the file read, and every key given to a site.

A key is ``base_model.model.<module path>.<parameter>``, the adapter's name already stripped by PEFT.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxmix.errors import AdapterError, CheckpointError, UnsupportedError, listing

__all__ = ["PARAMETERS", "Sites", "read_tensors", "sort_keys"]

# What each family stores at a site; the names by which updates are built.
PARAMETERS: dict[str, tuple[str, ...]] = {
    "LORA": (
        "lora_A.weight",
        "lora_B.weight",
        "lora_B.bias",
        "lora_embedding_A",
        "lora_embedding_B",
        "lora_magnitude_vector",
    ),
    "ADALORA": ("lora_A", "lora_B", "lora_E"),
    "LOHA": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "LOKR": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    "OFT": ("oft_R.weight", "oft_embedding_R.weight"),
    "SHIRA": ("shira_weight", "shira_indices"),
}
_MARKS = ("lora_", "hada_", "lokr_", "oft_", "shira_")
_FLOATS = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
_PREFIX = "base_model.model."


@dataclass
class Sites:
    """A file's tensors by site.

    Args:
        factors: ``{site: {parameter: array}}``, the family's own.
        saved: ``{site: {"weight" or "bias": array}}``, leaves of the base that were saved whole.
    """

    factors: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    saved: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads a safetensors file, memory-mapped, without torch.

    Args:
        path: the file.

    Returns:
        ``{key: array}`` in the file's dtypes; bfloat16 is ml_dtypes'.

    Raises:
        CheckpointError: if it is missing, damaged, empty, or of a dtype that no factor has.
        AdapterError: if a number in it is not finite.
    """
    tensors: dict[str, np.ndarray] = {}
    wrong: list[str] = []
    try:
        with safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118 (no mapping)
                dtype = file.get_slice(key).get_dtype()
                if dtype in ("F64", "F32", "F16", "BF16", "I32", "I64"):
                    tensors[key] = file.get_tensor(key)
                else:
                    wrong.append(f"{key}: {dtype}")
    except FileNotFoundError as error:
        raise CheckpointError(_missing(path)) from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is no whole safetensors file: {error}. Download or save it again."
        ) from error
    if wrong:
        raise CheckpointError(
            f"{path}: tensors of a dtype that factors can't have, expected float64, float32, float16 "
            f"or bfloat16:{listing(wrong)}\nSave the adapter unquantized."
        )
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors. Was the adapter saved by one rank only?")
    bad = [key for key, array in tensors.items() if not _is_finite(array)]
    if bad:
        raise AdapterError(
            f"{path}: numbers that are NaN or infinite in:{listing(bad)}\n"
            "Expected finite factors. Did the training diverge? Take an earlier checkpoint."
        )
    return tensors


def sort_keys(
    tensors: Mapping[str, np.ndarray], family: str, values: Mapping[str, Any], path: Path
) -> Sites:
    """Gives every key to a site.

    Args:
        tensors: the file's.
        family: PEFT's name of the family.
        values: the config's fields.
        path: the file, for messages.

    Returns:
        The tensors by site.

    Raises:
        CheckpointError: if keys belong to nothing or collide; all are listed.
        UnsupportedError: if keys belong to something that jaxmix does not do; all are listed.
    """
    sites = Sites()
    origins: dict[tuple[str, str], str] = {}
    lost: list[str] = []
    for key, array in tensors.items():
        place = _place(key, family, values, array)
        if isinstance(place, str):
            lost.append(f"{key}: {place}" if place else key)
            continue
        group, site, name = place
        if other := origins.get((site, name)):
            lost.append(f"{key}: the same as {other}; keep one of the two")
            continue
        origins[site, name] = key
        getattr(sites, group).setdefault(site, {})[name] = array
    if lost:
        raise CheckpointError(
            f"{path}: keys that have no meaning in a {family} adapter:{listing(lost)}\n"
            f"Expected <module>.<parameter> with one of {', '.join(PARAMETERS[family])}, or leaves "
            "of modules_to_save. Was it saved with save_pretrained?"
        )
    if not sites.factors and not sites.saved:
        raise CheckpointError(f"{path} holds no weights of an adapter.")
    return sites


def _place(
    key: str, family: str, values: Mapping[str, Any], array: np.ndarray
) -> tuple[str, str, str] | str:
    """Group, site and parameter of a key; or what is wrong with it."""
    path = key.removeprefix(_PREFIX)
    if path.endswith("lora_magnitude_vector.weight"):
        path = path.removesuffix(".weight")
    for name in PARAMETERS[family]:
        if path.endswith("." + name):
            return _at_site(path.removesuffix("." + name), "factors", name)
    if path.endswith(".trainable_tokens_delta"):
        return "trained tokens come in a later version of jaxmix; merge them with PEFT until then"
    if stuck := _stuck_name(path, family):
        return f"the adapter's name {stuck!r} is still in it; take it out of the key"
    if any(part.startswith(_MARKS) for part in path.split(".")):
        return ""
    if array.dtype not in _FLOATS:
        return f"a buffer of {array.dtype}, which no adapter changes; leave it out"
    site, _, leaf = path.rpartition(".")
    if leaf in ("weight", "bias") and site:
        return _at_site(site, "saved", leaf)
    if any(_is_under(path, module) for module in values.get("modules_to_save") or ()):
        return "saved", path, "weight"
    return ""


def _at_site(module: str, group: str, name: str) -> tuple[str, str, str] | str:
    """The site of a module path: PEFT's wrappers add ``base_layer`` at its end, and nowhere else."""
    parts = module.split(".")
    while parts[-1] == "base_layer" and len(parts) > 1:
        parts.pop()
    if "base_layer" in parts:
        return "a part inside a wrapped module, which jaxmix does not know"
    return group, ".".join(parts), name


def _stuck_name(path: str, family: str) -> str | None:
    """The adapter's name in a key from which PEFT should have stripped it."""
    for name in PARAMETERS[family]:
        stem, _, rest = name.partition(".")
        tail = rf"\.{rest}" if rest else ""
        if found := re.search(rf"\.{stem}\.([^.]+){tail}$", path):
            return found[1]
    return None


def _is_under(path: str, module: str) -> bool:
    """Whether a leaf lies in a module of modules_to_save, by PEFT's matching of names."""
    return f".{module}." in f".{path}"


def _is_finite(array: np.ndarray) -> bool:
    return array.dtype.kind == "i" or bool(np.isfinite(array).all())


def _missing(path: Path) -> str:
    """What to say of weights that are not there."""
    folder = path.parent
    others = _pickles(folder.iterdir() if folder.is_dir() else ())
    if not others:
        return f"{folder} has no {path.name}. Give the folder that save_pretrained wrote."
    return (
        f"{folder} has {', '.join(others)} but no {path.name}. jaxmix reads no pickles. With torch:\n"
        f"  tensors = torch.load({others[0]!r}, map_location='cpu', weights_only=True)\n"
        f"  safetensors.torch.save_file(tensors, {path.name!r})"
    )


def _pickles(entries: Iterable[Path]) -> list[str]:
    return sorted(entry.name for entry in entries if entry.suffix in (".bin", ".pt", ".pth"))
