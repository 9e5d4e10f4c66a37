"""Name maps of image and video models: the original projects' names, and those of diffusers.

There is one data file per model. The names on disk are those of the project that published the
model, which most trainers use; the names in memory are those of diffusers.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jaxmix.placement.name_map import NameMap
from jaxmix.placement.templates import Template, Templates

__all__ = ["image_map", "image_maps", "other_names"]

# The prefixes of a model's names in single-file checkpoints and in ComfyUI's files.
_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
# The components of diffusers' pipelines to whose modules these maps apply.
_COMPONENTS = ("transformer.", "transformer_2.", "unet.")


@cache
def image_maps() -> tuple[NameMap, ...]:
    """Returns the name maps of all image and video models."""
    return tuple(_read(file.stem, _data(file)) for file in _files())


def image_map(config: Mapping[str, Any]) -> NameMap | None:
    """Returns the name map of an image or video model.

    Args:
        config: The config of diffusers' model with its ``_class_name``, or with the name of a data
            file as ``model_type``.
    """
    for file, names in zip(_files(), image_maps(), strict=True):
        classes = _data(file)["classes"]
        if config.get("_class_name") in classes or config.get("model_type") == names.name:
            return names
    return None


def other_names(modules: Collection[str]) -> Iterator[Mapping[str, tuple[str, ...]]]:
    """Yields the names that the modules of an image or video model have in the other scheme.

    Args:
        modules: The modules' names, with or without the name of a component in front.

    Yields:
        ``{other name: modules}``: the original project's names of modules that have diffusers'
        names, and the reverse, for each model that has such modules, the model with most of them
        first. The names are without the component.
    """
    inside = {_without_component(module): module for module in modules}
    renamings: list[Mapping[str, tuple[str, ...]]] = []
    for names in image_maps():
        table = names.templates
        assert table is not None
        originals = table.sources(inside)
        renamings.append({name: own for name, own in originals.items() if name not in inside})
        in_memory = {
            piece.name.removesuffix(".weight"): (module,)
            for module in inside
            for piece in table.pieces(table.tensor_of(module))
        }
        # A module may have several names in the original scheme, such as those of XLabs.
        aliases = {name: () for name in table.sources(in_memory)} if renamings[-1] == {} else {}
        both = {**aliases, **in_memory}
        renamings.append({name: own for name, own in both.items() if name not in inside})
    yield from sorted(filter(None, renamings), key=len, reverse=True)


def _without_component(module: str) -> str:
    """A module's name without the pipeline's component."""
    component = next((name for name in _COMPONENTS if module.startswith(name)), "")
    return module.removeprefix(component)


def _files() -> list[Path]:
    return sorted(Path(__file__).parent.glob("*.json"))


@cache
def _data(file: Path) -> Mapping[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _read(name: str, data: Mapping[str, Any]) -> NameMap:
    """Converts a data file to a name map."""
    rows = []
    for row in data["modules"]:
        settings = row[-1] if isinstance(row[-1], dict) else {}
        source, *targets = [item for item in row if isinstance(item, str)]
        ratio = tuple(settings.get("ratio", ()))
        order = settings.get("swap", False), settings.get("swap_ratio", 0)
        # A row with a single name has the same name in both schemes.
        flags = settings.get("tensor", False), settings.get("transposed", False)
        rows.append(Template(source, tuple(targets) or (source,), ratio, *order, *flags))
    suffixes = tuple(data.get("suffixes", {}).items())
    table = Templates(tuple(rows), _PREFIXES, suffixes, _COMPONENTS)
    return NameMap(name, prefix=data["component"], templates=table)
