"""Keys with dots, `<part>.<module>.<parameter>`, and the sites that they belong to."""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxmix.converters.adapters.common.shapes import SiteTensors
from jaxmix.converters.adapters.lycoris.doubles import is_double
from jaxmix.converters.adapters.lycoris.keys import split_key
from jaxmix.converters.adapters.lycoris.names import best_other_names
from jaxmix.converters.adapters.lycoris.parts import (
    PARTS,
    components_of,
    has_open_clip_names,
    in_component,
    is_selected,
    missing_component,
    respell_module,
    role_of,
    spellings_of,
)
from jaxmix.errors import CheckpointError, UnsupportedError, listing, option
from jaxmix.placement.names import unwrapped
from jaxmix.placement.spelling import Spellings

__all__ = ["PartModule", "match_sites", "modernize_key", "split_part", "tensors_by_module"]

# diffusers' first format: the attention's processor has the factors of the attention's layers.
_PROCESSOR = re.compile(r"\.(?P<layer>to_q|to_k|to_v|to_out)_lora\.(?P<end>(?:down|up)\.weight)$")
# XLabs' processors of Flux, which the table of Flux has as modules.
_XLABS = re.compile(
    r"(?P<module>.+\.processor\.(?:qkv|proj)_lora[12]?)\.(?P<end>(?:down|up)\.weight)"
)
_PEFT = "base_model.model."
# Modules that only image and video models have.
_OF_IMAGES = re.compile(
    r"\.(to_q|to_k|to_v|to_out\.0|add_[qkv]_proj)$|[._](double|single|joint|transformer|up|down|input"
    r"|output)_blocks[._]|\.(mid|middle)_block\.|\.blocks\.\d+\.(self|cross)_attn\.[qkvo]$"
    r"|\.(noise|context)_refiner\.|\.attention\.(qkv|out)$"
)
_LOW_RANK = {"lora_down.weight", "hada_w1_a", "lokr_w1_a", "lokr_w2_a"}
_OF_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


class PartModule(NamedTuple):
    """A module and the part of a pipeline that it is in ("" if none)."""

    part: str
    module: str


def tensors_by_module(
    tensors: Mapping[str, Any], where: str, part: str | None
) -> dict[PartModule, dict[str, Any]]:
    """Groups the tensors of a file by module.

    Args:
        tensors: The file's tensors.
        where: The file, for messages.
        part: The part to read, or another name of the same model; None for all.

    Returns:
        ``{module: {parameter: array}}``, parameters by LyCORIS's names.

    Raises:
        CheckpointError: If keys are unknown or collide, or nothing is there of the part.
        UnsupportedError: If the file is one of PEFT without its config.
    """
    places: dict[PartModule, SiteTensors] = {}
    unknown: list[str] = []
    splits = {key: split_key(modernize_key(key)) for key in tensors}
    modules = {split[0] for split in splits.values() if split}
    plain = _without_wrappers(modules)
    parts = {place.part for place in plain.values()}
    for key, tensor in tensors.items():
        if (split := splits[key]) is None:
            unknown.append(f"{key}: unknown parameter")
            continue
        module, parameter = split
        place = plain[module]
        if not is_selected(place.part, part, parts):
            continue
        earlier = places.setdefault(place, {}).get(parameter)
        if earlier is not None and not np.array_equal(earlier, tensor):
            unknown.append(f"{key}: a duplicate of {parameter}")
        places[place][parameter] = tensor
    if unknown:
        raise CheckpointError(
            f"{where}: unknown keys in an adapter file:{listing(unknown)}\nExpected "
            "<module>.<parameter>, with parameters such as lora_A.weight, lora_down.weight, "
            "lokr_w1, hada_w1_a, alpha."
        )
    if not places:
        names = sorted({split_part(key).part or "''" for key in tensors})
        raise CheckpointError(
            f"{where} has no keys for {option('part', part)}, expected one of {', '.join(names)}."
        )
    if any(module.startswith(_PEFT) for module in modules):
        _check_alpha(places, where)
    return places


def _check_alpha(places: Mapping[PartModule, SiteTensors], where: str) -> None:
    """Refuses a file of PEFT without its config if its alpha matters.

    Trainers of image models write such files with alpha equal to the rank, as diffusers reads them.
    """
    if any(_OF_IMAGES.search(f".{place.module}") for place in places):
        return
    if any(_LOW_RANK & factors.keys() and "alpha" not in factors for factors in places.values()):
        raise UnsupportedError(
            f"{where} is a file of PEFT (base_model.model.…), whose alpha is in its config and "
            "not in the file. Pass the folder that contains it and its adapter_config.json."
        )


def _without_wrappers(modules: Collection[str]) -> dict[str, PartModule]:
    """The place of each module, without wrappers around all of a part (``unet.module.…``)."""
    places = {module: split_part(module.removeprefix(_PEFT)) for module in modules}
    parts: dict[str, list[str]] = {}
    for place in places.values():
        parts.setdefault(place.part, []).append(place.module)
    short = {part: unwrapped(names, is_peft=bool(part)) for part, names in parts.items()}
    return {
        module: PartModule(place.part, short[place.part][place.module])
        for module, place in places.items()
    }


def match_sites(
    places: Mapping[PartModule, SiteTensors], modules: Collection[str] | None, where: str
) -> dict[PartModule, str]:
    """Returns the site of each module.

    With a base, it is the base's module of that name, with or without the part as prefix, or with
    another name of the part (``unet.mid.to_q`` for ``diffusion_model.mid.to_q``). Without a base,
    sites have the part as prefix if the file covers several parts.

    Args:
        places: The modules in the file, with their tensors.
        modules: The base's module names; None without a base.
        where: The file, for messages.

    Returns:
        ``{module: site}``, without modules that the file also has under another name, with equal
        tensors.

    Raises:
        CheckpointError: If one matches no module of the base or several, or two match the same one;
            all are listed.

    Example:
        >>> match_sites({PartModule("unet", "mid.to_q"): {}}, None, "file")
        {PartModule(part='unet', module='mid.to_q'): 'mid.to_q'}
    """
    several = len({place.part for place in places}) > 1
    sites: dict[PartModule, str] = {}
    problems: list[str] = []
    lost: list[PartModule] = []
    spellings = Spellings(modules or ())
    for place in places:
        full = f"{place.part}.{place.module}" if place.part else place.module
        if modules is None:
            # Without the part, nothing tells the component of OpenCLIP's names.
            is_full = several or has_open_clip_names(place.part)
            sites[place] = full if is_full else place.module
            continue
        fitting = _modules_named(place, modules, spellings)
        if len(fitting) == 1:
            sites[place] = fitting[0]
        elif fitting:
            problems.append(f"{full}: {' and '.join(fitting)}")
        else:
            lost.append(place)
    wanted = {place: spellings_of(place.part, place.module) for place in lost}
    for place, (name, _) in best_other_names(wanted, modules or ()).items():
        sites[place] = in_component(place.part, name, modules or ())
    for place in lost:
        if place in sites:
            continue
        full = f"{place.part}.{place.module}" if place.part else place.module
        missing = missing_component(components_of(place.part), modules or ())
        problems.append(f"{full}: {missing or 'no such module'}")
    owners: dict[str, PartModule] = {}
    for place, site in tuple(sites.items()):
        if (other := owners.setdefault(site, place)) == place:
            continue
        is_same_model = role_of(place.part) == role_of(other.part)
        if is_same_model and is_double(places[place], [places[other]]):
            del sites[place]
        else:
            problems.append(
                f"{site}: claimed by {other.part or 'no part'} and {place.part or 'no part'}"
            )
    if problems:
        shown = "" if modules is None else f" ({', '.join(sorted(modules)[:3])} …)"
        raise CheckpointError(
            f"{where}: names that do not match exactly one module of the base:{listing(problems)}"
            f"\nExpected the names of the base's modules{shown}. Was the adapter trained on "
            "another model, or does the file use other names for its modules? If the file covers "
            f"several models, select one with {option('part', '…')}, the prefix of its names."
        )
    return sites


def _modules_named(place: PartModule, modules: Collection[str], spellings: Spellings) -> list[str]:
    """Returns the base's modules that a module in the file may be, by the best spelling only."""
    if has_open_clip_names(place.part):
        full = f"{place.part}.{place.module}"
        return [full] if full in modules else list(spellings.of(full))
    for module in respell_module(place.part, place.module):
        full = f"{place.part}.{module}" if place.part else module
        plain = tuple(dict.fromkeys((full, module)))
        aliases = [f"{name}.{module}" for name in components_of(place.part)]
        for names in (plain, aliases):
            if matches := [name for name in names if name in modules]:
                return matches
        for names in (plain, aliases):
            if matches := [match for name in names for match in spellings.of(name)]:
                return matches
        # Some files have underscores for some of the dots.
        for names in (plain, aliases):
            flat = {name.replace(".", "_").strip("_") for name in names}
            if "_" in module and (matches := [m for m in modules if m.replace(".", "_") in flat]):
                return matches
    return []


def modernize_key(key: str) -> str:
    """Converts a key of diffusers' first format to the later one."""
    if found := _XLABS.fullmatch(key):
        return f"{found['module']}.lora.{found['end']}"
    if ".processor." in key:
        key = key.replace(".processor.", ".")
    found = _PROCESSOR.search(key)
    if found is None:
        return key
    layer = found["layer"]
    is_text = key.startswith("text_encoder") or ".self_attn." in key
    name = _OF_TEXT[layer] if is_text else "to_out.0" if layer == "to_out" else layer
    return f"{key[: found.start()]}.{name}.lora.{found['end']}"


def split_part(module: str) -> PartModule:
    """Splits a name into its part and the module."""
    part = next((part for part in PARTS if module.startswith(f"{part}.")), "")
    return PartModule(part, module.removeprefix(f"{part}.") if part else module)
