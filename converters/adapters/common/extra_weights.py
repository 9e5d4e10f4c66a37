"""Finds files of weights next to an adapter that the adapter's reader would not read.

Trainers save trained weights next to an adapter that PEFT itself does not read: LLaVA's
``non_lora_trainables.bin``, TRL's ``value_head.safetensors``. Without them the model differs from
the trained one. Such a file raises an error unless it is read, or named in ``ignore=``.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from jaxmix.converters.files.torch_files import is_torch_file
from jaxmix.errors import CheckpointError, UnsupportedError, listing, option

__all__ = ["extra_weights", "file_names", "ignored_names", "is_whole_model", "unread_error"]

_SUFFIXES = frozenset(
    ".bin .ckpt .gguf .ggml .h5 .keras .msgpack .npy .npz .onnx .ot .pdparams .pickle .pkl .pt "
    ".pth .safetensors .tflite".split()
)
# A trainer's state for resuming: of PyTorch, transformers, accelerate, FSDP and DeepSpeed.
_RESUMING = re.compile(
    r"(optimizer|scheduler|scaler|sampler|dl_state_dict)(_\d+)?\.(pt|bin)"
    r"|rng_state(_\d+)?\.pth|random_states_\d+\.pkl|custom_checkpoint_\d+\.pkl"
    r"|training_args\.bin|pytorch_model_fsdp(_\d+)?\.bin|.*_(model|optim)_states\.pt"
)
# The weights of a whole model.
_MODEL = re.compile(
    r"(model|(diffusion_)?pytorch_model|tf_model|flax_model|consolidated)([.-].*)?"
    r"\.(safetensors|bin|h5|msgpack|pth)"
)


def ignored_names(ignore: object) -> tuple[str, ...]:
    """Returns the names and globs of ``ignore=`` as a tuple.

    Args:
        ignore: A name or glob, or a list of them.

    Returns:
        The names and globs.

    Raises:
        UnsupportedError: If it is anything else.
    """
    names = (ignore,) if isinstance(ignore, str) else ignore
    if isinstance(names, Sequence) and all(isinstance(name, str) and name for name in names):
        return tuple(names)
    raise UnsupportedError(
        f"ignore is {ignore!r}, expected the name of a file next to the adapter, a glob such as "
        "'*.bin', or a list of them."
    )


def file_names(folder: Path) -> tuple[str, ...]:
    """Returns the names of the files directly in a folder; none if it can't be read."""
    try:
        return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_file()))
    except OSError:
        return ()


def extra_weights(
    names: Iterable[str], is_own_file: Callable[[str], bool], ignore: Sequence[str] = ()
) -> tuple[str, ...]:
    """Returns the files of weights that an adapter's reader does not read by itself.

    A trainer's state is left out, and so is the whole model of a folder with a config.json, in
    which transformers saves a model and its adapter together.

    Args:
        names: The names of all files in the folder.
        is_own_file: Whether the reader reads a file of that name, or the file is a copy of such a
            file.
        ignore: Names and globs of files to leave out.

    Returns:
        Their names, sorted.
    """
    names = frozenset(names)
    has_model = "config.json" in names
    return tuple(
        name
        for name in sorted(names)
        if Path(name).suffix.lower() in _SUFFIXES
        and not name.startswith(".")
        and not is_own_file(name)
        and not _RESUMING.fullmatch(name)
        and not (has_model and is_whole_model(name))
        and not any(fnmatchcase(name, pattern) for pattern in ignore)
    )


def is_whole_model(name: str) -> bool:
    """Returns whether a file has the name of a whole model's weights: ``model.safetensors``.

    Args:
        name: The file's name.

    Returns:
        True if so.
    """
    return _MODEL.fullmatch(name) is not None


def unread_error(where: str, problems: dict[str, str]) -> CheckpointError:
    """Returns the error for weights next to an adapter that are not read.

    Args:
        where: The folder or repository.
        problems: The reason for each file; "" for the reason that its name gives.

    Returns:
        The error, to be raised.
    """
    lines = (f"{name}: {reason or _reason(name)}" for name, reason in problems.items())
    first = next(iter(problems))
    return CheckpointError(
        f"{where} has weights next to the adapter that are not read:{listing(lines)}\n"
        "They may have been trained with it, and would be missing from the result. To leave them "
        "out: "
        f"{option('ignore', first)}, or a glob."
    )


def _reason(name: str) -> str:
    """The reason why a file is not read, from its name."""
    if is_whole_model(name):
        return "named like a whole model, but the folder has no config.json"
    if is_torch_file(Path(name)):
        return "saved by torch; only a safetensors file with the weights of whole modules is read"
    if name.endswith(".safetensors"):
        return "not one of this adapter's files"
    return f"a {Path(name).suffix} file, which no reader reads"
