"""Files of weights beside an adapter: which of them an adapter's reader would leave unread.

Trainers put trained weights next to an adapter that PEFT itself does not read: LLaVA's
``non_lora_trainables.bin``, TRL's ``value_head.safetensors``. Without them the model is another
than the trained one, so that such a file is an error until it is read, or named in ``ignore=``.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from jaxmix.converters.files.torch_files import is_torch_file
from jaxmix.errors import CheckpointError, UnsupportedError, listing, option

__all__ = ["is_whole_model", "names_in", "patterns", "unread_error", "weights_beside"]

_SUFFIXES = frozenset(
    ".bin .ckpt .gguf .ggml .h5 .keras .msgpack .npy .npz .onnx .ot .pdparams .pickle .pkl .pt "
    ".pth .safetensors .tflite".split()
)
# What trainers write to resume from: of PyTorch, transformers, accelerate, FSDP and DeepSpeed.
_RESUMING = re.compile(
    r"(optimizer|scheduler|scaler|sampler|dl_state_dict)(_\d+)?\.(pt|bin)"
    r"|rng_state(_\d+)?\.pth|random_states_\d+\.pkl|custom_checkpoint_\d+\.pkl"
    r"|training_args\.bin|pytorch_model_fsdp(_\d+)?\.bin|.*_(model|optim)_states\.pt"
)
# The weights of a model that is whole without the adapter.
_MODEL = re.compile(
    r"(model|pytorch_model|tf_model|flax_model|consolidated)([.-].*)?"
    r"\.(safetensors|bin|h5|msgpack|pth)"
)


def patterns(ignore: object) -> tuple[str, ...]:
    """What ``ignore=`` says, as a tuple of names and globs.

    Args:
        ignore: A name or glob, or several of them.

    Returns:
        The names and globs.

    Raises:
        UnsupportedError: If it is anything else.
    """
    given = (ignore,) if isinstance(ignore, str) else ignore
    if isinstance(given, Sequence) and all(isinstance(name, str) and name for name in given):
        return tuple(given)
    raise UnsupportedError(
        f"ignore is {ignore!r}, expected the name of a file beside the adapter, a glob such as "
        "'*.bin', or a list of them."
    )


def names_in(folder: Path) -> tuple[str, ...]:
    """The names of the files in a folder itself; none if it can't be read."""
    try:
        return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_file()))
    except OSError:
        return ()


def weights_beside(
    names: Iterable[str], is_read: Callable[[str], bool], ignore: Sequence[str] = ()
) -> tuple[str, ...]:
    """The files of weights that an adapter's reader does not read by itself.

    A trainer's files to resume from are left out, and so are a model's own weights where its
    config.json says that the folder is a model with an adapter in it, as transformers has it.

    Args:
        names: The names of all files in the folder.
        is_read: Whether the reader reads the file of a name, or a copy of it.
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
        and not is_read(name)
        and not _RESUMING.fullmatch(name)
        and not (has_model and is_whole_model(name))
        and not any(fnmatchcase(name, pattern) for pattern in ignore)
    )


def is_whole_model(name: str) -> bool:
    """Whether a name is that of a whole model's weights: ``model.safetensors`` and the like.

    Args:
        name: The file's name.

    Returns:
        Whether it is.
    """
    return _MODEL.fullmatch(name) is not None


def unread_error(where: str, problems: dict[str, str]) -> CheckpointError:
    """The error for weights beside an adapter that are not read.

    Args:
        where: The folder or repository.
        problems: For each file the reason, "" for what its name tells.

    Returns:
        The error, to be raised.
    """
    lines = (f"{name}: {why or _reason(name)}" for name, why in problems.items())
    first = next(iter(problems))
    return CheckpointError(
        f"{where} has weights beside the adapter that are not read:{listing(lines)}\n"
        "They may have been trained with it, and the result would lack them. To leave them out: "
        f"{option('ignore', first)}, or a glob."
    )


def _reason(name: str) -> str:
    """Why a file is not read, from its name."""
    if is_whole_model(name):
        return "a whole model's name, and there is no config.json of one"
    if is_torch_file(Path(name)):
        return "saved by torch; a safetensors of whole modules' weights is read"
    if name.endswith(".safetensors"):
        return "not a file of this adapter"
    return f"{Path(name).suffix[1:]}, of which no reader knows what it holds"
