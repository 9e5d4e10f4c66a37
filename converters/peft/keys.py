"""PEFT's tensors: the file read, and every key given to a site.

A key is ``base_model.model.<module path>.<parameter>``, the adapter's name already stripped by PEFT.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

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
# VeLoRA keeps the direction along which it compresses activations for its backward pass.
_WITHOUT_EFFECT = (".lora_velora_embed",)


@dataclass
class Sites:
    """A file's tensors by site.

    Args:
        factors: ``{site: {parameter: array}}``, the family's own.
        saved: ``{site: {"weight" or "bias": array}}``, leaves of the base that were saved whole.
        base: ``{site: {"weight": array}}``, copies of the base's weight under a factor.
    """

    factors: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    saved: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    base: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


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


class _Problem(NamedTuple):
    """What is wrong with a key, and whether it is a thing that jaxmix merely does not do."""

    text: str
    unsupported: bool = False


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
    origins: dict[tuple[str, str, str], str] = {}
    problems: list[tuple[str, _Problem]] = []
    for key, array in tensors.items():
        if key.endswith(_WITHOUT_EFFECT):
            continue
        place = _place(key, family, values, array)
        if isinstance(place, _Problem):
            problems.append((key, place))
        elif other := origins.get(place):
            problems.append((key, _Problem(f"the same as {other}; keep one of the two")))
        else:
            origins[place] = key
            group, site, name = place
            getattr(sites, group).setdefault(site, {})[name] = array
    if problems:
        kind = UnsupportedError if all(p.unsupported for _, p in problems) else CheckpointError
        raise kind(
            f"{path}: keys that jaxmix can't use in a {family} adapter:"
            f"{listing(f'{key}: {problem.text}' for key, problem in problems)}\n"
            f"Expected <module>.<parameter> with one of {', '.join(PARAMETERS[family])}, or leaves "
            "of modules_to_save, as save_pretrained writes them."
        )
    return sites


def _place(
    key: str, family: str, values: Mapping[str, Any], array: np.ndarray
) -> tuple[str, str, str] | _Problem:
    """Group, site and parameter of a key; or what is wrong with it."""
    path = key.removeprefix(_PREFIX)
    if path.endswith("lora_magnitude_vector.weight"):
        path = path.removesuffix(".weight")
    for name in PARAMETERS[family]:
        if path.endswith("." + name):
            if array.dtype not in _FLOATS and name != "shira_indices":
                return _Problem(f"{array.dtype}, expected floats")
            return _at_site(path.removesuffix("." + name), "factors", name)
    if path.endswith(".trainable_tokens_delta"):
        return _Problem("trained tokens come in a later version; merge them with PEFT", True)
    if path.endswith((".oft_r", ".oft_s")):
        return _Problem("the OFT of peft 0.15 or older, another formula; merge it with that", True)
    if stuck := _stuck_name(path, family):
        return _Problem(f"the adapter's name {stuck!r} is still in it; take it out of the key")
    return _leaf(path, values, array)


def _leaf(
    path: str, values: Mapping[str, Any], array: np.ndarray
) -> tuple[str, str, str] | _Problem:
    """Where a leaf belongs that was saved whole."""
    is_saved = any(f".{module}." in f".{path}" for module in values.get("modules_to_save") or ())
    if not is_saved and any(part.startswith(_MARKS) for part in path.split(".")[-2:]):
        return _Problem("another family's parameter, or one that this version does not know")
    if array.dtype not in _FLOATS:
        return _Problem(f"a buffer of {array.dtype}, which jaxmix can't mix; leave it out", True)
    site, _, leaf = path.rpartition(".")
    if site.endswith(".base_layer") and leaf == "weight":
        return _at_site(site, "base", leaf)
    if leaf in ("weight", "bias") and site:
        return _at_site(site, "saved", leaf)
    return ("saved", path, "weight") if is_saved else _Problem("no parameter of this family")


def _at_site(module: str, group: str, name: str) -> tuple[str, str, str] | _Problem:
    """The site of a module path: PEFT's wrappers add ``base_layer`` at its end, and nowhere else."""
    parts = module.split(".")
    while parts[-1] == "base_layer" and len(parts) > 1:
        parts.pop()
    if "base_layer" in parts:
        text = "a part of a wrapped module (torch's MultiheadAttention, or several target_parameters)"
        return _Problem(f"{text}, which jaxmix does not read; leave that module out", True)
    return group, ".".join(parts), name


def _stuck_name(path: str, family: str) -> str | None:
    """The adapter's name in a key from which PEFT should have stripped it."""
    for name in PARAMETERS[family]:
        stem, _, rest = name.partition(".")
        tail = rf"\.{rest}" if rest else ""
        if found := re.search(rf"\.{stem}\.([^.]+){tail}$", path):
            return found[1]
    return None


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
