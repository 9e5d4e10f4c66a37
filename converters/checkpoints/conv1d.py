"""Which modules of a Hugging Face checkpoint are transformers' ``Conv1D``, by its config.json."""

import re
from collections.abc import Iterator
from typing import Any

from jaxmix.converters.checkpoints.huggingface import CONFIG_FILE, Checkpoint
from jaxmix.placement.orientation import CONV1D_NAMES, OutAxes
from jaxmix.untrusted.files import parse_json, read_small

__all__ = ["CONV1D_TYPES", "conv1d_pattern"]

# The model types of transformers that have modules of class Conv1D.
CONV1D_TYPES = frozenset(
    {"clvp", "clvp_decoder", "decision_transformer", "gpt2", "imagegpt", "openai-gpt"}
)
# Composite models, in which a part's name in config.json is its module's too.
_PARTS = frozenset({"encoder", "decoder"})


def conv1d_pattern(checkpoint: Checkpoint) -> str | None:
    """The regular expression of the modules whose weight is stored as (in, out).

    Args:
        checkpoint: The base.

    Returns:
        What `jaxmix.Layout` takes as ``conv1d``; None where config.json does not tell, since there
        is none, the model's own code defines its classes, or a bias speaks against it.
    """
    if checkpoint.is_file:
        return None
    try:
        config = parse_json(read_small(checkpoint.folder / CONFIG_FILE))
    except (OSError, ValueError):
        return None
    types = list(_types(config))
    if not types or any("auto_map" in part for _, _, part in types):
        return None
    names = "|".join(sorted(CONV1D_NAMES))
    found = {
        rf"(.*\.)?{re.escape(path)}\..*" if path else ".*"
        for path, name, _ in types
        if name in CONV1D_TYPES
    }
    pattern = "|".join(rf"{path}\b({names})" for path in sorted(found))
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    is_so = all(
        bool(re.fullmatch(pattern, name.removesuffix(".weight"))) == (axis == 1)
        for name, axis in OutAxes(shapes).known
    )
    return pattern if is_so else None


def _types(config: Any, path: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """A config and those in it: the path of the part's module where it is known, type, config."""
    if not isinstance(config, dict):
        return
    if isinstance(name := config.get("model_type"), str):
        yield path, name, config
    for key, value in config.items():
        if isinstance(value, dict):
            inner = f"{path}.{key}" if path and key in _PARTS else key if key in _PARTS else path
            yield from _types(value, inner)
