"""The other files of a checkpoint's folder: which belong to the output, and which are copies.

A folder often holds the checkpoint's weights a second time: in another format, as an export, as
somebody else's names. After a merge those are still the base's, so they are left out. All else is
part of the model, weights of other modules included, and is copied: a sentence-transformers
folder's ``2_Dense/model.safetensors``, a projector, a value head.

How a copy is recognized, in this order:

- a folder that ``modules.json`` lists is a module of its own: nothing in it is a copy;
- a name by which a format saves a whole model (``pytorch_model.bin``, ``tf_model.h5``), at the top
  or in a folder that exporters write (``onnx/``, ``original/``);
- elsewhere the contents: tensors with the checkpoint's own names, shapes and numbers, or a
  PyTorch archive that names the checkpoint's own tensors.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from jaxmix.converters.checkpoints.duplicates import is_copy
from jaxmix.converters.checkpoints.huggingface import INDEX_FILE, Checkpoint
from jaxmix.errors import CheckpointError
from jaxmix.untrusted.files import parse_json, read_small

__all__ = ["side_files"]

# Folders into which exporters write a whole model in another form.
_EXPORTS = frozenset("coreml flax gguf mlx onnx openvino original rust tensorrt tf tflite".split())
# Suffixes of files of weights.
_WEIGHTS = frozenset(
    ".bin .ckpt .gguf .h5 .msgpack .npz .onnx .onnx_data .ot .pt .pth .safetensors .tflite".split()
)
# Names under which the formats save a whole model.
_WHOLE_MODEL = re.compile(
    r"(pytorch_model|model|diffusion_pytorch_model|consolidated)\b.*\.(bin|ckpt|pth?|safetensors)"
    r"|(tf_model|model)\b.*\.(h5|ckpt.*|tflite|npz)|flax_model.*\.msgpack|rust_model\.ot|.*\.gguf"
    r"|((encoder_|decoder_|decoder_with_past_|text_|vision_)?model)([._-].*)?\.onnx(_data)?"
    r"|openvino_.*\.(bin|xml)|weights.*\.npz"
)
# What a trainer needs to continue, which says nothing of the merged model.
_TRAINER = re.compile(r"(optimizer|scheduler|scaler|rng_state\w*|training_args)\.(pt|pth|bin)")
_INDEX = re.compile(r"(pytorch_model|model|tf_model|flax_model|consolidated)\b.*\.index\.json")
_STILL_THE_BASE = "weights that are still the base's"


def side_files(checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """Lists what else a checkpoint's folder holds: tokenizer, configs, pages, other modules.

    Hidden files, links that lead out of the folder (but for those of the hub's cache), copies of
    the checkpoint's own weights, a trainer's state and an adapter's files do not belong to a
    merged checkpoint.

    Args:
        checkpoint: the checkpoint, as it was read.

    Returns:
        The paths in the folder of the files to copy, and of those left out, each with the reason.
    """
    if checkpoint.is_file:
        return [], []
    modules = _modules(checkpoint.folder)
    reasons = {name: _reason(checkpoint, name, modules) for name in _names(checkpoint)}
    for name, reason in reasons.items():
        if reason is None and name.endswith(".index.json"):
            reasons[name] = _reason_of_index(checkpoint, name, reasons)
    found = [name for name, reason in reasons.items() if reason is None]
    return found, [f"{name}: {reason}" for name, reason in reasons.items() if reason]


def _names(checkpoint: Checkpoint) -> Iterator[str]:
    """The files of the folder beside the shards, by their paths in it; hidden ones are skipped."""
    shards = {shard.name for shard in checkpoint.shards}

    def refuse(error: OSError) -> None:
        raise CheckpointError(
            f"{checkpoint.name} can't be listed whole: {error}. Files of the checkpoint may lie "
            "there. Make it readable, or move it out of the folder."
        ) from error

    for above, folders, files in os.walk(checkpoint.folder, onerror=refuse):
        here = Path(above).relative_to(checkpoint.folder)
        linked = [name for name in folders if (Path(above) / name).is_symlink()]
        folders[:] = sorted(name for name in folders if name[0] != "." and name not in linked)
        for file in sorted([*files, *linked]):
            name = (here / file).as_posix()
            if file[0] != "." and name not in shards:
                yield name


def _modules(folder: Path) -> tuple[str, ...]:
    """The folders that a sentence-transformers ``modules.json`` lists, beside the top itself."""
    modules = _json(folder / "modules.json")
    paths = [module.get("path") for module in modules or () if isinstance(module, dict)]
    return tuple(path.strip("/") for path in paths if isinstance(path, str) and path.strip("/."))


def _reason(checkpoint: Checkpoint, name: str, modules: tuple[str, ...]) -> str | None:
    """Why a file is not copied; None if it is."""
    path = checkpoint.folder / name
    if path.is_symlink() and not _leads_inside(path, checkpoint.folder):
        return "a link that leads out of the folder"
    if not path.is_file():
        return "no plain file"
    # With these in the folder, transformers would put the adapter onto the merged model once more.
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
    return _STILL_THE_BASE if is_weights and is_copy(path, checkpoint.tensors) else None


def _reason_of_index(
    checkpoint: Checkpoint, name: str, reasons: dict[str, str | None]
) -> str | None:
    """Why an index is not copied: none of the files that it lists is in the output."""
    if checkpoint.indexed and name == INDEX_FILE:
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
    """A JSON file's list or object; None if there is none."""
    try:
        data = parse_json(read_small(path))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, list | dict) else None


def _leads_inside(link: Path, folder: Path) -> bool:
    """Whether a link ends in the folder, or in the hub's cache, where all files are links."""
    end, home = link.resolve(), folder.resolve()
    if end.is_relative_to(home):
        return True
    return home.parent.name == "snapshots" and end.is_relative_to(home.parents[1] / "blobs")
