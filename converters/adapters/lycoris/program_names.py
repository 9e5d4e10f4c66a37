"""Names of an adapter's modules in the files of each program that reads them.

Programs differ in three ways: in the names of a model's modules, which are the original project's
or diffusers' (``converters/names/images``); in the prefixes of components; and in dots or
underscores.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.common.base_model import base_model
from jaxmix.converters.adapters.lycoris.model_choice import chosen_model
from jaxmix.converters.adapters.lycoris.parts import (
    has_open_clip_names,
    is_second,
    respell_module,
    role_of,
    split_component,
)
from jaxmix.converters.adapters.lycoris.program import (
    CLIP_MODULES,
    COMFYUI,
    COMFYUI_TEXT,
    DIFFUSERS,
    KOHYA,
    OTHER_CLIP,
    Program,
)
from jaxmix.converters.names.images.models import ImageModel, image_models
from jaxmix.errors import AdapterError, UnsupportedError, listing, option, to_lora_call
from jaxmix.families import Delta, Update
from jaxmix.placement.joining import with_memory_names, with_original_names
from jaxmix.placement.naming import Names

__all__ = ["NamedFor", "named_for"]

_PICTURE = "unet"
_TEXT = ("te1", "te2", "te3")
# Modules of CLIP's and T5's text encoders, whose names determine the component if no prefix does.
_CLIP = re.compile(
    r"(text_model\.)?(encoder\.layers|embeddings|final_layer_norm)\.|text_projection"
)
_T5 = re.compile(r"encoder\.(block\.\d+\.layer|final_layer_norm)\.|shared$")


@dataclass(frozen=True)
class NamedFor:
    """An adapter under the names of a program.

    Args:
        updates: ``{(prefix, module): update}``; the module's name has dots.
        sites: ``{(prefix, module): site}``, the adapter's site of each update.
        model: The denoiser; None if no table has its names.
    """

    updates: dict[tuple[str, str], Update]
    sites: dict[tuple[str, str], str] = field(default_factory=dict)
    model: ImageModel | None = None


def named_for(
    program: Program,
    adapter: Adapter,
    *,
    prefix: str | None = None,
    names: Names = None,
    base: Any = None,
) -> NamedFor:
    """Returns an adapter under the names that a program reads.

    Args:
        program: The program.
        adapter: The adapter, with sites under any program's names, with or without a component.
        prefix: The prefix of the sites that name no component.
        names: The model's name or config; ``""`` to keep the names of modules; None to find it.
        base: The adapter's base, as in `jaxmix.load`, which determines the model and sizes.

    Raises:
        AdapterError: If it is not an adapter, has no sites, or is for two models of one role.
        LayoutError: If several models fit whose names differ.
        UnsupportedError: If an update can't be converted to the names, or the program reads no
            adapter of a text encoder; all are listed.
    """
    if not isinstance(adapter, Adapter):
        raise AdapterError(
            f"got a {type(adapter).__name__}, expected one adapter. Convert a mix to one: "
            "jaxmix.to_lora(mix, params)."
        )
    parts = _by_role(adapter, prefix)
    shapes = _shapes(base)
    picture = parts.get(_PICTURE, {})
    model = None
    if names != "" and (picture or names is not None):
        model = chosen_model(program, adapter.name, tuple(picture), parts, names, shapes)
    updates: dict[tuple[str, str], Update] = {}
    sites: dict[tuple[str, str], str] = {}
    for role, by_module in parts.items():
        renamed = {module: update for module, (_, update) in by_module.items()}
        if role == _PICTURE and model is not None:
            renamed = _renamed(program, adapter.name, renamed, model, shapes)
        for module, update in renamed.items():
            site = by_module[module][0] if module in by_module else module
            key = _key(program, role, module, site, prefix, model, parts)
            sites[key], updates[key] = site, update
    _check_text(program, adapter.name, parts, model)
    return NamedFor(updates, sites, model)


# The sites of each role, by module: ``{role: {module: (site, update)}}``.
_Parts = dict[str, dict[str, tuple[str, Update]]]


def _by_role(adapter: Adapter, prefix: str | None) -> _Parts:
    """The updates of each component, by module."""
    parts: _Parts = {}
    components: dict[str, set[str]] = {}
    twice: list[str] = []
    for site, update in _without_open_clip(adapter.updates).items():
        component, module = split_component(site)
        if component:
            role = role_of(component)
        elif prefix is not None:
            role = role_of(prefix) if role_of(prefix) in _TEXT else _PICTURE
        else:
            role = "te1" if _CLIP.match(module) else "te3" if _T5.match(module) else _PICTURE
        if role in ("te1", "te2") and _CLIP.match(module):
            module = max(respell_module(role, module), key=len)
            if module.startswith("text_model.text_projection"):
                module = module.removeprefix("text_model.")
        components.setdefault(role, set()).add(component)
        other, _ = parts.setdefault(role, {}).setdefault(module, (site, update))
        if other != site:
            twice.append(f"{other} and {site}")
    for role_components in components.values():
        if any(map(is_second, role_components)) and len(role_components) > 1:
            names = " and ".join(sorted(role_components))
            raise AdapterError(
                f"{adapter.name}: has sites of {names}, and a file covers one of them. Write a "
                "file for each, with the sites of one component: "
                f"{option('part', ..., of='load(path')}."
            )
    if twice:
        raise AdapterError(f"{adapter.name}: sites that are one module:{listing(twice)}")
    return parts


def _without_open_clip(updates: Mapping[str, Update]) -> dict[str, Update]:
    """The updates of text encoders by transformers' names, which all programs read."""
    (unet, *_) = image_models("unet")
    own = {s: u for s, u in updates.items() if has_open_clip_names(split_component(s)[0])}
    rest = {site: update for site, update in updates.items() if site not in own}
    return rest | with_memory_names(own, unet.table)


def _shapes(base: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the modules of the base's denoiser."""
    if base is None:
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in base_model(base).shapes.items():
        component, module = split_component(name)
        if role_of(component) == _PICTURE and not is_second(component):
            shapes[module] = shape or ()
    return shapes


# HunyuanVideo's embedders, which ComfyUI renames.
_IN_COMFYUI = r"(time_in|guidance_in|t_embedder)\.mlp|c_embedder\.linear_"


def _renamed(
    program: Program,
    adapter: str,
    updates: Mapping[str, Update],
    model: ImageModel,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Update]:
    """Returns the denoiser's updates under the names of a program."""
    unknown = [module for module in updates if not model.has(module)]
    is_original = program.has_original_names(model)
    if unknown and (is_original or any(map(model.is_original, updates))):
        raise UnsupportedError(
            f"{adapter}: {program.name} would get names of {model.name}, whose table lacks:"
            f"{listing(unknown)}\nIf it is another model, say which: {option('names', ...)}. To "
            f"write the names as they are, pass {option('names', '')}."
        )
    if not is_original:
        return with_memory_names(updates, model.table, shapes)
    without = model.without
    if model.name == "hunyuan_video":
        in_comfyui = program is COMFYUI
        without = _IN_COMFYUI if in_comfyui else r"(time_in|guidance_in|embedder)\.(in|out)_layer"
    # Names that the program does not have go to diffusers' names first.
    without_name = {m: update for m, update in updates.items() if re.search(without, m)}
    with_name = {m: update for m, update in updates.items() if m not in without_name}
    updates = with_name | with_memory_names(without_name, model.table, shapes)
    renamed = with_original_names(updates, model.table, shapes, without=without)
    _warn_of_dense(adapter, updates, renamed)
    return renamed


def _warn_of_dense(
    adapter: str, updates: Mapping[str, Update], renamed: Mapping[str, Update]
) -> None:
    """Warns of updates that only a dense difference expresses, which makes a large file."""
    known = {module for module, update in updates.items() if isinstance(update, Delta)}
    dense = [module for module, update in renamed.items() if isinstance(update, Delta)]
    if dense and not known:
        warnings.warn(
            f"{adapter}: joined updates that only a dense difference expresses:{listing(dense)}\n"
            f"The file is exact and large; a LoRA is smaller: {to_lora_call()}.",
            stacklevel=5,
        )


def _key(
    program: Program,
    role: str,
    module: str,
    site: str,
    prefix: str | None,
    model: ImageModel | None,
    parts: _Parts,
) -> tuple[str, str]:
    """The prefix and the name of a module in a program's file."""
    component = split_component(site)[0]
    if role in _TEXT:
        if model is not None and model.name == "flux" and role == "te2":
            role = "te3"  # its second text encoder is T5
        is_given = prefix is not None and not component
        text_prefix = program.text[role]
        if program is KOHYA and role == "te1" and _has_one_text_encoder(model, parts):
            text_prefix = "lora_te"
        if program.text is COMFYUI_TEXT and not CLIP_MODULES.fullmatch(module):
            text_prefix = OTHER_CLIP.get(role, text_prefix)
        return (prefix or "" if is_given else text_prefix), module
    if role != _PICTURE:  # such as a ControlNet
        return component, module
    if prefix is not None:
        return prefix, module
    if program.picture is not None:
        return program.picture, module
    if model is not None:
        return model.table.prefix, module
    return (component if component in ("unet", "prior") or not component else "transformer"), module


def _has_one_text_encoder(model: ImageModel | None, parts: _Parts) -> bool:
    """Whether kohya's prefix of the first text encoder has no number."""
    if model is None:
        return "te2" not in parts and "te3" not in parts
    return model.name in ("sd15", "lumina2")


def _check_text(program: Program, adapter: str, parts: _Parts, model: ImageModel | None) -> None:
    """Refuses adapters of text encoders that diffusers' pipelines ignore."""
    if program is not DIFFUSERS or model is None:
        return
    unread = [
        site
        for role in _TEXT
        if role not in model.text_encoders
        for site, _ in parts.get(role, {}).values()
    ]
    if unread:
        raise UnsupportedError(
            f"{adapter}: diffusers loads no adapters of these text encoders for {model.name}:"
            f"{listing(unread)}\nLeave them out, or write the file for ComfyUI or kohya's scripts."
        )
