"""Keys that kept their dots: `<part>.<module>.<parameter>`, and the sites that they are for."""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from jaxmix.converters.adapters.lycoris.keys import split_key
from jaxmix.converters.adapters.peft.shapes import Factors
from jaxmix.errors import CheckpointError, UnsupportedError, listing, option
from jaxmix.placement.names import unwrapped
from jaxmix.placement.spelling import Spellings

__all__ = ["PARTS", "Place", "dotted_sites", "modern", "place_of", "sorted_keys"]

# What stands before the module's name, and means the model that it is in.
PARTS: tuple[str, ...] = (
    "model.diffusion_model",
    "diffusion_model",
    "transformer_2",
    "transformer",
    "unet",
    "prior",
    "controlnet",
    "text_encoder_3",
    "text_encoder_2",
    "text_encoder",
    "text_encoders.clip_l.transformer",
    "text_encoders.clip_g.transformer",
    "text_encoders.t5xxl.transformer",
)
# diffusers' first format: the attention's processor held the factors of the layers beside it.
_PROCESSOR = re.compile(r"\.(?P<layer>to_q|to_k|to_v|to_out)_lora\.(?P<end>(?:down|up)\.weight)$")
_OF_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


class Place(NamedTuple):
    """Where a tensor belongs: the part ("" for none), and the module's name in it."""

    part: str
    module: str


def sorted_keys(
    tensors: Mapping[str, Any], where: str, part: str | None
) -> dict[Place, dict[str, Any]]:
    """The tensors by place.

    Args:
        tensors: the file's.
        where: the file, for messages.
        part: the part to read; None for all.

    Returns:
        ``{place: {parameter: array}}``, parameters by LyCORIS's names.

    Raises:
        CheckpointError: if keys mean nothing or collide, or nothing is there of the part.
        UnsupportedError: if the file is PEFT's, and lacks its config.
    """
    if any(key.startswith("base_model.model.") for key in tensors):
        raise UnsupportedError(
            f"{where} is what PEFT saves (base_model.model.…), whose alpha is in its config and "
            "not in the file. Give the folder that holds it and its adapter_config.json."
        )
    places: dict[Place, Factors] = {}
    unknown: list[str] = []
    splits = {key: split_key(modern(key)) for key in tensors}
    plain = _without_wrappers({place_of(split[0]) for split in splits.values() if split})
    for key, tensor in tensors.items():
        if (split := splits[key]) is None:
            unknown.append(f"{key}: no parameter that is known")
            continue
        module, parameter = split
        place = plain[place_of(module)]
        if part is not None and place.part != part:
            continue
        if parameter in places.setdefault(place, {}):
            unknown.append(f"{key}: {parameter} a second time")
        places[place][parameter] = tensor
    if unknown:
        raise CheckpointError(
            f"{where}: keys that mean nothing in a file of adapters:{listing(unknown)}\nExpected "
            "<module>.<parameter>, with parameters such as lora_A.weight, lora_down.weight, "
            "lokr_w1, hada_w1_a, alpha."
        )
    if not places:
        found = sorted({place_of(key).part or "''" for key in tensors})
        raise CheckpointError(
            f"{where} has nothing for part={part!r}, expected one of {', '.join(found)}."
        )
    return places


def _without_wrappers(places: Collection[Place]) -> dict[Place, Place]:
    """Removes the names of wrappers that all modules of a part lie in (``unet.module.…``)."""
    parts: dict[str, list[str]] = {}
    for place in places:
        parts.setdefault(place.part, []).append(place.module)
    return {
        Place(part, module): Place(part, short)
        for part, modules in parts.items()
        for module, short in unwrapped(modules).items()
    }


def dotted_sites(
    places: Collection[Place], modules: Collection[str] | None, where: str
) -> dict[Place, str]:
    """The site of each place.

    With a base it is the base's module of that name, with or without the part before it. Without,
    a file for one model has the names in that model, and one for several has the parts in front.

    Args:
        places: the file's.
        modules: the base's module names; None without a base.
        where: the file, for messages.

    Returns:
        ``{place: site}``.

    Raises:
        CheckpointError: if a place fits no module, or more than one, or two are one; all are
            listed.

    Example:
        >>> dotted_sites([Place("unet", "mid.to_q")], None, "file")
        {Place(part='unet', module='mid.to_q'): 'mid.to_q'}
    """
    several = len({place.part for place in places}) > 1
    sites: dict[Place, str] = {}
    problems: list[str] = []
    spellings = Spellings(modules or ())
    for place in places:
        full = f"{place.part}.{place.module}" if place.part else place.module
        if modules is None:
            sites[place] = full if several else place.module
            continue
        names = tuple(dict.fromkeys((full, place.module)))
        fitting = [name for name in names if name in modules]
        fitting = fitting or [module for name in names for module in spellings.of(name)]
        if len(fitting) == 1:
            sites[place] = fitting[0]
        else:
            problems.append(f"{full}: {' and '.join(fitting) if fitting else 'no such module'}")
    owners: dict[str, Place] = {}
    for place, site in sites.items():
        if (other := owners.setdefault(site, place)) != place:
            problems.append(f"{site}: for {other.part or 'no part'} and {place.part or 'no part'}")
    if problems:
        shown = "" if modules is None else f" ({', '.join(sorted(modules)[:3])} …)"
        raise CheckpointError(
            f"{where}: names that are not those of one module of the base:{listing(problems)}\n"
            f"Expected the names of the base's modules{shown}. Give the base that the adapter was "
            f"trained on; with several models in the file give {option('part', '…')}, what "
            "stands before the module's name."
        )
    return sites


def modern(key: str) -> str:
    """A key of diffusers' first format in the names of the later one."""
    if ".processor." in key:
        key = key.replace(".processor.", ".")
    found = _PROCESSOR.search(key)
    if found is None:
        return key
    layer = found["layer"]
    is_text = key.startswith("text_encoder") or ".self_attn." in key
    name = _OF_TEXT[layer] if is_text else "to_out.0" if layer == "to_out" else layer
    return f"{key[: found.start()]}.{name}.lora.{found['end']}"


def place_of(module: str) -> Place:
    """The part and the rest of a name."""
    part = next((one for one in PARTS if module.startswith(f"{one}.")), "")
    return Place(part, module.removeprefix(f"{part}.") if part else module)
