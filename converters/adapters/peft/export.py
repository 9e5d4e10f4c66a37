"""`export_peft`: writes an adapter as a folder for PEFT, a mix as several folders and a script."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.common.tensor_files import CONFIG_FILE
from jaxmix.converters.adapters.peft.about import about_fields, checked_task
from jaxmix.converters.adapters.peft.kinds import PEFT_TYPES
from jaxmix.converters.adapters.peft.loading_script import ordered, script
from jaxmix.converters.adapters.peft.parts import Parts, parts_in
from jaxmix.converters.adapters.peft.peft_type import PeftContent
from jaxmix.converters.files.output import checked_output, new_folder
from jaxmix.errors import AdapterError, UnsupportedError, listing, to_lora_call
from jaxmix.families import FAMILIES, Delta, Update
from jaxmix.mixing import Mix
from jaxmix.placement.joining import with_memory_names
from jaxmix.placement.naming import map_named

__all__ = ["export_peft"]

WEIGHTS_FILE = "adapter_model.safetensors"
SCRIPT_FILE = "load_in_peft.py"
_EXPORTED = re.compile(
    rf"(\d\d-[^/]+/)?({re.escape(CONFIG_FILE)}|{re.escape(WEIGHTS_FILE)}|README\.md)"
    rf"|{re.escape(SCRIPT_FILE)}"
)
# The version whose format is written; PEFT's OFT depends on it.
_VERSION = "0.21.2"

# PEFT's type for each family that has one.
_TYPES: dict[str, str] = {
    **{name: name.upper() for name in FAMILIES},
    "Delta": "BEFT",
    "ExpertLoRA": "LORA",
    "KaSA": "LORA",
    "Replace": "LN_TUNING",
    "Tokens": "TRAINABLE_TOKENS",
}


def export_peft(
    adapter: Adapter | Mix,
    folder: str | os.PathLike[str],
    *,
    base_model_name_or_path: str | None = None,
    task_type: str | None = None,
    patterns: bool = False,
    errors: Mapping[str, float] | None = None,
    names: str | Mapping[str, Any] | None = None,
    force: bool = False,
    base_model: str | None = None,
) -> Path:
    """Writes an adapter as PEFT's ``save_pretrained`` would: ``{site: update}`` as factors.

    The folder computes the same in PEFT as the adapter does here. An adapter's strength is
    multiplied into its scale, which only additive types have in PEFT. A mix is written as one
    folder per adapter, in order, and a short script that loads them one after the other.

    A LoRA is written with one rank, ``r``, and one scale, ``lora_alpha / r``, for all sites, since
    llama.cpp and others read nothing else. Where ranks differ, smaller factors are padded with
    zeros; where scales differ, the most frequent one is written, and the ratio is multiplied into
    the B of the other sites, rounded once. A LoRA of equal ranks and scales is written bit for bit.

    Args:
        adapter: An adapter whose updates are of one type of PEFT, or a mix of such adapters.
        folder: The folder to write. It is renamed into place when it is complete.
        base_model_name_or_path: The base's path or hub id, for the config; by default the one in
            the adapter's own file.
        task_type: PEFT's task, such as "CAUSAL_LM", which ``AutoPeftModelForCausalLM`` needs; by
            default the one in the adapter's own file.
        patterns: Whether to keep the rank and alpha of each site of a LoRA, as ``rank_pattern`` and
            ``alpha_pattern``: smaller where ranks differ, and bit for bit, but only PEFT reads it.
        errors: The error at each site, as `to_lora` reports it; stored as JSON in the metadata of
            the adapter's file under ``errors``.
        names: The model's type, such as ``"mixtral"``, or its config: sites are written under the
            names that modules have in memory, which PEFT needs. LoRAs of weights that are fused in
            memory, such as the experts', are joined; a LoRA of a weight that is split in memory is
            split. By default sites keep their names.
        force: Whether to replace an existing adapter.
        base_model: The older name of ``base_model_name_or_path``.

    Returns:
        The folder.

    Raises:
        UnsupportedError: If PEFT has no type for an update, no config for all of them, no strength
            for their kind, or another order of those at one site; `jaxmix.to_lora` makes a LoRA of
            any of these. If PEFT ignores sites of the adapter for the given task, or a scale does
            not fit into B. If ``names`` joins or splits an update that is not a plain LoRA.
        LayoutError: If there is no name map ``names``.
        AdapterError: If it is not an adapter, there is no such task, or errors are given for a mix.
        CheckpointError: If the path is taken, or can't be written.

    Example:
        >>> import tempfile
        >>> from jaxmix.families import LoRA
        >>> ones = LoRA(np.ones((1, 3)), np.ones((2, 1)), scale=1.0)
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     there = export_peft(Adapter({"proj": ones}), parent + "/lora")
        ...     sorted(file.name for file in there.iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']

    Source: ``peft/utils/save_and_load.py``.
    """
    if not isinstance(adapter, Adapter | Mix):
        raise AdapterError(
            f"export_peft got a {type(adapter).__name__}, expected an adapter or a mix of them."
        )
    if errors and isinstance(adapter, Mix):
        raise AdapterError(
            f"export_peft got errors= for a mix of {len(adapter.parts)} adapters. Export the "
            "adapter that to_lora returned."
        )
    task = checked_task(task_type)
    parts = ordered(adapter.parts)
    if names:
        table = map_named(names)
        parts = [replace(part, updates=with_memory_names(part.updates, table)) for part in parts]
    base_model_name_or_path = base_model_name_or_path or base_model
    folders = [_folder(part, base_model_name_or_path, task, patterns) for part in parts]
    marks = (CONFIG_FILE, SCRIPT_FILE)
    place = checked_output(folder, (), force=force, marks=marks, replaces=_is_exported)
    with new_folder(place, force=force, replaces=_is_exported) as partial:
        if isinstance(adapter, Adapter):
            _save(partial, *folders[0], {"errors": json.dumps(dict(errors))} if errors else {})
        else:
            inner = [f"{i:02d}-{_folder_name(part.name)}" for i, part in enumerate(parts, 1)]
            for name, (config, tensors) in zip(inner, folders, strict=True):
                (partial / name).mkdir()
                _save(partial / name, config, tensors)
            (partial / SCRIPT_FILE).write_text(script(inner), encoding="utf-8")
    return place


def _is_exported(name: str) -> bool:
    """Whether a path in the folder is that of a file that `export_peft` or PEFT writes."""
    return _EXPORTED.fullmatch(name) is not None


def _folder_name(name: str) -> str:
    """Converts a name to one that a folder can have."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".") or "adapter"


def _save(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] = {},
) -> None:
    """Writes the config and the tensors."""
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(arrays, folder / WEIGHTS_FILE, metadata={"format": "pt", **metadata})


def _folder(
    adapter: Adapter, base: str | None, task: str | None, patterns: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config and the tensors of one adapter."""
    parts = parts_in(adapter)
    types = {site: _type(update) for site, update in parts.adapted.items()}
    names = {name for name in types.values() if name}
    if missing := [
        f"{s}: {parts.adapted[s].family}" for s, name in types.items() if name not in PEFT_TYPES
    ]:
        raise UnsupportedError(
            f"{adapter.name}: PEFT has no type for:{listing(missing)}\nConvert it to a "
            f"LoRA: {to_lora_call()}."
        )
    if len(names) != 1:
        counts = [f"{name}: {sum(t == name for t in types.values())} sites" for name in names]
        raise UnsupportedError(
            f"{adapter.name}: a PEFT folder contains an adapter of one type, and this adapter has "
            f"{'none' if not names else 'several'}:{listing(counts)}\nConvert it to a LoRA: "
            f"{to_lora_call()}, or export its parts as separate adapters."
        )
    (name,) = names
    write = PEFT_TYPES[name].write
    if write is None:
        raise UnsupportedError(f"{adapter.name}: jaxmix does not write PEFT's {name} yet.")
    equalize = PEFT_TYPES[name].with_equal_ranks
    content = write(parts.adapted if patterns or equalize is None else equalize(parts.adapted))
    config = {
        **about_fields(adapter, parts.adapted, base, task),
        "inference_mode": True,
        "modules_to_save": None,
        "peft_type": name,
        "peft_version": _VERSION,
        "target_modules": list(parts.adapted),
        **content.fields,
    }
    tensors = _tensors(parts, content, name, config)
    return config, tensors


def _type(update: Update) -> str:
    """PEFT's type for an update; it has none for a difference of weights."""
    return "" if isinstance(update, Delta) and update.has_weight else _TYPES.get(update.family, "")


def _tensors(
    parts: Parts, content: PeftContent, name: str, config: dict[str, Any]
) -> dict[str, Any]:
    """All tensors by PEFT's keys; completes the config for those that PEFT stores in the base."""
    tensors = {f"base_model.{shared}": array for shared, array in content.shared.items()}
    prefix = "base_model.model."
    tensors |= {prefix + key: array for key, array in content.tensors.items()}
    biases: dict[str, Any] = {}
    saved: list[str] = []
    for site, update in parts.saved.items():
        if update.weight is None:
            biases[f"{site}.base_layer.bias" if site in parts.adapted else f"{site}.bias"] = (
                update.bias
            )
            continue
        saved.append(site)
        for leaf in ("weight", "bias"):
            if (array := getattr(update, leaf)) is not None:
                tensors[f"{prefix}{site}.{leaf}"] = array
    if saved and "modules_to_save" not in PEFT_TYPES[name].fields.supported:
        raise UnsupportedError(
            f"PEFT's {name} can't save whole modules, and this adapter has:{listing(saved)}"
        )
    if biases and "bias" not in PEFT_TYPES[name].fields.supported:
        raise UnsupportedError(
            f"PEFT's {name} has no trained biases, and this adapter has:{listing(biases)}"
        )
    for site, update in parts.rebased.items():
        inner = ".base_layer" if site in parts.adapted else ""
        tensors[f"{prefix}{site}{inner}.weight"] = update.weight
    if parts.tokens and "trainable_token_indices" not in PEFT_TYPES[name].fields.supported:
        raise UnsupportedError(
            f"PEFT's {name} has no trained tokens, and this adapter has:{listing(parts.tokens)}"
        )
    for site, rows in parts.tokens.items():
        tensors[f"{prefix}{site}.token_adapter.trainable_tokens_delta"] = rows.values
    if parts.tokens:
        config["trainable_token_indices"] = {
            site: np.asarray(rows.rows).tolist() for site, rows in parts.tokens.items()
        }
    if biases:
        config["bias"] = "all"
        tensors |= {prefix + key: array for key, array in biases.items()}
    config["modules_to_save"] = saved or None
    return tensors
