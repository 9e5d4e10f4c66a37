"""`load`: an adapter from a folder, from a file, or from the Hugging Face hub."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmix.converters.adapters.adapterhub import PICKLE_FILE as ADAPTERHUB_PICKLE
from jaxmix.converters.adapters.adapterhub import WEIGHTS_FILE as ADAPTERHUB_WEIGHTS
from jaxmix.converters.adapters.adapterhub import is_adapterhub, is_adapterhub_file, read_adapterhub
from jaxmix.converters.adapters.beside import patterns
from jaxmix.converters.adapters.diffusers import is_diffusers, read_diffusers
from jaxmix.converters.adapters.finding import find
from jaxmix.converters.adapters.format import Format
from jaxmix.converters.adapters.kohya import is_kohya, read_kohya
from jaxmix.converters.adapters.lycoris.files import has_peft_keys
from jaxmix.converters.adapters.mixfile import MIX_FILE, TENSORS_FILE, is_mix, read_mix
from jaxmix.converters.adapters.mlx import WEIGHTS_FILE as MLX_WEIGHTS
from jaxmix.converters.adapters.mlx import is_mlx, is_mlx_file, read_mlx
from jaxmix.converters.adapters.peft import CONFIG_FILE, WEIGHTS_FILE, read_peft
from jaxmix.converters.adapters.peft.weights import (
    INDEX_FILES,
    PICKLE_FILE,
    is_adapter_file,
    is_weights_path,
)
from jaxmix.converters.adapters.qwix import is_qwix, read_qwix
from jaxmix.converters.files.torch_files import pickle_recipe
from jaxmix.errors import option

__all__ = ["FORMATS", "load"]


def _no_peft(file: str) -> str:
    """What to say of a file that a repository does not have."""
    if file == CONFIG_FILE:
        return (
            ", so it is no PEFT adapter there. If it lies in a folder of the repository, say "
            f"{option('subfolder', '…')}."
        )
    recipe = pickle_recipe("adapter_model.bin", WEIGHTS_FILE)
    return f". If it has a .bin, download the folder and convert it: {recipe}"


def _is_peft(path: Path) -> bool:
    """Whether it is a folder with PEFT's config, or a file of tensors in one."""
    is_file = is_weights_path(path)
    if is_file and path.name not in INDEX_FILES and not has_peft_keys(path):
        return False
    folder = path.parent if is_file else path
    return (folder / CONFIG_FILE).exists() and not is_adapterhub(folder)


PEFT = Format(
    name="peft",
    what=f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}",
    recognises=_is_peft,
    read=read_peft,
    options=("base",),
    files=(CONFIG_FILE, WEIGHTS_FILE),
    instead={WEIGHTS_FILE: (INDEX_FILES[0], PICKLE_FILE, INDEX_FILES[1])},
    absent=_no_peft,
    is_read=is_adapter_file,
    takes_beside=True,
)

ADAPTERHUB = Format(
    name="adapterhub",
    what=f"one of AdapterHub's with {ADAPTERHUB_WEIGHTS}",
    recognises=is_adapterhub,
    read=read_adapterhub,
    files=(CONFIG_FILE, ADAPTERHUB_WEIGHTS),
    instead={ADAPTERHUB_WEIGHTS: (ADAPTERHUB_PICKLE,)},
    options=("base",),
    is_read=is_adapterhub_file,
    takes_beside=True,
)

KOHYA = Format(
    name="kohya",
    what="a .safetensors of kohya's scripts or LyCORIS",
    recognises=is_kohya,
    read=read_kohya,
    options=("base", "part"),
    is_alone=True,
)

MIX = Format(
    name="mix",
    what=f"a folder with {MIX_FILE} (or that file, or a recipe)",
    recognises=is_mix,
    read=read_mix,
    options=("base", "ignore"),
    files=(MIX_FILE,),
    extras=(TENSORS_FILE,),
    absent=lambda file: ", so it is no mix of jaxmix there.",
    named_within=True,
)

DIFFUSERS = Format(
    name="diffusers",
    what="one of diffusers, ComfyUI or ai-toolkit",
    recognises=is_diffusers,
    read=read_diffusers,
    options=("base", "part"),
    is_alone=True,
)

MLX = Format(
    name="mlx",
    what=f"mlx-lm's with {MLX_WEIGHTS}",
    recognises=is_mlx,
    read=read_mlx,
    options=("base", "scale"),
    files=(MLX_WEIGHTS, CONFIG_FILE),
    is_read=is_mlx_file,
)

QWIX = Format(
    name="qwix",
    what="an Orbax checkpoint or .safetensors with qwix's lora_a and lora_b",
    recognises=is_qwix,
    read=read_qwix,
    options=("alpha", "axis", "use_rslora"),
)

# The first that recognises a folder or a file reads it. The last one gets the folders that nobody
# recognises, and says what they miss; on the hub it is looked for first.
FORMATS: tuple[Format, ...] = (MIX, ADAPTERHUB, KOHYA, DIFFUSERS, MLX, QWIX, PEFT)


def load(
    path_or_hub_id: str | os.PathLike[str],
    name: str | None = None,
    *,
    subfolder: str | None = None,
    filename: str | None = None,
    revision: str | None = None,
    strength: Any = 1.0,
    base: Any = None,
    format: str | None = None,
    ignore: str | Sequence[str] = (),
    **options: Any,
) -> Any:  # an Adapter, but where the file says that it is a mix
    """Reads an adapter: ``{site: update}``, each update an affine map ``W ↦ L W Rᵀ + Δ``.

    A folder or file that exists is read; anything else is taken as a hub id, ``owner/name``.
    The arrays keep the dtype of the file. Safetensors are read without torch; a file that
    ``torch.save`` wrote is read by torch's restricted unpickler, which runs no code.

    Args:
        path_or_hub_id: a folder that PEFT, diffusers or `jaxmix.save` wrote, a file of tensors, a
            recipe (a file of JSON that names the parts of a mix), or the id of a repository on the
            hub.
        name: what to call the adapter; the last part of the path or id by default. The parts of a
            saved mix keep their names, or come to be called ``name/part``.
        subfolder: where in the folder or repository the adapter lies.
        filename: which file of the folder or repository holds the adapter, where there are several.
        revision: the branch, tag or commit on the hub.
        strength: the strength with which it enters a mix, a real scalar.
        base: the model on which the adapter was trained, where its file says too little without:
            params, a Hugging Face folder, or a list of the names of its modules. UniLoRA without
            its indices asks for a flat dict in the model's own order. What needs none does not look
            at it.
        format: the format, by name, of what would not be recognised by its files: ``"peft"``,
            ``"mix"``, ``"kohya"``, ``"diffusers"``, ``"mlx"``, ``"qwix"`` or ``"adapterhub"``.
        ignore: names or globs of files of weights beside the adapter to leave out. Others are read
            as replaced leaves, if they are safetensors of whole modules, or raise an error.
        **options: what else the reader of the format takes: ``part=`` of a file with several
            models in it, ``scale=`` or ``alpha=`` of a file without.

    Returns:
        The adapter, or the mix that was saved. Its factors have the file's shapes: LoRA's A (r, in)
        and B (out, r), and so on.

    Raises:
        CheckpointError: if a file is missing, damaged or incomplete, or holds keys that mean
            nothing for its kind of adapter; or if weights beside the adapter would not be read.
        UnsupportedError: if the adapter, or a field of its config, is of a kind that can't be part
            of a mix; the message says why, and what to do.
        ShapeError: if factors disagree with each other or with the config.
        AdapterError: if a factor is not finite.

    Example:
        >>> load("no/such/folder/here")
        Traceback (most recent call last):
        ...
        jaxmix.errors.CheckpointError: 'no/such/folder/here' is neither a folder nor a hub id.
        Expected a folder with adapter_config.json and adapter_model.safetensors, or 'owner/name'.

    Source: the folder that ``peft.PeftModel.save_pretrained`` writes, and that of `jaxmix.save`.
    """
    left_out = patterns(ignore)
    found = find(
        FORMATS,
        path_or_hub_id,
        subfolder=subfolder,
        filename=filename,
        revision=revision,
        format=format,
        ignore=left_out,
    )
    if base is not None and "base" in found.format.options:
        options["base"] = base
    if left_out and "ignore" in found.format.options:
        options["ignore"] = left_out
    return found.read(name, strength, **options)
