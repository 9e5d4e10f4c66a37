"""Names of an adapter's modules in the files of each program that reads them.

Programs differ in three ways: in the scheme of a model's modules, the original project's or
diffusers' (``converters/names/images``); in what they write before the name of a component; and in
dots or underscores.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.common.base_model import base_model
from jaxmix.converters.adapters.lycoris.parts import (
    is_second,
    respell_module,
    role_of,
    split_component,
)
from jaxmix.converters.names.images.models import ImageModel, fitting_models, image_models
from jaxmix.errors import AdapterError, LayoutError, UnsupportedError, listing, option
from jaxmix.families import Delta, Update
from jaxmix.placement.joining import with_memory_names, with_original_names
from jaxmix.placement.naming import Names

__all__ = ["COMFYUI", "DIFFUSERS", "KOHYA", "ORIGINAL", "NamedFor", "Program", "named_for"]

_PICTURE = "unet"
_TEXT = ("te1", "te2", "te3")
# Modules of CLIP's and T5's text encoders, whose names tell the component if nothing else does.
_CLIP = re.compile(
    r"(text_model\.)?(encoder\.layers|embeddings|final_layer_norm)\.|text_projection"
)
_T5 = re.compile(r"encoder\.(block\.\d+\.layer|final_layer_norm)\.|shared$")


@dataclass(frozen=True)
class Program:
    """A program that reads adapters.

    Args:
        name: Its name in messages.
        is_original: Whether it has the original project's names of modules, not diffusers'.
        picture: What it writes before the names of the model that makes the picture; None if that
            is the name of the component in diffusers.
        text: The same for the text encoders, by role.
    """

    name: str
    is_original: bool
    picture: str | None
    text: Mapping[str, str]


_COMFYUI_TEXT = {
    "te1": "text_encoder",
    "te2": "text_encoder_2",
    "te3": "text_encoders.t5xxl.transformer",
}
# ComfyUI has these of CLIP's modules by diffusers' component, whichever CLIP it is.
_CLIP_MODULES = re.compile(r".*\.(mlp\.fc[12]|self_attn\.(q|k|v|out)_proj)")
_OTHER_CLIP = {
    "te1": "text_encoders.clip_l.transformer",
    "te2": "text_encoders.clip_g.transformer",
}

COMFYUI = Program("ComfyUI", True, "diffusion_model", _COMFYUI_TEXT)
DIFFUSERS = Program(
    "diffusers",
    False,
    None,
    {"te1": "text_encoder", "te2": "text_encoder_2", "te3": "text_encoder_3"},
)
KOHYA = Program(
    "kohya's scripts",
    True,
    "lora_unet",
    {"te1": "lora_te1", "te2": "lora_te2", "te3": "lora_te3"},
)
ORIGINAL = Program("the original project", True, "", _COMFYUI_TEXT)


@dataclass(frozen=True)
class NamedFor:
    """An adapter under the names of a program.

    Args:
        updates: ``{(prefix, module): update}``; the module's name has dots.
        sites: The adapter's sites that each became.
        model: The model that makes the picture; None if no table has its names.
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
        adapter: The adapter, with sites by any program's names, with or without a component.
        prefix: The prefix of the sites that name no component.
        names: The model's name or config; ``""`` to keep the names of modules; None to find it.
        base: The adapter's base, as in `jaxmix.load`, which tells the model and sizes.

    Raises:
        AdapterError: If it is not an adapter, has no sites, or is for two models of one role.
        LayoutError: If several models fit whose names differ.
        UnsupportedError: If an update can't be brought to the names, or the program reads no
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
        model = _model(program, adapter.name, parts, names, shapes)
    updates: dict[tuple[str, str], Update] = {}
    sites: dict[tuple[str, str], str] = {}
    for role, own in parts.items():
        made = {module: update for module, (_, update) in own.items()}
        if role == _PICTURE and model is not None:
            made = _renamed(program, adapter.name, made, model, shapes)
        for module, update in made.items():
            site = own[module][0] if module in own else module
            key = _key(program, role, module, site, prefix, model, parts)
            sites[key] = f"{sites[key]} and {site}" if key in sites else site
            updates[key] = update
    if twice := [site for site in sites.values() if " and " in site]:
        raise AdapterError(f"{adapter.name}: sites that are one module:{listing(twice)}")
    _check_text(program, adapter.name, parts, model)
    return NamedFor(updates, sites, model)


# The sites of each role, by module: ``{role: {module: (site, update)}}``.
_Parts = dict[str, dict[str, tuple[str, Update]]]


def _by_role(adapter: Adapter, prefix: str | None) -> _Parts:
    """The updates of each component, by module."""
    parts: _Parts = {}
    components: dict[str, set[str]] = {}
    for site, update in adapter.updates.items():
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
        parts.setdefault(role, {})[module] = (site, update)
    for found in components.values():
        if any(map(is_second, found)) and len(found) > 1:
            names = " and ".join(sorted(found))
            raise AdapterError(
                f"{adapter.name}: has sites of {names}, and a file covers one of them. Write a "
                f"file for each, with the sites of one component ({option('part', '…')} of load)."
            )
    return parts


def _shapes(base: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of the modules of the base's model that makes the picture."""
    if base is None:
        return {}
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in base_model(base).shapes.items():
        component, module = split_component(name)
        if role_of(component) == _PICTURE and not is_second(component):
            found[module] = shape or ()
    return found


def _model(
    program: Program,
    adapter: str,
    parts: _Parts,
    names: Names,
    shapes: Mapping[str, tuple[int, ...]],
) -> ImageModel | None:
    """The model that makes the picture, of those with most of the modules."""
    modules = tuple(parts.get(_PICTURE, ()))
    models = image_models(names)
    if "te2" in parts and any(model.name == "sdxl" for model in models):
        models = [model for model in models if model.name not in ("sd15", "sdxl_refiner")]
    fitting = fitting_models(models, modules)
    if shapes and len(fitting) > 1:
        # The base's own names decide; its leaves without an update are of no account otherwise.
        fitting = fitting_models(fitting, tuple(shapes)) or fitting
    if not fitting:
        return models[0] if names is not None and len(models) == 1 else None
    answers = {
        str(_answer(program, model, modules, "te1" in parts)): model for model in reversed(fitting)
    }
    if len(answers) > 1:
        found = sorted(answers.values(), key=lambda model: model.name)
        raise LayoutError(
            f"{adapter}: its modules ({modules[0]} …) may be those of "
            f"{' or '.join(model.name for model in found)}, which have different names in files "
            f"of {program.name}. Say which model it is: {option('names', repr(found[0].name))}, or "
            f"give its base: {option('base', '…')}."
        )
    return fitting[0]


def _answer(program: Program, model: ImageModel, modules: tuple[str, ...], has_text: bool) -> Any:
    """What a file depends on: the names of modules, of components, and the text encoders."""
    text = (model.text_encoders, model.name == "flux") if has_text else ()
    if not _is_original(program, model):
        pieces = [model.templates.pieces(f"{module}.weight") for module in modules]
        if not any(map(model.is_original, modules)):
            return text
        return text, model.table.prefix, pieces
    names = []
    for module in modules:
        found = [item for item in model.templates.stored(module) if not _without(model, item[0])]
        names.append(module if model.templates.has_source(module) or not found else found[0][0])
    return text, names


def _is_original(program: Program, model: ImageModel) -> bool:
    """Whether a program has the original names of a model."""
    return program.is_original and not (program is KOHYA and model.is_renamed_by_kohya)


def _without(model: ImageModel, name: str) -> bool:
    return re.search(model.without, name) is not None


# HunyuanVideo's embedders, which ComfyUI renames.
_IN_COMFYUI = r"(time_in|guidance_in|t_embedder)\.mlp|c_embedder\.linear_"


def _renamed(
    program: Program,
    adapter: str,
    updates: Mapping[str, Update],
    model: ImageModel,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Update]:
    """The updates of the model that makes the picture, by the names of a program."""
    unknown = [module for module in updates if not model.has(module)]
    is_original = _is_original(program, model)
    if unknown and (is_original or any(map(model.is_original, updates))):
        raise UnsupportedError(
            f"{adapter}: {program.name} would get names of {model.name}, whose table lacks:"
            f"{listing(unknown)}\nIf it is another model, say which: {option('names', '…')}. To "
            f"write the names as they are, pass {option('names', repr(''))}."
        )
    if not is_original:
        return with_memory_names(updates, model.table)
    without = model.without
    if model.name == "hunyuan_video":
        in_comfyui = program is COMFYUI
        without = _IN_COMFYUI if in_comfyui else r"(time_in|guidance_in|embedder)\.(in|out)_layer"
    # Names that the program does not have go to diffusers' names first.
    other = {m: update for m, update in updates.items() if re.search(without, m)}
    rest = {m: update for m, update in updates.items() if m not in other}
    updates = rest | with_memory_names(other, model.table)
    made = with_original_names(updates, model.table, shapes, without=without)
    _warn_of_dense(adapter, updates, made)
    return made


def _warn_of_dense(adapter: str, updates: Mapping[str, Update], made: Mapping[str, Update]) -> None:
    """Warns of updates for which no family but a dense difference is left, which takes space."""
    known = {module for module, update in updates.items() if isinstance(update, Delta)}
    dense = [module for module, update in made.items() if isinstance(update, Delta)]
    if dense and not known:
        warnings.warn(
            f"{adapter}: updates of weights that are one there, and that only a dense difference "
            f"expresses:{listing(dense)}\nThe file is exact and large; a LoRA is smaller: "
            "jaxmix.to_lora(adapter, params).",
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
        given = prefix is not None and not component
        own = program.text[role]
        if program is KOHYA and role == "te1" and _has_one_text_encoder(model, parts):
            own = "lora_te"
        if program.text is _COMFYUI_TEXT and not _CLIP_MODULES.fullmatch(module):
            own = _OTHER_CLIP.get(role, own)
        return (prefix or "" if given else own), module
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
