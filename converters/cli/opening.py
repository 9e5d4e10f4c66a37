"""How a merged model is opened by the library that it is for."""

import json
from pathlib import Path

from jaxmix.converters.checkpoints.pipelines import component_folders, is_pipeline
from jaxmix.models.checkpoint import read_json
from jaxmix.weight_files import WEIGHTS, variants, weights_files

__all__ = ["opening"]


def opening(out: Path) -> str | None:
    """Returns the line of Python that opens a merged model.

    Args:
        out: The folder or file of the merged model.

    Returns:
        A call of transformers or diffusers, by the class that the folder's config names; None if
        it names none.
    """
    if not out.is_dir():
        return None
    path = json.dumps(str(out), ensure_ascii=False)
    if variant := _variant(out):
        path += f', variant="{variant}"'
    if is_pipeline(out):
        return f"diffusers.DiffusionPipeline.from_pretrained({path})"
    if not (out / "config.json").is_file():
        return None
    config = read_json(out / "config.json")
    architectures = config.get("architectures")
    library, name = "diffusers", config.get("_class_name")
    if isinstance(architectures, list) and len(architectures) == 1:
        library, name = "transformers", architectures[0]
    if not isinstance(name, str) or not name.isidentifier():
        return None
    return f"{library}.{name}.from_pretrained({path})"


def _variant(out: Path) -> str | None:
    """Returns the variant that a model, or a component of it, has no other weights than."""
    folders = component_folders(out).values() if is_pipeline(out) else [out]
    for folder in folders:
        if any(file.name not in WEIGHTS for file in weights_files(folder)):
            return next(iter(variants(folder)))
    return None
