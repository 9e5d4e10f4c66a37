"""Single files with dots in their names: diffusers', ComfyUI's, ai-toolkit's.

A key is ``<part>.<module>.<parameter>``: ``unet.….lora.down.weight``,
``transformer.….lora_A.weight``, ``diffusion_model.….lokr_w1``.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.base import base_model
from jaxmix.converters.adapters.lycoris.dotted import (
    Place,
    dotted_sites,
    modern,
    place_of,
    sorted_keys,
)
from jaxmix.converters.adapters.lycoris.files import (
    file_keys,
    file_metadata,
    file_tensors,
    json_of,
    stands_alone,
)
from jaxmix.converters.adapters.lycoris.keys import split_key
from jaxmix.converters.adapters.lycoris.updates import build_all
from jaxmix.converters.adapters.lycoris.writing import module_tensors, save_tensors, with_plain_bias
from jaxmix.converters.adapters.peft.level import leveled
from jaxmix.converters.adapters.peft.patterns import number
from jaxmix.converters.adapters.peft.shapes import Factors
from jaxmix.converters.adapters.peft.values import NUMBER, matches
from jaxmix.errors import CheckpointError, UnsupportedError, listing
from jaxmix.families import LoRA

__all__ = ["METADATA", "export_diffusers", "is_diffusers", "read_diffusers"]

METADATA = "lora_adapter_metadata"

# Fields of the metadata, a LoraConfig of PEFT's, that change what the factors mean.
_UNDONE = {
    "alora_invocation_tokens": "aLoRA, which is gated by the token's position",
    "use_qalora": "QALoRA pools the inputs, which no weight does",
    "target_parameters": "experts' factors, whose axes the file does not tell",
}


def is_diffusers(path: Path) -> bool:
    """Whether a file is a safetensors by itself, with a factor of some adapter in it."""
    if not stands_alone(path):
        return False
    found = (split_key(modern(key)) for key in file_keys(path))
    # A `weight` by itself is any checkpoint's.
    return any(one is not None and one[1] != "weight" for one in found)


def read_diffusers(
    path: Path, name: str, strength: Any = 1.0, *, base: Any = None, part: str | None = None
) -> Adapter:
    """Reads a file that diffusers, ComfyUI's trainers or ai-toolkit wrote.

    Args:
        path: the file.
        name: what to call the adapter.
        strength: the strength with which it enters a mix, a real scalar.
        base: what the adapter is for, to check its names; not needed.
        part: the model to read, where a file is for several: what stands before the names, such as
            ``transformer``. Other keys are left. None reads all.

    Returns:
        The adapter. Without a base its sites are the module names in the file's one model; of a
        file for several models they begin with the part.

    Raises:
        CheckpointError: if keys mean nothing, or the metadata contradict them.
        UnsupportedError: if it is of a kind that jaxmix does not do.
        ShapeError: if tensors disagree.
        AdapterError: if a number is not finite.

    Example:
        >>> read_diffusers(Path("no/such/file"), "style")
        Traceback (most recent call last):
        ...
        jaxmix.errors.CheckpointError: no/such/file is no file, expected a .safetensors. ...

    Source: huggingface/diffusers, ``loaders/lora_base.py``, ``utils/state_dict_utils.py``.
    """
    tensors, where = file_tensors(path), str(path)
    places = sorted_keys(tensors, where, part)
    text = file_metadata(path).get(METADATA)
    if text is not None:
        config = json_of(text)
        if not isinstance(config, dict):
            raise CheckpointError(f"{where}: {METADATA} is {text[:60]!r}, expected an object")
        _add_scales(places, config, where)
    modules = None if base is None else frozenset(base_model(base).modules)
    sites = dotted_sites(tuple(places), modules, where)
    updates = build_all({sites[place]: factors for place, factors in places.items()}, where)
    return Adapter(updates, name=name) * strength


def _add_scales(places: dict[Place, Factors], config: dict[str, Any], where: str) -> None:
    """Puts the scale that the metadata say beside the factors of each place."""
    problems: list[str] = []
    undone: list[str] = []
    for place, factors in places.items():
        if "lora_down.weight" not in factors:
            continue
        prefix = f"{place.part}." if place.part else ""
        own = {key.removeprefix(prefix): x for key, x in config.items() if key.startswith(prefix)}
        full = f"{prefix}{place.module}"
        if "lora_alpha" not in own or "r" not in own:
            problems.append(f"{full}: no {prefix}r and {prefix}lora_alpha in them")
            continue
        undone += [f"{prefix}{field}: {why}" for field, why in _UNDONE.items() if own.get(field)]
        if str(own.get("init_lora_weights", "")).startswith(("pissa", "olora", "corda", "lora_ga")):
            undone.append(
                f"{prefix}init_lora_weights = {own['init_lora_weights']!r} moves the base"
            )
        if said := _contradiction(own, place.module, factors):
            problems.append(f"{full}: {said}")
            continue
        rank = factors["lora_down.weight"].shape[0]
        alpha = _by_module(own, "alpha_pattern", "lora_alpha", place.module)
        root = own.get("use_rslora") is True
        factors["scale"] = np.asarray(alpha / (rank**0.5 if root else rank))
    if undone:
        kinds = listing(dict.fromkeys(undone))
        raise UnsupportedError(f"{where}: {METADATA} of a kind that jaxmix does not do:{kinds}")
    if problems:
        raise CheckpointError(
            f"{where}: {METADATA} that contradict the keys:{listing(problems)}\nSave the file "
            "again with diffusers, or take the metadata out: then alpha is the rank, as there."
        )


def _contradiction(own: dict[str, Any], module: str, factors: Factors) -> str | None:
    """What the metadata of a module say that its tensors do not."""
    if "alpha" in factors:
        return "alpha is in the keys and in the metadata, which diffusers refuses too"
    rank, alpha = (
        _by_module(own, *fields, module)
        for fields in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
    )
    found = factors["lora_down.weight"].shape[:1]
    if found != (rank,) or not found[0]:
        return f"lora_A has the rank {found[0] if found else None}, the metadata say {rank!r}"
    if not NUMBER.holds(alpha):
        return f"lora_alpha is {alpha!r}, expected a number"
    for field, parameter in (("use_dora", "lora_magnitude_vector"), ("lora_bias", "lora_up.bias")):
        if bool(own.get(field)) != (parameter in factors):
            return f"{field} is {own.get(field)!r}, and {parameter} is " + (
                "there" if parameter in factors else "not there"
            )
    return None


def _by_module(own: dict[str, Any], patterns: str, default: str, module: str) -> Any:
    """The value for a module: the first pattern that fits, else the default."""
    found = own.get(patterns)
    for pattern, value in found.items() if isinstance(found, dict) else ():
        try:
            if matches(pattern, module):
                return value
        except re.error:  # no regular expression, so none that fits
            continue
    return own[default]


def export_diffusers(
    adapter: Adapter,
    path: str | os.PathLike[str],
    *,
    prefix: str | None = None,
    patterns: bool = False,
    force: bool = False,
) -> Path:
    """Writes an adapter with dots in its names: ``<prefix>.<site>.lora_A.weight``.

    Where all updates are LoRA or DoRA they are written with one rank, filled with zeros, and a
    scale of 1, the rest of it in B: what ComfyUI and older versions of diffusers read, who know no
    metadata. Metadata say the same, as diffusers has them since 0.34. Other updates, which ComfyUI
    reads, have ``alpha`` beside their factors.

    Args:
        adapter: of LoRA, LoHa, LoKr, these with a norm, or plain differences. Its strength goes
            into alpha.
        path: the file, ``….safetensors``.
        prefix: what to put before each name: ``unet``, ``transformer``, ``diffusion_model``. None
            for nothing, where the sites begin with it already.
        patterns: whether to keep every site's own rank and alpha of a LoRA in the metadata: bit for
            bit, but only diffusers from 0.34 on reads it.
        force: whether to replace a file that stands there.

    Returns:
        The path.

    Raises:
        UnsupportedError: if an update has no form there; `jaxmix.to_lora` makes a LoRA of it.
        AdapterError: if it is no adapter.
        CheckpointError: if the place is taken, or can't be written.

    Example:
        >>> import tempfile
        >>> from jaxmix.families import LoRA
        >>> ones = LoRA(np.ones((1, 3)), np.ones((2, 1)), scale=4.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     there = Path(folder, "x.safetensors")
        ...     _ = export_diffusers(Adapter({"to_q": ones}), there, prefix="unet")
        ...     again = read_diffusers(there, "again").updates["to_q"]
        >>> again.scale, again.b.tolist()
        (1.0, [[4.0], [4.0]])

    Source: huggingface/diffusers, ``loaders/lora_base.py`` (``write_lora_layers``).
    """
    tensors: dict[str, Any] = {}
    configs: dict[str, dict[str, Any]] = {}
    is_lora = isinstance(adapter, Adapter) and all(
        isinstance(update, LoRA) for update in adapter.updates.values()
    )
    modules = module_tensors(_leveled(adapter) if is_lora and not patterns else adapter)
    for site, factors in modules.items():
        full = f"{prefix}.{site}" if prefix else site
        if is_lora:
            place = place_of(full)
            _add_to_config(configs.setdefault(place.part, {}), place.module, factors)
            factors = {_PEFT_NAMES[key]: x for key, x in factors.items() if key != "alpha"}
            if (magnitude := factors.get("lora_magnitude_vector")) is not None:
                points = (1,) * (magnitude.ndim - 2)
                shape = (1, -1, *points) if points else (-1,)
                factors["lora_magnitude_vector"] = magnitude.reshape(shape)
        else:
            factors = with_plain_bias(factors)
        tensors |= {f"{full}.{key}": x for key, x in factors.items()}
    said = {
        f"{part}.{key}" if part else key: value
        for part, config in configs.items()
        for key, value in config.items()
    }
    text = json.dumps(said, indent=2, sort_keys=True)
    return save_tensors(path, tensors, {METADATA: text} if said else {}, force=force)


def _leveled(adapter: Adapter) -> Adapter:
    """LoRAs of one rank, of scale 1, with the strength in them."""
    strength = number(adapter.strength)
    loras: dict[str, Any] = dict(adapter.updates)
    if strength != 1 and any(update.magnitude is not None for update in loras.values()):
        return adapter  # refused by name: there is no strength of a DoRA
    strong = {s: replace(up, scale=strength * number(up.scale)) for s, up in loras.items()}
    return replace(adapter, updates=leveled(strong, 1.0), strength=1.0)


_PEFT_NAMES = {
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "lora_up.bias": "lora_B.bias",
    "dora_scale": "lora_magnitude_vector",
}


def _add_to_config(config: dict[str, Any], module: str, factors: Factors) -> None:
    """A module's rank and alpha, in the LoraConfig of its model."""
    down = factors["lora_down.weight"]
    rank, alpha = int(down.shape[0]), float(factors["alpha"])
    flags = {"use_dora": "dora_scale" in factors, "lora_bias": "lora_up.bias" in factors}
    if not config:
        patterns: dict[str, Any] = {"rank_pattern": {}, "alpha_pattern": {}, "target_modules": []}
        config |= {"r": rank, "lora_alpha": alpha, **patterns, **flags, "use_rslora": False}
    if any(config[key] != value for key, value in flags.items()):
        raise UnsupportedError(
            f"{module}: with and without DoRA's norm, or a bias, in one model, for which diffusers "
            "has one flag. Export the parts as files of their own."
        )
    # PEFT looks for the end of a name, which this pins to the whole.
    pattern = f"^{re.escape(module)}"
    if rank != config["r"]:
        config["rank_pattern"][pattern] = rank
    if alpha != config["lora_alpha"]:
        config["alpha_pattern"][pattern] = alpha
    config["target_modules"].append(module)
