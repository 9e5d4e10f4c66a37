"""Finds the image or video model of an adapter, by the names of its modules."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from jaxmix.converters.adapters.lycoris.program import Program
from jaxmix.converters.names.images.models import ImageModel, fitting_models, image_models
from jaxmix.errors import LayoutError, option
from jaxmix.placement.naming import Names

__all__ = ["chosen_model"]


def chosen_model(
    program: Program,
    adapter: str,
    modules: tuple[str, ...],
    roles: Collection[str],
    names: Names,
    shapes: Mapping[str, tuple[int, ...]],
) -> ImageModel | None:
    """Returns the image model that has most of an adapter's modules.

    Args:
        program: The program for which names are needed.
        adapter: The adapter's name, for messages.
        modules: Its modules in the denoiser, without a component.
        roles: The roles of its components.
        names: The model's name or config; None to find it.
        shapes: The shapes of the base's modules; empty without one.

    Returns:
        The model; None if no table has the modules.

    Raises:
        LayoutError: If several models fit and their names differ, or there is no such model.
    """
    models = image_models(names)
    if "te2" in roles and any(model.name == "sdxl" for model in models):
        models = [model for model in models if model.name not in ("sd15", "sdxl_refiner")]
    fitting = fitting_models(models, modules)
    if shapes and len(fitting) > 1:
        # The base's own names decide, including those of modules without an update.
        fitting = fitting_models(fitting, tuple(shapes)) or fitting
    if not fitting:
        return models[0] if names is not None and len(models) == 1 else None
    answers = {
        str(_answer(program, model, modules, "te1" in roles)): model for model in reversed(fitting)
    }
    if len(answers) > 1:
        candidates = sorted(answers.values(), key=lambda model: model.name)
        raise LayoutError(
            f"{adapter}: its modules ({modules[0]} …) may be those of "
            f"{' or '.join(model.name for model in candidates)}, which have different names in "
            f"files of {program.name}. Say which model it is: "
            f"{option('names', candidates[0].name)}, or pass its base: {option('base', ...)}."
        )
    return fitting[0]


def _answer(program: Program, model: ImageModel, modules: tuple[str, ...], has_text: bool) -> Any:
    """Returns what determines a file: the names of modules and components, and text encoders."""
    text = (model.text_encoders, model.name == "flux") if has_text else ()
    if not program.has_original_names(model):
        pieces = [model.templates.pieces(f"{module}.weight") for module in modules]
        if not any(map(model.is_original, modules)):
            return text
        return text, model.table.prefix, pieces
    names = []
    for module in modules:
        stored = [item for item in model.templates.stored(module) if not _without(model, item[0])]
        names.append(module if model.templates.has_source(module) or not stored else stored[0][0])
    return text, names


def _without(model: ImageModel, name: str) -> bool:
    return re.search(model.without, name) is not None
