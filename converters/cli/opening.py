"""How a merged model is opened by the library that it is for."""

import json
from pathlib import Path

from jaxmix.models.checkpoint import read_json

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
    if (out / "model_index.json").is_file():
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
