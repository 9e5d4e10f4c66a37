"""Single files of diffusers, ComfyUI and ai-toolkit, whose keys have dots.

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
from jaxmix.converters.adapters.common.base_model import base_model
from jaxmix.converters.adapters.common.shapes import SiteTensors
from jaxmix.converters.adapters.common.tensor_files import (
    file_keys,
    file_metadata,
    file_tensors,
    is_adapter_by_itself,
    parse_json_or_none,
)
from jaxmix.converters.adapters.common.values import NUMBER, matches_site
from jaxmix.converters.adapters.lycoris.bundled import without_embeddings
from jaxmix.converters.adapters.lycoris.dotted import (
    PartModule,
    match_sites,
    modernize_key,
    tensors_by_module,
)
from jaxmix.converters.adapters.lycoris.keys import split_key
from jaxmix.converters.adapters.lycoris.lora_config import (
    PEFT_NAMES,
    add_to_config,
    as_lora,
    with_unit_scale,
)
from jaxmix.converters.adapters.lycoris.program import DIFFUSERS
from jaxmix.converters.adapters.lycoris.program_names import named_for
from jaxmix.converters.adapters.lycoris.updates import build_all
from jaxmix.converters.adapters.lycoris.writing import module_tensors, save_tensors
from jaxmix.errors import (
    AdapterError,
    CheckpointError,
    UnsupportedError,
    listing,
    remedy,
    to_lora_call,
)
from jaxmix.families import LoRA
from jaxmix.placement.naming import Names

__all__ = ["METADATA", "export_diffusers", "is_diffusers", "read_diffusers"]

METADATA = "lora_adapter_metadata"

# Fields of the metadata, a LoraConfig of PEFT, that change what the factors mean.
_UNSUPPORTED = {
    "alora_invocation_tokens": "aLoRA, which is gated by the token's position",
    "use_qalora": "QALoRA, which pools the inputs",
    "target_parameters": "factors of experts, whose axes the file does not state",
}


def is_diffusers(path: Path) -> bool:
    """Returns whether a file is a complete adapter with known keys."""
    if not is_adapter_by_itself(path):
        return False
    splits = (split_key(modernize_key(key)) for key in file_keys(path))
    # Any checkpoint has keys that end in `weight`.
    return any(split is not None and split[1] not in ("weight", "saved_weight") for split in splits)


def read_diffusers(
    path: Path, name: str, strength: Any = 1.0, *, base: Any = None, part: str | None = None
) -> Adapter:
    """Reads a file of diffusers, ComfyUI's trainers or ai-toolkit.

    Args:
        path: The file.
        name: The adapter's name.
        strength: The adapter's strength in a mix, a real scalar.
        base: The model that it was trained on, to check the names; optional.
        part: The part to read from a file that covers several models, the prefix of the names, such
            as ``transformer``; other keys are ignored. None reads all.

    Returns:
        The adapter. Without a base, its sites are the module names in the file, prefixed by the
        part if the file covers several models.

    Raises:
        CheckpointError: If keys are unknown, or contradict the metadata.
        UnsupportedError: If it is of an unsupported kind.
        ShapeError: If tensors disagree.
        AdapterError: If a number is not finite.

    Example:
        >>> read_diffusers(Path("no/such/file"), "style")
        Traceback (most recent call last):
        ...
        jaxmix.errors.CheckpointError: no/such/file is not a file, expected a .safetensors. ...

    Source: huggingface/diffusers, ``loaders/lora_base.py``, ``utils/state_dict_utils.py``.
    """
    where = str(path)
    tensors = without_embeddings(file_tensors(path), where)
    places = tensors_by_module(tensors, where, part)
    text = file_metadata(path).get(METADATA)
    if text is not None:
        config = parse_json_or_none(text)
        if not isinstance(config, dict):
            raise CheckpointError(f"{where}: {METADATA} is {text[:60]!r}, expected an object")
        _add_scales(places, config, where)
    modules = None if base is None else frozenset(base_model(base).modules)
    sites = match_sites(places, modules, where)
    updates = build_all({site: places[place] for place, site in sites.items()}, where)
    return Adapter(updates, name=name) * strength


def _add_scales(places: dict[PartModule, SiteTensors], config: dict[str, Any], where: str) -> None:
    """Adds the scale in the metadata to the factors of each module."""
    problems: list[str] = []
    unsupported: list[str] = []
    for place, factors in places.items():
        if "lora_down.weight" not in factors:
            continue
        prefix = f"{place.part}." if place.part else ""
        settings = {
            key.removeprefix(prefix): x for key, x in config.items() if key.startswith(prefix)
        }
        full = f"{prefix}{place.module}"
        if "lora_alpha" not in settings or "r" not in settings:
            problems.append(f"{full}: {prefix}r or {prefix}lora_alpha is missing")
            continue
        unsupported += [
            f"{prefix}{field}: {reason}"
            for field, reason in _UNSUPPORTED.items()
            if settings.get(field)
        ]
        if str(settings.get("init_lora_weights", "")).startswith(
            ("pissa", "olora", "corda", "lora_ga")
        ):
            init = settings["init_lora_weights"]
            unsupported.append(f"{prefix}init_lora_weights = {init!r}, which changes the base")
        if problem := _contradiction(settings, place.module, factors):
            problems.append(f"{full}: {problem}")
            continue
        rank = factors["lora_down.weight"].shape[0]
        alpha = _by_module(settings, "alpha_pattern", "lora_alpha", place.module)
        root = settings.get("use_rslora") is True
        factors["scale"] = np.asarray(alpha / (rank**0.5 if root else rank))
    if unsupported:
        lines = listing(dict.fromkeys(unsupported))
        raise UnsupportedError(f"{where}: {METADATA} of an unsupported kind:{lines}")
    if problems:
        raise CheckpointError(
            f"{where}: {METADATA} contradicts the keys:{listing(problems)}\nSave the file again "
            "with diffusers, or remove the metadata: alpha is then the rank, as in diffusers."
        )


def _contradiction(settings: dict[str, Any], module: str, factors: SiteTensors) -> str | None:
    """Describes how the metadata of a module contradicts its tensors."""
    if "alpha" in factors:
        return "alpha is both in the keys and in the metadata, which diffusers refuses too"
    rank, alpha = (
        _by_module(settings, *fields, module)
        for fields in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
    )
    shape = factors["lora_down.weight"].shape[:1]
    if shape != (rank,) or not shape[0]:
        return f"lora_A has rank {shape[0] if shape else None}, the metadata {rank!r}"
    if not NUMBER.holds(alpha):
        return f"lora_alpha is {alpha!r}, expected a number"
    for field, parameter in (("use_dora", "lora_magnitude_vector"), ("lora_bias", "lora_up.bias")):
        if bool(settings.get(field)) != (parameter in factors):
            return f"{field} is {settings.get(field)!r}, but {parameter} is " + (
                "present" if parameter in factors else "missing"
            )
    return None


def _by_module(settings: dict[str, Any], patterns: str, default: str, module: str) -> Any:
    """Returns a module's value: that of the first matching pattern, otherwise the default."""
    values = settings.get(patterns)
    for pattern, value in values.items() if isinstance(values, dict) else ():
        try:
            if matches_site(pattern, module):
                return value
        except re.error:  # not a regular expression
            continue
    return settings[default]


def export_diffusers(
    adapter: Adapter,
    path: str | os.PathLike[str],
    *,
    prefix: str | None = None,
    names: Names = None,
    base: Any = None,
    patterns: bool = False,
    force: bool = False,
) -> Path:
    """Writes an adapter for diffusers' ``load_lora_weights``: ``<component>.<module>.lora_A…``.

    Modules get the names of diffusers; an update of a fused weight is cut. All LoRAs, or all DoRAs,
    are written with one rank, padded with zeros, and a scale of 1; their own scale is multiplied
    into B, since older versions read no metadata. The metadata, which diffusers writes since 0.34,
    states the same. `export_comfyui` and `export_kohya` write other kinds.

    Args:
        adapter: An adapter of LoRA or DoRA. Its strength is multiplied into B.
        path: The file; diffusers looks for ``pytorch_lora_weights.safetensors`` in a folder.
        prefix: The component of sites that name none: ``unet``, ``transformer``; by default, the
            model's.
        names: The model: ``"sdxl"``, ``"flux"``, …, or its config in diffusers; by default, the
            model that has the adapter's modules. ``""`` keeps their names.
        base: The model that the adapter was trained on, as in `jaxmix.load`, by which the model is
            found.
        patterns: Whether to keep the rank and alpha of each site of a LoRA, in the metadata: bit
            for bit, but only diffusers 0.34 and later read it.
        force: Whether to replace an existing file.

    Returns:
        The path.

    Raises:
        UnsupportedError: If an update is of another kind, can't be cut, or belongs to a text
            encoder whose adapters diffusers ignores; `jaxmix.to_lora` makes a LoRA of any mix.
        LayoutError: If several models fit, or there is no model ``names``.
        AdapterError: If it is not an adapter, or the prefix is another program's.
        CheckpointError: If the path is taken, or can't be written.

    Example:
        >>> import tempfile
        >>> from jaxmix.families import LoRA
        >>> ones = LoRA(np.ones((1, 3)), np.ones((2, 1)), scale=4.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "x.safetensors")
        ...     _ = export_diffusers(Adapter({"to_q": ones}), file, prefix="unet")
        ...     update = read_diffusers(file, "style").updates["to_q"]
        >>> update.scale, update.b.tolist()
        (1.0, [[4.0], [4.0]])

    Source: huggingface/diffusers, ``loaders/lora_base.py`` (``write_lora_layers``).
    """
    if prefix in _NOT_DIFFUSERS:
        raise AdapterError(
            f"the prefix {prefix!r} is that of ComfyUI, expected unet or transformer. Write the "
            "file for ComfyUI: "
            f"{remedy('jaxmix.converters.comfyui.export_comfyui', '--to comfyui')}."
        )
    named = named_for(DIFFUSERS, adapter, prefix=prefix, names=names, base=base)
    full = {key: ".".join(filter(None, key)) for key in named.updates}
    sites = {full[key]: site for key, site in named.sites.items()}
    updates = {full[key]: as_lora(update) for key, update in named.updates.items()}
    if others := [f"{sites[n]}: {u.family}" for n, u in updates.items() if not isinstance(u, LoRA)]:
        raise UnsupportedError(
            f"{adapter.name}: files for diffusers hold LoRA and DoRA only, and this adapter has:"
            f"{listing(others)}\nWrite it for ComfyUI or kohya's scripts, which read more kinds. "
            f"Or convert it to a LoRA: {to_lora_call()}."
        )
    adapter = replace(adapter, updates=updates)
    modules = module_tensors(adapter if patterns else with_unit_scale(adapter), sites)
    tensors: dict[str, Any] = {}
    configs: dict[str, dict[str, Any]] = {}
    for (part, module), name in full.items():
        add_to_config(configs.setdefault(part, {}), module, modules[name])
        for key, tensor in modules[name].items():
            if key == "dora_scale":
                points = (1,) * (tensor.ndim - 2)
                tensor = tensor.reshape((1, -1, *points) if points else (-1,))
            if key != "alpha":
                tensors[f"{name}.{PEFT_NAMES[key]}"] = tensor
    # diffusers drops `text_model.` from keys for newer versions of CLIP, but not from the metadata.
    has_text = any(part.startswith("text_encoder") for part in configs)
    metadata = {
        f"{part}.{key}" if part else key: value
        for part, config in configs.items()
        for key, value in config.items()
        if patterns or not has_text
    }
    text = json.dumps(metadata, indent=2, sort_keys=True)
    return save_tensors(path, tensors, {METADATA: text} if metadata else {}, force=force)


# ComfyUI's prefixes of the denoiser.
_NOT_DIFFUSERS = ("diffusion_model", "model.diffusion_model")
