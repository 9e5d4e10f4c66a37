"""`load`: reads an adapter from a folder, a file, or the Hugging Face hub."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters import finding
from jaxmix.converters.adapters.adapterhub import PICKLE_FILE as ADAPTERHUB_PICKLE
from jaxmix.converters.adapters.adapterhub import WEIGHTS_FILE as ADAPTERHUB_WEIGHTS
from jaxmix.converters.adapters.adapterhub import is_adapterhub, is_adapterhub_file, read_adapterhub
from jaxmix.converters.adapters.common.base_model import BaseModel, base_model
from jaxmix.converters.adapters.common.components import component_of
from jaxmix.converters.adapters.common.extra_weights import ignored_names
from jaxmix.converters.adapters.common.tensor_files import CONFIG_FILE, has_peft_keys
from jaxmix.converters.adapters.diffusers import is_diffusers, read_diffusers
from jaxmix.converters.adapters.format import Finders, Format
from jaxmix.converters.adapters.kohya import is_kohya, read_kohya
from jaxmix.converters.adapters.lycoris.parts import is_second, missing_component
from jaxmix.converters.adapters.mixfile import MIX_FILE, TENSORS_FILE, is_mix, read_mix
from jaxmix.converters.adapters.mlx import WEIGHTS_FILE as MLX_WEIGHTS
from jaxmix.converters.adapters.mlx import is_mlx, is_mlx_file, read_mlx
from jaxmix.converters.adapters.peft import WEIGHTS_FILE, read_peft
from jaxmix.converters.adapters.peft.weights import (
    INDEX_FILES,
    PICKLE_FILE,
    is_adapter_file,
    is_weights_path,
)
from jaxmix.converters.adapters.qwix import is_qwix, read_qwix
from jaxmix.converters.files.torch_files import pickle_recipe
from jaxmix.errors import CheckpointError, option
from jaxmix.mixing import Mix

__all__ = ["FORMATS", "load"]


def _missing_peft_file(file: str) -> str:
    """Ends the message about a file that a repository lacks."""
    if file == CONFIG_FILE:
        return (
            ", so it is not a PEFT adapter. If the adapter is in a folder of the repository, pass "
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


def _read_mix(
    path: Path,
    name: str = "",
    strength: Any = 1.0,
    *,
    base: Any = None,
    ignore: Sequence[str] = (),
) -> Adapter | Mix:
    """Reads a mix, whose parts may be adapters of any format."""
    finders = Finders(partial(finding.find, FORMATS), partial(finding.find_on_hub, FORMATS))
    return read_mix(path, name, strength, finders=finders, base=base, ignore=ignore)


PEFT = Format(
    name="peft",
    description=f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}",
    recognizes=_is_peft,
    read=read_peft,
    options=("base",),
    files=(CONFIG_FILE, WEIGHTS_FILE),
    alternatives={WEIGHTS_FILE: (INDEX_FILES[0], PICKLE_FILE, INDEX_FILES[1])},
    missing_hint=_missing_peft_file,
    is_own_file=is_adapter_file,
    takes_extra_weights=True,
)

ADAPTERHUB = Format(
    name="adapterhub",
    description=f"an AdapterHub folder with {ADAPTERHUB_WEIGHTS}",
    recognizes=is_adapterhub,
    read=read_adapterhub,
    files=(CONFIG_FILE, ADAPTERHUB_WEIGHTS),
    alternatives={ADAPTERHUB_WEIGHTS: (ADAPTERHUB_PICKLE,)},
    options=("base",),
    is_own_file=is_adapterhub_file,
    takes_extra_weights=True,
)

KOHYA = Format(
    name="kohya",
    description="a .safetensors file of kohya's scripts or LyCORIS",
    recognizes=is_kohya,
    read=read_kohya,
    options=("base", "part"),
    is_single_file=True,
)

MIX = Format(
    name="mix",
    description=f"a folder with {MIX_FILE} (or that file, or a recipe)",
    recognizes=is_mix,
    read=_read_mix,
    options=("base", "ignore"),
    files=(MIX_FILE,),
    optional_files=(TENSORS_FILE,),
    missing_hint=lambda file: ", so it is not a mix of jaxmix.",
    names_parts=True,
)

DIFFUSERS = Format(
    name="diffusers",
    description="a file of diffusers, ComfyUI or ai-toolkit",
    recognizes=is_diffusers,
    read=read_diffusers,
    options=("base", "part"),
    is_single_file=True,
)

MLX = Format(
    name="mlx",
    description=f"a folder of mlx-lm with {MLX_WEIGHTS}",
    recognizes=is_mlx,
    read=read_mlx,
    options=("base", "scale"),
    files=(MLX_WEIGHTS, CONFIG_FILE),
    is_own_file=is_mlx_file,
)

QWIX = Format(
    name="qwix",
    description="an Orbax checkpoint or .safetensors file with qwix's lora_a and lora_b",
    recognizes=is_qwix,
    read=read_qwix,
    options=("alpha", "axis", "use_rslora"),
)

# The first format that recognizes a folder or file reads it. A folder that none recognizes goes to
# the last one, whose reader reports what is missing; on the hub the last one is tried first.
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
    variant: str | None = None,
    format: str | None = None,
    ignore: str | Sequence[str] = (),
    **options: Any,
) -> Adapter | Mix:
    """Reads an adapter: ``{site: update}``, each update an affine map ``W ↦ L W Rᵀ + Δ``.

    The formats are those of PEFT, AdapterHub, kohya's scripts and LyCORIS, diffusers (also ComfyUI
    and ai-toolkit), mlx-lm, qwix, and `jaxmix.save`.

    An existing folder or file is read; anything else is a hub id, ``owner/name``. The arrays keep
    the dtype of the file. Safetensors files are read without torch; a file of ``torch.save`` is
    read by torch's restricted unpickler, which runs no code.

    Args:
        path_or_hub_id: A folder that PEFT, diffusers or `jaxmix.save` wrote, a file of tensors, a
            recipe (a JSON file that lists the parts of a mix), or the id of a repository on the
            hub.
        name: The adapter's name; by default the last part of the path or id. The parts of a saved
            mix keep their names, or are renamed to ``name/part``.
        subfolder: The adapter's folder within the folder or repository.
        filename: The adapter's file in that folder, where there are several.
        revision: The branch, tag or commit on the hub.
        strength: The adapter's strength in a mix, a real scalar.
        base: The model on which the adapter was trained, for files that are incomplete without it:
            params, a folder of transformers or diffusers, or a list of the names of its modules. A
            UniLoRA that was saved without its indices needs a flat dict in the model's own order.
            Formats that need no base ignore it. Where it is a pipeline, or params of several
            models, sites start with the component: ``unet.conv_in``.
        variant: Which of several variants of the base's weights to read, as in diffusers:
            ``"fp16"`` for ``diffusion_pytorch_model.fp16.safetensors``. None for those without one.
        format: The format's name, for files that are not recognized: ``"peft"``, ``"mix"``,
            ``"kohya"``, ``"diffusers"``, ``"mlx"``, ``"qwix"`` or ``"adapterhub"``.
        ignore: Names or globs of files of weights next to the adapter to leave out. Others are read
            as replaced leaves if they are safetensors files of whole modules, and raise an error if
            not.
        **options: Further arguments of the format's reader: ``part=`` for a file that covers
            several models (the prefix to read), or for a base that does (the component for which it
            is read, such as ``"transformer_2"``); ``scale=`` or ``alpha=`` for a file that states
            none.

    Returns:
        The adapter, or the mix that was saved. Its factors have the file's shapes: LoRA's A (r, in)
        and B (out, r), and so on.

    Raises:
        CheckpointError: If a file is missing, damaged or incomplete, or contains keys that its kind
            of adapter does not have; or if weights next to the adapter would not be read.
        UnsupportedError: If the adapter, or a field of its config, is of a kind that can't be part
            of a mix; the message says why, and what to do.
        ShapeError: If factors disagree with each other or with the config.
        AdapterError: If a factor is not finite.

    Example:
        >>> load("no/such/folder/here")
        Traceback (most recent call last):
        ...
        jaxmix.errors.CheckpointError: 'no/such/folder/here' does not exist.
        Expected a folder with adapter_config.json and adapter_model.safetensors, or the id of a ...

    Source: the folders that ``peft.PeftModel.save_pretrained`` and `jaxmix.save` write.
    """
    ignored = ignored_names(ignore)
    base = base if variant is None else base_model(base, variant)
    located = finding.find(
        FORMATS,
        path_or_hub_id,
        subfolder=subfolder,
        filename=filename,
        revision=revision,
        format=format,
        ignore=ignored,
    )
    if ignored and "ignore" in located.format.options:
        options["ignore"] = ignored
    # In some formats a file never covers several models.
    has_parts = "part" in located.format.options
    part = options.get("part")
    component = _component(base, part, has_parts=has_parts)
    if component is not None and not has_parts:
        del options["part"]
    if base is not None and "base" in located.format.options:
        options["base"] = base if component is None else component
    adapter = located.read(name, strength, **options)
    return adapter if component is None else _in_component(adapter, str(part))


def _component(base: Any, part: Any, *, has_parts: bool) -> BaseModel | None:
    """Returns the component of a base that ``part=`` names; None if it names none."""
    if base is None or not isinstance(part, str):
        return None
    model = base_model(base)
    component = component_of(model, part)
    # Other prefixes may be those of the file, whose reader resolves them.
    if component is None and (is_second(part) or not has_parts):
        if missing := missing_component([part], model.modules):
            raise CheckpointError(
                f"{option('part', part)} names a component that is absent: {missing}. Pass one of "
                "these."
            )
    return component


def _in_component(adapter: Adapter | Mix, component: str) -> Adapter | Mix:
    """Prefixes all sites with the name of a component."""
    parts = (
        replace(part, updates={f"{component}.{site}": up for site, up in part.updates.items()})
        for part in adapter.parts
    )
    return next(parts) if isinstance(adapter, Adapter) else Mix(tuple(parts))
