"""Single files of kohya's scripts and LyCORIS: `lora_unet_…`, `lora_te1_…`, `lycoris_…`.

A key is ``<prefix>_<module>.<parameter>``, with underscores for the dots in the module's name.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.common.base_model import base_model
from jaxmix.converters.adapters.common.shapes import SiteTensors
from jaxmix.converters.adapters.common.tensor_files import file_keys, file_tensors
from jaxmix.converters.adapters.lycoris.bundled import without_embeddings
from jaxmix.converters.adapters.lycoris.dotted import split_part
from jaxmix.converters.adapters.lycoris.keys import split_key
from jaxmix.converters.adapters.lycoris.names import match_modules
from jaxmix.converters.adapters.lycoris.parts import PREFIXES, is_selected, role_of
from jaxmix.converters.adapters.lycoris.program import KOHYA
from jaxmix.converters.adapters.lycoris.program_names import named_for
from jaxmix.converters.adapters.lycoris.updates import build_all
from jaxmix.converters.adapters.lycoris.writing import module_tensors, save_tensors, with_plain_bias
from jaxmix.converters.names.images.underscored import dotted_names
from jaxmix.errors import AdapterError, CheckpointError, UnsupportedError, listing, option, remedy
from jaxmix.placement.names import without_wrappers
from jaxmix.placement.naming import Names

__all__ = ["export_kohya", "is_kohya", "read_kohya"]


def is_kohya(path: Path) -> bool:
    """Returns whether a file has keys of kohya's scripts or LyCORIS."""
    return path.is_file() and any(_prefix(key) for key in file_keys(path))


def read_kohya(
    path: Path, name: str, strength: Any = 1.0, *, base: Any = None, part: str | None = None
) -> Adapter:
    """Reads a file of kohya's scripts or LyCORIS, or of another program that uses their names.

    Args:
        path: The file.
        name: The adapter's name.
        strength: The adapter's strength in a mix, a real scalar.
        base: The model that it was trained on, to distinguish dots from underscores: params, a
            flat dict, a folder of transformers or diffusers, or a list of module names. Not needed
            if all names are those of one image or video model that jaxmix knows.
        part: The prefix to read from a file that covers several models (``lora_unet``), or another
            name of that model (``unet``); other keys are ignored. None reads all.

    Returns:
        The adapter; its sites are the base's modules.

    Raises:
        CheckpointError: If keys are unknown, names do not match the base, or there is no base.
        UnsupportedError: If a module's tensors are of an unsupported kind.
        ShapeError: If they disagree.
        AdapterError: If a number is not finite.

    Example:
        >>> read_kohya(Path("no/such/file"), "style")
        Traceback (most recent call last):
        ...
        jaxmix.errors.CheckpointError: no/such/file is not a file, expected a .safetensors. ...

    Source: kohya-ss/sd-scripts, ``networks/lora.py``; KohakuBlueleaf/LyCORIS.
    """
    modules = _sorted(without_embeddings(file_tensors(path), str(path)), str(path), part)
    names = _sites(modules, base, str(path))
    updates = build_all({site: modules[module] for module, site in names.items()}, str(path))
    return Adapter(updates, name=name) * strength


def _sorted(tensors: Mapping[str, Any], where: str, part: str | None) -> dict[str, SiteTensors]:
    """The tensors by the module's name in the file."""
    modules: dict[str, SiteTensors] = {}
    unknown: list[str] = []
    parts = {prefix for key in tensors if (prefix := _any_prefix(key)) is not None}
    for key, tensor in tensors.items():
        prefix, split = _any_prefix(key), split_key(key)
        # The end `weight` is IA3's, and also that of any unknown parameter.
        if prefix is None or split is None or ("." in split[0] and split[1] == "weight"):
            unknown.append(f"{key}: {_unknown(key)}")
        elif is_selected(prefix, part, parts):
            module, parameter = split
            if parameter in modules.setdefault(module, {}):
                unknown.append(f"{key}: a duplicate of {parameter}")
            modules[module][parameter] = tensor
    if unknown:
        raise CheckpointError(
            f"{where}: unknown keys in a file of kohya's scripts or LyCORIS:{listing(unknown)}"
            f"\nExpected <prefix>_<module>.<parameter>, with one of {', '.join(PREFIXES)}."
        )
    without_effect = [
        f"{module}: alpha is 0, which bounds every rotation of sd-scripts' OFT to nothing"
        for module, factors in modules.items()
        if module.startswith("oft_") and "alpha" in factors and not factors["alpha"].any()
    ]
    if without_effect:
        raise UnsupportedError(
            f"{where}: modules without effect:{listing(without_effect)}\nRemove them."
        )
    if not modules:
        raise CheckpointError(
            f"{where} has no keys for {option('part', part)}, expected one of "
            f"{', '.join(sorted(parts))}."
        )
    return modules


def _unknown(key: str) -> str:
    """Describes why a key is not a parameter."""
    end = key.rpartition(".")[2]
    if end in _UNSUPPORTED_ENDS:
        return _UNSUPPORTED_ENDS[end]
    return "unknown prefix" if _any_prefix(key) is None else "unknown parameter"


_UNSUPPORTED_ENDS = {
    "lokr_t1": "no version of LyCORIS writes or reads it",
    "lambda_layer": "T-LoRA, whose rank depends on the timestep, which no fixed weight reproduces",
    "scalar": "a scale that LyCORIS itself ignores when it loads; save the file again with LyCORIS",
}


def _prefix(key: str) -> str | None:
    """The longest known prefix of a key, up to the module's name."""
    fitting = [prefix for prefix in PREFIXES if key.startswith((f"{prefix}_", f"{prefix}."))]
    return max(fitting, key=len, default=None)


def _any_prefix(key: str) -> str | None:
    """A key's prefix; also that of a key with dots, as some files have both kinds."""
    return _prefix(key) or split_part(key).part or None


def _sites(modules: Mapping[str, SiteTensors], base: Any, where: str) -> dict[str, str]:
    """The base's module for each module of the file."""
    flat_names: dict[str, tuple[str, str]] = {}
    for module in modules:
        prefix = _any_prefix(f"{module}.") or ""
        flat = module[len(prefix) + 1 :].replace(".", "_")
        bare_name = without_wrappers(flat, is_underscored=True)
        flat_names[module] = role_of(prefix), bare_name
    if base is not None:
        return match_modules(flat_names, base_model(base).modules, where, modules)
    if (dotted := dotted_names(flat_names)) is not None:
        return dotted
    # A name without underscores had no dots.
    ambiguous = [module for module, (_, bare_name) in flat_names.items() if "_" in bare_name]
    bare_names = [bare_name for _, bare_name in flat_names.values()]
    if ambiguous or len(set(bare_names)) < len(bare_names):
        problem = "have underscores for dots" if ambiguous else "are equal in several models"
        raise CheckpointError(
            f"{where}: the names of its modules {problem} ({(ambiguous or bare_names)[0]} …), so "
            "the file alone does not determine the modules. "
            f"Pass the model that it was trained on: {option('base', ..., of='load(path')}, its "
            "Hugging Face folder, its params, or a list of the names of its modules."
        )
    return {module: bare_name for module, (_, bare_name) in flat_names.items()}


def export_kohya(
    adapter: Adapter,
    path: str | os.PathLike[str],
    *,
    prefix: str | None = None,
    names: Names = None,
    base: Any = None,
    force: bool = False,
) -> Path:
    """Writes an adapter under the names of kohya's scripts, LyCORIS and A1111.

    Modules get the names that sd-scripts and musubi-tuner use: the original project's, and those of
    diffusers for Stable Diffusion 1.5 and Z-Image. Updates of weights that are fused under these
    names are joined.

    Args:
        adapter: An adapter of LoRA, LoHa, LoKr, these with a norm, Diag-OFT, or dense differences.
            Its strength is multiplied into alpha.
        path: The file, ``….safetensors``.
        prefix: The prefix of sites that name no component: ``lora_te``, ``lycoris``. By default
            each component has its own (``lora_unet``, ``lora_te1``, …).
        names: The model: ``"sdxl"``, ``"flux"``, …, or its config in diffusers; by default, the
            model that has the adapter's modules. ``""`` keeps their names.
        base: The model that the adapter was trained on, as in `jaxmix.load`: it determines the
            model, and the sizes of weights that the adapter lacks.
        force: Whether to replace an existing file.

    Returns:
        The path.

    Raises:
        UnsupportedError: If the format has no form for an update, or an update can't be converted
            to these names; `jaxmix.to_lora` makes a LoRA of any mix.
        LayoutError: If several models fit, or there is no model ``names``.
        AdapterError: If it is not an adapter, or two of its sites would have the same name.
        CheckpointError: If the path is taken, or can't be written.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from jaxmix.families import LoRA
        >>> ones = LoRA(np.ones((1, 3)), np.ones((2, 1)), scale=1.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = export_kohya(Adapter({"mid.to_q": ones}), folder + "/x.safetensors")
        ...     read_kohya(file, "style", base=["mid.to_q"]).sites
        ('mid.to_q',)

    Source: kohya-ss/sd-scripts, ``networks/lora.py`` (``save_weights``); kohya-ss/musubi-tuner.
    """
    named = named_for(KOHYA, adapter, prefix=prefix, names=names, base=base)
    flat = {key: "_".join((key[0], key[1].replace(".", "_"))) for key in named.updates}
    owners: dict[str, list[str]] = {}
    for key, name in flat.items():
        owners.setdefault(name, []).append(named.sites[key])
    if several := [f"{n}: {' and '.join(s)}" for n, s in owners.items() if len(s) > 1]:
        raise AdapterError(
            f"{adapter.name}: sites that have the same name with underscores for dots:"
            f"{listing(several)}\nExport them with dots: "
            f"{remedy('jaxmix.converters.comfyui', '--to comfyui')}."
        )
    updates = {flat[key]: update for key, update in named.updates.items()}
    sites = {flat[key]: site for key, site in named.sites.items()}
    modules = module_tensors(replace(adapter, updates=updates), sites)
    tensors: dict[str, Any] = {}
    for name, factors in modules.items():
        for parameter, tensor in with_plain_bias(factors).items():
            tensors[f"{name}.{parameter}"] = tensor
    is_lora = all(set(factors) <= _OF_LORA for factors in modules.values())
    network = "networks.lora" if named.model is None else named.model.network
    metadata = {"ss_network_module": network if is_lora else "lycoris.kohya"}
    return save_tensors(path, tensors, metadata, force=force)


_OF_LORA = {"lora_down.weight", "lora_up.weight", "alpha"}
