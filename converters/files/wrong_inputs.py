"""Recognizes inputs of the wrong kind: a model, an adapter or a GGUF file."""

from pathlib import Path

from jaxmix.weight_files import weights_files

__all__ = ["describe_non_adapter", "describe_non_base", "is_adapter", "is_model"]

_CONFIG, _ADAPTER_CONFIG = "config.json", "adapter_config.json"
_PIPELINE = "model_index.json"
_GGUF = b"GGUF"


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return _has(path, _ADAPTER_CONFIG) and not is_model(path)


def is_model(path: Path) -> bool:
    """Whether a folder holds a model's weights, or a pipeline of models."""
    try:
        return _has(path, _PIPELINE) or any(file.is_file() for file in weights_files(path))
    except (OSError, ValueError):
        return False


def _has(folder: Path, name: str) -> bool:
    try:
        return (folder / name).is_file()
    except (OSError, ValueError):
        return False


def describe_non_adapter(path: Path) -> str | None:
    """Describes what a path is instead of an adapter, and what to do.

    Args:
        path: A folder or file that no format recognizes.

    Returns:
        A message to follow the path; None if the kind is unknown.
    """
    if is_model(path) or _has(path, _CONFIG):
        return (
            "is a model, not an adapter. Use the folder of an adapter here, and pass the model as "
            "the base."
        )
    return _gguf(path, "the original adapter in safetensors")


def describe_non_base(path: Path) -> str | None:
    """Describes what a path is instead of a base model, and what to do.

    Args:
        path: A folder or file that is not a Hugging Face checkpoint.

    Returns:
        A message to follow the path; None if the kind is unknown.
    """
    if is_adapter(path):
        return (
            f"is an adapter ({_ADAPTER_CONFIG}), not a model. Use the model that it was trained "
            "on, a Hugging Face folder with safetensors."
        )
    return _gguf(path, "the original Hugging Face folder with safetensors")


def _gguf(path: Path, instead: str) -> str | None:
    """Describes llama.cpp's files; None for other files."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                is_gguf = path.suffix == ".gguf" or file.read(len(_GGUF)) == _GGUF
            description = "is a GGUF file"
        else:
            names = [entry.suffix for entry in path.iterdir()]
            is_gguf = ".gguf" in names and ".safetensors" not in names
            description = "holds GGUF files"
    except OSError:
        return None
    return f"{description}, which jaxmix does not read. Use {instead}." if is_gguf else None
