"""The other files of a checkpoint's folder: which belong to the output, and which are duplicates.

A folder often holds duplicates of the checkpoint's weights: in another format, as an export, or
under another library's names. They would still hold the base's weights after a merge, so they are
left out. All other files are copied, including weights of other modules, such as a
sentence-transformers folder's ``2_Dense/model.safetensors``, a projector or a value head.

Duplicates are recognized by these rules, in this order:

- a folder that ``modules.json`` lists is a separate module, so it contains no duplicates;
- a name under which a format saves a whole model (``pytorch_model.bin``, ``tf_model.h5``), at the
  top level or in a folder written by exporters (``onnx/``, ``original/``);
- elsewhere the contents: tensors with the checkpoint's own names, shapes and numbers, or a
  PyTorch archive with the names of the checkpoint's tensors.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from jaxmix.converters.checkpoints.duplicates import is_copy
from jaxmix.converters.checkpoints.huggingface import Checkpoint
from jaxmix.errors import CheckpointError
from jaxmix.untrusted.files import parse_json, read_small

__all__ = ["all_files", "side_files"]

# Folders into which exporters write a whole model in another format.
_EXPORTS = frozenset("coreml flax gguf mlx onnx openvino original rust tensorrt tf tflite".split())
# Suffixes of files with weights.
_WEIGHTS = frozenset(
    ".bin .ckpt .gguf .h5 .msgpack .npz .onnx .onnx_data .ot .pt .pth .safetensors .tflite".split()
)
# Names under which formats save a whole model.
_WHOLE_MODEL = re.compile(
    r"(pytorch_model|model|diffusion_pytorch_model|consolidated)\b.*\.(bin|ckpt|pth?|safetensors)"
    r"|(tf_model|model)\b.*\.(h5|ckpt.*|tflite|npz)|(diffusion_)?flax_model.*\.msgpack|rust_model\.ot|.*\.gguf"
    r"|((encoder_|decoder_|decoder_with_past_|text_|vision_)?model)([._-].*)?\.onnx(_data)?"
    r"|openvino_.*\.(bin|xml)|weights.*\.npz"
)
# The state of a trainer, which does not belong to the merged model.
_TRAINER = re.compile(r"(optimizer|scheduler|scaler|rng_state\w*|training_args)\.(pt|pth|bin)")
_ANY_INDEX = re.compile(r"\.index(\.[\w-]+)?\.json$")
_INDEX = re.compile(r"(pytorch_model|model|tf_model|flax_model|consolidated)\b.*\.index\.json")
_STILL_THE_BASE = "weights that are still the base's"
_UNUSED = "weights at the top of a pipeline, which none of its components uses"


def side_files(checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """Lists the other files of a checkpoint's folder: tokenizer, configs, pages, other modules.

    Hidden files, links that point out of the folder (except those of the hub's cache), duplicates
    of the checkpoint's own weights, a trainer's state and an adapter's files do not belong to a
    merged checkpoint. Of a pipeline, the files of components with weights are not listed, since
    these are checkpoints of their own.

    Args:
        checkpoint: The checkpoint, as it was read.

    Returns:
        The paths in the folder of the files to copy, and of the files to leave out, each followed
        by the reason.
    """
    if checkpoint.is_file:
        return [], []
    modules = _modules(checkpoint.folder)
    reasons = {name: _reason(checkpoint, name, modules) for name in _names(checkpoint)}
    for name, reason in reasons.items():
        if reason is None and _ANY_INDEX.search(name):
            reasons[name] = _reason_of_index(checkpoint, name, reasons)
    copied = [name for name, reason in reasons.items() if reason is None]
    return copied, [f"{name}: {reason}" for name, reason in reasons.items() if reason]


def all_files(checkpoint: Checkpoint) -> list[str]:
    """Lists the other files of a checkpoint that is copied unchanged, duplicates included."""
    return [
        name for name in _names(checkpoint) if _is_regular(checkpoint.folder / name, checkpoint)
    ]


def _is_regular(path: Path, checkpoint: Checkpoint) -> bool:
    """Whether a path is a regular file of the checkpoint's folder."""
    return path.is_file() and not (
        path.is_symlink() and not _points_inside(path, checkpoint.folder)
    )


def _names(checkpoint: Checkpoint) -> Iterator[str]:
    """Yields the paths in the folder of all files except shards and hidden files."""
    shards = {shard.name for shard in checkpoint.shards}

    def refuse(error: OSError) -> None:
        raise CheckpointError(
            f"{checkpoint.name} can't be listed completely: {error}. The unreadable folder may "
            "hold files of the checkpoint. Make it readable, or move it elsewhere."
        ) from error

    for above, folders, files in os.walk(checkpoint.folder, onerror=refuse):
        inner = Path(above).relative_to(checkpoint.folder)
        linked = [name for name in folders if (Path(above) / name).is_symlink()]
        folders[:] = sorted(name for name in folders if name[0] != "." and name not in linked)
        for file in sorted([*files, *linked]):
            name = (inner / file).as_posix()
            is_ours = name in shards or name.partition("/")[0] in checkpoint.components
            if file[0] != "." and not is_ours:
                yield name


def _modules(folder: Path) -> tuple[str, ...]:
    """Returns the folders that a sentence-transformers ``modules.json`` lists, except the top."""
    modules = _json(folder / "modules.json")
    paths = [module.get("path") for module in modules or () if isinstance(module, dict)]
    return tuple(path.strip("/") for path in paths if isinstance(path, str) and path.strip("/."))


def _reason(checkpoint: Checkpoint, name: str, modules: tuple[str, ...]) -> str | None:
    """Returns the reason why a file is not copied; None if it is copied."""
    path = checkpoint.folder / name
    if path.is_symlink() and not _points_inside(path, checkpoint.folder):
        return "a link that points out of the folder"
    if not path.is_file():
        return "not a regular file"
    # With these files, transformers would apply the adapter to the merged model again.
    if name == "adapter_config.json":
        return "an adapter's config"
    if re.fullmatch(r"adapter_model.*\.(safetensors|bin)", name):
        return "an adapter's weights"
    folder = PurePosixPath(name).parent
    if any(folder.is_relative_to(module) for module in modules):
        return None
    if _TRAINER.fullmatch(path.name):
        return "a trainer's state"
    is_export = folder.parts and re.split(r"[-_.]", folder.parts[0].lower())[0] in _EXPORTS
    is_weights = path.suffix in _WEIGHTS
    if is_export and (is_weights or _WHOLE_MODEL.fullmatch(path.name)):
        return _STILL_THE_BASE
    if not folder.parts and _WHOLE_MODEL.fullmatch(path.name):
        return _STILL_THE_BASE
    if not folder.parts and is_weights and checkpoint.components:
        return _UNUSED
    return _STILL_THE_BASE if is_weights and is_copy(path, checkpoint.tensors) else None


def _reason_of_index(
    checkpoint: Checkpoint, name: str, reasons: dict[str, str | None]
) -> str | None:
    """Returns the reason why an index is not copied: the output has none of its files."""
    if name == checkpoint.index:
        return None
    index = _json(checkpoint.folder / name)
    listed = index.get("weight_map") if isinstance(index, dict) else None
    folder = PurePosixPath(name).parent
    if not isinstance(listed, dict):
        is_stale = not folder.parts and _INDEX.fullmatch(name)
        return _STILL_THE_BASE if is_stale else None
    files = {str(folder / str(file)) for file in listed.values()}
    return None if any(reasons.get(file, "absent") is None for file in files) else _STILL_THE_BASE


def _json(path: Path) -> list | dict | None:
    """Reads a JSON file's list or object; None if it is missing or invalid."""
    try:
        data = parse_json(read_small(path))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, list | dict) else None


def _points_inside(link: Path, folder: Path) -> bool:
    """Whether a link points into the folder, or into the hub's cache, whose files are all links."""
    end, home = link.resolve(), folder.resolve()
    if end.is_relative_to(home):
        return True
    # The folder may be a component of a pipeline in the cache.
    tops = (folder for folder in (home, *home.parents) if folder.parent.name == "snapshots")
    top = next(tops, None)
    return top is not None and end.is_relative_to(top.parents[1] / "blobs")
