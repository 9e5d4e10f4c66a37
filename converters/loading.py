"""`load`: an adapter from a folder, from a file, or from the Hugging Face hub."""

import os
from typing import Any

from jaxmix.converters.diffusers import is_diffusers, read_diffusers
from jaxmix.converters.finding import find
from jaxmix.converters.format import Format
from jaxmix.converters.kohya import is_kohya, read_kohya
from jaxmix.converters.mixfile import MIX_FILE, TENSORS_FILE, is_mix, read_mix
from jaxmix.converters.mlx import WEIGHTS_FILE as MLX_WEIGHTS
from jaxmix.converters.mlx import is_mlx, read_mlx
from jaxmix.converters.peft import CONFIG_FILE, WEIGHTS_FILE, read_peft
from jaxmix.converters.peft.tensors import pickle_recipe
from jaxmix.converters.qwix import is_qwix, read_qwix
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


PEFT = Format(
    name="peft",
    what=f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}",
    recognises=lambda path: (path / CONFIG_FILE).exists(),
    read=read_peft,
    options=("base",),
    files=(CONFIG_FILE, WEIGHTS_FILE),
    absent=_no_peft,
)

KOHYA = Format(
    name="kohya",
    what="a .safetensors of kohya's scripts or LyCORIS",
    recognises=is_kohya,
    read=read_kohya,
    options=("base", "part"),
)

MIX = Format(
    name="mix",
    what=f"a folder with {MIX_FILE} (or that file, or a recipe)",
    recognises=is_mix,
    read=read_mix,
    options=("base",),
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
)

MLX = Format(
    name="mlx",
    what=f"mlx-lm's with {MLX_WEIGHTS}",
    recognises=is_mlx,
    read=read_mlx,
    options=("base", "scale"),
    files=(MLX_WEIGHTS, CONFIG_FILE),
)

QWIX = Format(
    name="qwix",
    what="an Orbax checkpoint or .safetensors with qwix's lora_a and lora_b",
    recognises=is_qwix,
    read=read_qwix,
    options=("alpha", "axis"),
)

# The first that recognises a folder or a file reads it. The last one gets the folders that nobody
# recognises, and says what they miss; on the hub it is looked for first.
FORMATS: tuple[Format, ...] = (MIX, KOHYA, DIFFUSERS, MLX, QWIX, PEFT)


def load(
    path_or_hub_id: str | os.PathLike[str],
    name: str | None = None,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    strength: Any = 1.0,
    base: Any = None,
    format: str | None = None,
    **options: Any,
) -> Any:  # an Adapter, but where the file says that it is a mix
    """Reads an adapter: ``{site: update}``, each update an affine map ``W ↦ L W Rᵀ + Δ``.

    A folder or file that exists is read; anything else is taken as a hub id, ``owner/name``.
    Nothing is unpickled, no torch is needed, and the arrays keep the dtype of the file.

    Args:
        path_or_hub_id: a folder that PEFT or `jaxmix.save` wrote, a recipe (a file of JSON that
            names the parts of a mix), or the id of a repository on the hub.
        name: what to call the adapter; the last part of the path or id by default. The parts of a
            saved mix keep their names, or come to be called ``name/part``.
        subfolder: where in the folder or repository the adapter lies.
        revision: the branch, tag or commit on the hub.
        strength: the strength with which it enters a mix, a real scalar.
        base: the model on which the adapter was trained, where its file says too little without:
            params, a Hugging Face folder, or a list of the names of its modules. UniLoRA without
            its indices asks for a flat dict in the model's own order. What needs none does not look
            at it.
        format: the format, by name, of what would not be recognised by its files: ``"peft"``,
            ``"mix"``, ``"kohya"``, ``"diffusers"``, ``"mlx"`` or ``"qwix"``.
        **options: what else the reader of the format takes: ``part=`` of a file with several
            models in it, ``scale=`` or ``alpha=`` of a file without.

    Returns:
        The adapter, or the mix that was saved. Its factors have the file's shapes: LoRA's A (r, in)
        and B (out, r), and so on.

    Raises:
        CheckpointError: if a file is missing, damaged or incomplete, or holds keys that mean
            nothing for its kind of adapter.
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
    found = find(FORMATS, path_or_hub_id, subfolder=subfolder, revision=revision, format=format)
    if base is not None and "base" in found.format.options:
        options["base"] = base
    return found.read(name, strength, **options)
