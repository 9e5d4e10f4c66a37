"""`load`: an adapter from a folder, from a file, or from the Hugging Face hub."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.converters.diffusers import is_diffusers, read_diffusers
from jaxmix.converters.format import Format, named, recognised
from jaxmix.converters.hub import download
from jaxmix.converters.kohya import is_kohya, read_kohya
from jaxmix.converters.mixfile import MIX_FILE, TENSORS_FILE, is_mix, read_mix
from jaxmix.converters.mlx import WEIGHTS_FILE as MLX_WEIGHTS
from jaxmix.converters.mlx import is_mlx, read_mlx
from jaxmix.converters.peft import CONFIG_FILE, WEIGHTS_FILE, read_peft
from jaxmix.converters.peft.tensors import pickle_recipe
from jaxmix.converters.qwix import is_qwix, read_qwix
from jaxmix.errors import CheckpointError, UnsupportedError
from jaxmix.mix import Mix

__all__ = ["FORMATS", "Found", "find", "find_on_hub", "is_hub_id", "load"]

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def _no_peft(file: str) -> str:
    """What to say of a file that a repository does not have."""
    if file == CONFIG_FILE:
        return (
            ", so it is no PEFT adapter there. If it lies in a folder of the repository, say "
            "subfolder='…'."
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

_EXPECTED = f"{PEFT.what}, or 'owner/name'"


def load(
    path_or_hub_id: str | os.PathLike[str],
    name: str | None = None,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    strength: Any = 1.0,
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
        format: the format, by name, of what would not be recognised by its files: ``"peft"``,
            ``"mix"``.
        **options: what else the reader of the format takes. ``base=`` is the model on which the
            adapter was trained, params or a Hugging Face folder, where a file says too little
            without it.

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
    found = find(path_or_hub_id, subfolder=subfolder, revision=revision, format=format)
    return found.read(name, strength, **options)


@dataclass(frozen=True)
class Found:
    """An adapter that is there and not yet read.

    Args:
        path: its folder or file.
        format: what reads it.
        default: its name if none is given.
        source: where it came from, as it may be told to others.
    """

    path: Path
    format: Format
    default: str
    source: str

    def read(self, name: str | None, strength: Any, **options: Any) -> Adapter | Mix:
        """The adapter.

        Raises:
            UnsupportedError: if the format's reader does not take one of the options.
        """
        if unknown := sorted(set(options) - set(self.format.options)):
            takes = ", ".join(self.format.options) or "no options"
            raise UnsupportedError(
                f"{self.source} is of the format {self.format.name!r}, whose reader takes {takes}; "
                f"found {', '.join(unknown)}. Leave it out, or force another with format='…'."
            )
        given = name or ("" if self.format.named_within else self.default)
        adapter = self.format.read(self.path, given, strength, **options)
        if self.format.named_within:  # its parts say by themselves where they came from
            return adapter
        return replace(adapter, source=self.source)


def find(
    path_or_hub_id: str | os.PathLike[str],
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    format: str | None = None,
) -> Found:
    """Looks up what `load` would read, and fetches it if it is on the hub.

    Args:
        path_or_hub_id: a folder, a file, or the id of a repository on the hub.
        subfolder: where in the folder or repository the adapter lies.
        revision: the branch, tag or commit on the hub.
        format: the format, by name; recognised by default.

    Returns:
        What was found.

    Raises:
        CheckpointError: if nothing is there, or nothing of a known format.
        UnsupportedError: if there is no format of that name.
    """
    text = os.fspath(path_or_hub_id)
    forced = None if format is None else named(FORMATS, format)
    if subfolder is not None:
        _check_inside(subfolder)
    try:
        path = Path(text).expanduser()
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # too long a name, a closed folder, no such ~user
        raise CheckpointError(
            f"{_cut(text)} can't be looked up: {error}.\nExpected {_EXPECTED}."
        ) from error
    if is_folder or (is_there and subfolder is None):
        place = path / subfolder if subfolder else path
        one = forced or recognised(FORMATS, place, text)
        default = place.resolve().name if is_folder else place.stem
        return Found(place, one, default, _told(text, subfolder))
    if not is_there and is_hub_id(text):
        return find_on_hub(text, subfolder=subfolder, revision=revision, format=format)
    what = "is a file, which has no subfolder" if is_there else "is neither a folder nor a hub id"
    raise CheckpointError(f"{_cut(text)} {what}.\nExpected {_EXPECTED}.")


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a hub id, ``owner/name``.

    Args:
        text: the text.

    Returns:
        Whether it has.
    """
    return _HUB_ID.fullmatch(text) is not None


def find_on_hub(
    hub_id: str,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    format: str | None = None,
) -> Found:
    """Fetches what `load` would read of a repository on the hub, whatever lies here.

    Args:
        hub_id: ``owner/name``.
        subfolder: where in the repository the adapter lies.
        revision: the branch, tag or commit.
        format: the format, by name; by default that of which the files are there.

    Returns:
        What was found.

    Raises:
        CheckpointError: if it can't be had.
        UnsupportedError: if there is no format of that name, or it is not looked for on the hub.
    """
    if subfolder is not None:
        _check_inside(subfolder)
    forced = None if format is None else named(FORMATS, format)
    looked_for = [one for one in FORMATS[::-1] if one.files and one is (forced or one)]
    if not looked_for:
        raise UnsupportedError(
            f"{hub_id}: the format {format!r} is one of single files, which are not looked for on "
            f"the hub. Download the file with `hf download {hub_id}`, and give its path."
        )
    folder, one = download(hub_id, subfolder, revision, looked_for)
    place = f"{hub_id}/{subfolder}".rstrip("/") if subfolder else hub_id
    at = f"@{revision}" if revision else ""
    return Found(folder, one, place.rsplit("/", 1)[-1], place + at)


def _cut(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")


def _told(text: str, subfolder: str | None) -> str:
    """A path for others to read: of one that is not relative the last part, for it is private."""
    path = Path(text)
    is_private = path.is_absolute() or text.startswith("~")
    shown = path.expanduser().resolve().name if is_private else path.as_posix()
    return f"{shown}/{subfolder}" if subfolder else shown


def _check_inside(subfolder: str) -> None:
    """Refuses a subfolder that leaves its folder; where links lead is their owner's business."""
    parts = Path(subfolder).parts
    if not parts or Path(subfolder).is_absolute() or ".." in parts or "\\" in subfolder:
        raise CheckpointError(
            f"subfolder {subfolder!r} is no path inside its folder, expected one such as "
            "'checkpoint-100'. Give the folder itself as the first argument."
        )
