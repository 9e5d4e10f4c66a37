"""Finds the ``Conv1D`` modules of a Hugging Face checkpoint from its config.json."""

import re
from collections.abc import Iterator
from typing import Any

from jaxmix.converters.checkpoints.huggingface import CONFIG_FILE, Checkpoint
from jaxmix.placement.orientation import CONV1D_NAMES, OutAxes
from jaxmix.untrusted.files import parse_json, read_small

__all__ = ["CONV1D_TYPES", "conv1d_pattern"]

# The model types of transformers that have Conv1D modules.
CONV1D_TYPES = frozenset(
    {"clvp", "clvp_decoder", "decision_transformer", "gpt2", "imagegpt", "openai-gpt"}
)
# The parts of composite models that have the same name in config.json and as modules.
_PARTS = frozenset({"encoder", "decoder"})


def conv1d_pattern(checkpoint: Checkpoint) -> str | None:
    """Returns a regular expression for the modules whose weight is stored as (in, out).

    Args:
        checkpoint: The base.

    Returns:
        The ``conv1d`` argument of `jaxmix.Layout`; None if config.json does not determine it: it
        is missing, the repository's own code defines the classes, or a bias contradicts it.
    """
    if checkpoint.is_file:
        return None
    try:
        config = parse_json(read_small(checkpoint.folder / CONFIG_FILE))
    except (OSError, ValueError):
        return None
    # The models of diffusers have no Conv1D of transformers.
    types = list(_types(config)) or [("", name, {}) for name in _diffusers_class(config)]
    if not types or any("auto_map" in part for _, _, part in types):
        return None
    names = "|".join(sorted(CONV1D_NAMES))
    patterns = {
        rf"(.*\.)?{re.escape(path)}\..*" if path else ".*"
        for path, name, _ in types
        if name in CONV1D_TYPES
    }
    pattern = "|".join(rf"{path}\b({names})" for path in sorted(patterns))
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    is_consistent = all(
        bool(re.fullmatch(pattern, name.removesuffix(".weight"))) == (axis == 1)
        for name, axis in OutAxes(shapes).known
    )
    return pattern if is_consistent else None


def _diffusers_class(config: Any) -> Iterator[str]:
    """Yields the class that the config of one of diffusers' models names."""
    if isinstance(config, dict) and isinstance(name := config.get("_class_name"), str):
        yield name


def _types(config: Any, path: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields a config and its nested ones: module path where known, model type, config."""
    if not isinstance(config, dict):
        return
    if isinstance(name := config.get("model_type"), str):
        yield path, name, config
    for key, value in config.items():
        if isinstance(value, dict):
            inner = f"{path}.{key}" if path and key in _PARTS else key if key in _PARTS else path
            yield from _types(value, inner)
