"""Recognizes what was given in place of an adapter or a base: a model, an adapter, a GGUF file."""

from pathlib import Path

__all__ = ["is_adapter", "is_model", "no_adapter", "no_base"]

_CONFIG, _ADAPTER_CONFIG = "config.json", "adapter_config.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_GGUF = b"GGUF"


def is_adapter(path: Path) -> bool:
    """Whether a folder is an adapter's, and holds no model."""
    return _has(path, _ADAPTER_CONFIG) and not is_model(path)


def is_model(path: Path) -> bool:
    """Whether a folder holds a model's weights."""
    return any(_has(path, name) for name in _WEIGHTS)


def _has(folder: Path, name: str) -> bool:
    try:
        return (folder / name).is_file()
    except (OSError, ValueError):
        return False


def no_adapter(path: Path) -> str | None:
    """What something is instead of an adapter, and what to do.

    Args:
        path: a folder or file that no format recognises.

    Returns:
        A text that follows its name; None if it is nothing known.
    """
    if is_model(path) or _has(path, _CONFIG):
        return (
            "is a model, not an adapter. Give the folder of an adapter; the model that it is for "
            "is the base."
        )
    return _gguf(path, "the adapter in safetensors from which it was made")


def no_base(path: Path) -> str | None:
    """What something is instead of a base model, and what to do.

    Args:
        path: a folder or file that is no Hugging Face checkpoint.

    Returns:
        A text that follows its name; None if it is nothing known.
    """
    if is_adapter(path):
        return (
            f"is an adapter ({_ADAPTER_CONFIG}), not a model. Give the model that it was trained "
            "on, a Hugging Face folder with safetensors."
        )
    return _gguf(path, "the Hugging Face folder with safetensors from which it was made")


def _gguf(path: Path, instead: str) -> str | None:
    """What to say of llama.cpp's files."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                is_gguf = path.suffix == ".gguf" or file.read(len(_GGUF)) == _GGUF
            what = "is a GGUF file"
        else:
            names = [entry.suffix for entry in path.iterdir()]
            is_gguf = ".gguf" in names and ".safetensors" not in names
            what = "holds GGUF files"
    except OSError:
        return None
    return f"{what}, which jaxmix does not read. Give {instead}." if is_gguf else None
