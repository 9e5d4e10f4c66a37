"""Finds the files with a model's weights in a folder of transformers or diffusers, with variants.

transformers writes ``model.safetensors``, or shards with ``model.safetensors.index.json``;
diffusers writes the same with ``diffusion_pytorch_model``. The name of a variant is inserted:
``model.fp16.safetensors``, ``model.safetensors.index.fp16.json``.
"""

import re
from pathlib import Path

__all__ = ["WEIGHTS", "is_index", "variants", "weights_files"]

# The files without a variant, by precedence in each library: transformers prefers a single file to
# an index, diffusers the index.
WEIGHTS: tuple[str, ...] = (
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
)
_STEM = r"(?:diffusion_pytorch_)?model"
# Older versions of diffusers write the second form of an index.
_VARIANT = re.compile(
    rf"{_STEM}\.(?P<single>[\w-]+)\.safetensors"
    rf"|{_STEM}\.safetensors\.index\.(?P<index>[\w-]+)\.json"
    rf"|{_STEM}\.(?P<old>[\w-]+)\.safetensors\.index\.json"
)
_SHARD = re.compile(r".*-\d{5}-of-\d{5}")


def weights_files(folder: Path, variant: str | None = None) -> tuple[Path, ...]:
    """Returns the file, or the index of shards, with a folder's weights.

    Args:
        folder: The folder.
        variant: The variant to read, such as ``"fp16"``; None for the files without a variant.

    Returns:
        One path; none if the folder has no weights in safetensors, or not this variant; several if
        no variant is given, and it has several, such as fp16 and bf16, and none without a variant.

    Example:
        >>> weights_files(Path("no/such/folder"))
        ()

    Source: diffusers' ``_add_variant`` and ``_fetch_index_file``.
    """
    if variant is not None:
        found = variants(folder)
        return (found[variant],) if variant in found else ()
    for name in WEIGHTS:
        if (folder / name).exists():
            return (folder / name,)
    return tuple(variants(folder).values())


def variants(folder: Path) -> dict[str, Path]:
    """Returns the file, or the index of shards, of each variant of a folder's weights.

    Args:
        folder: The folder.

    Example:
        >>> variants(Path("no/such/folder"))
        {}
    """
    found: dict[str, Path] = {}
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return {}
    for name in names:
        match = _VARIANT.fullmatch(name)
        variant = match and next(filter(None, match.groups()))
        if variant and not _SHARD.fullmatch(variant):
            # As in diffusers, a variant's index takes precedence over its single file.
            if variant not in found or is_index(folder / name):
                found[variant] = folder / name
    return found


def is_index(path: Path) -> bool:
    """Whether a path is an index of shards."""
    return path.suffix == ".json"
