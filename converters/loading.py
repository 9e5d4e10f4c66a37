"""`load`: an adapter from a folder or from the Hugging Face hub."""

import os
import re
from pathlib import Path
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.converters.peft import CONFIG_FILE, WEIGHTS_FILE, read_peft
from jaxmix.converters.peft.tensors import pickle_recipe
from jaxmix.errors import CheckpointError

__all__ = ["load"]

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_EXPECTED = f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, or 'owner/name'"


def load(
    path_or_hub_id: str | os.PathLike[str],
    name: str | None = None,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    strength: Any = 1.0,
) -> Adapter:
    """Reads an adapter: ``{site: update}``, each update an affine map ``W ↦ L W Rᵀ + Δ``.

    A folder that exists is read; anything else is taken as a hub id, ``owner/name``. Nothing is
    unpickled, no torch is needed, and the arrays keep the dtype of the file.

    Args:
        path_or_hub_id: a folder that PEFT saved, or the id of a repository on the hub.
        name: what to call the adapter; the last part of the path or id by default.
        subfolder: where in the folder or repository the adapter lies.
        revision: the branch, tag or commit on the hub.
        strength: the strength with which it enters a mix, a real scalar.

    Returns:
        The adapter. Its factors have the file's shapes: LoRA's A (r, in) and B (out, r), and so on.

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

    Source: the folder that ``peft.PeftModel.save_pretrained`` writes.
    """
    text = os.fspath(path_or_hub_id)
    if subfolder is not None:
        _check_inside(subfolder)
    try:
        path = Path(text).expanduser()
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # too long a name, a closed folder, no such ~user
        raise CheckpointError(
            f"{_cut(text)} can't be looked up: {error}.\nExpected {_EXPECTED}."
        ) from error
    if is_folder:
        folder = path / subfolder if subfolder else path
        default = folder.resolve().name
    elif is_there:
        raise CheckpointError(
            f"{text} is a file, expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}. "
            "Give the folder that holds it."
        )
    elif _HUB_ID.fullmatch(text):
        folder = _download(text, subfolder, revision)
        default = (subfolder or text).rstrip("/").rsplit("/", 1)[-1]
    else:
        raise CheckpointError(
            f"{_cut(text)} is neither a folder nor a hub id.\nExpected {_EXPECTED}."
        )
    return read_peft(folder, name or default, strength)


def _cut(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")


def _check_inside(subfolder: str) -> None:
    """Refuses a subfolder that leaves its folder; where links lead is their owner's business."""
    parts = Path(subfolder).parts
    if not parts or Path(subfolder).is_absolute() or ".." in parts or "\\" in subfolder:
        raise CheckpointError(
            f"subfolder {subfolder!r} is no path inside its folder, expected one such as "
            "'checkpoint-100'. Give the folder itself as the first argument."
        )


def _download(hub_id: str, subfolder: str | None, revision: str | None) -> Path:
    """The folder in the local cache with the two files of an adapter on the hub."""
    import huggingface_hub
    from huggingface_hub import errors

    place = f"{hub_id}{f'/{subfolder}' if subfolder else ''} on the hub" + (
        f" at revision {revision!r}" if revision else ""
    )
    found: list[Path] = []
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        try:
            path = huggingface_hub.hf_hub_download(
                hub_id, file, subfolder=subfolder, revision=revision
            )
        except errors.GatedRepoError as error:
            raise CheckpointError(
                f"{place} is gated. Ask for access on its page, then `hf auth login`."
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise CheckpointError(
                f"{hub_id!r} is neither a folder here nor a repository on the hub. Check the "
                "spelling; a private repository needs `hf auth login`."
            ) from error
        except errors.RevisionNotFoundError as error:
            raise CheckpointError(
                f"{hub_id} on the hub has no revision {revision!r}. Give a branch, a tag or a "
                "commit that it has."
            ) from error
        except errors.LocalEntryNotFoundError as error:
            raise CheckpointError(
                f"{place}: {file} is not in the local cache and the hub can't be reached. "
                f"{hub_id!r} is no folder here either: go online once, or give the path of a "
                "downloaded folder."
            ) from error
        except errors.EntryNotFoundError as error:
            raise CheckpointError(f"{place} has no {file}{_absent(file)}") from error
        except Exception as error:  # its kinds differ from version to version of the hub's client
            raise CheckpointError(
                f"{place}: {file} can't be had: {error}. Try again, or download the folder and "
                "give its path."
            ) from error
        found.append(Path(path))
    config, weights = found
    if config.parent != weights.parent:
        raise CheckpointError(
            f"{place} changed between its two files. Try again, or give a commit: revision='…'."
        )
    return config.parent


def _absent(file: str) -> str:
    """What to say of a file that a repository does not have."""
    if file == CONFIG_FILE:
        return (
            ", so it is no PEFT adapter there. If it lies in a folder of the repository, say "
            "subfolder='…'."
        )
    recipe = pickle_recipe("adapter_model.bin", WEIGHTS_FILE)
    return f". If it has a .bin, download the folder and convert it: {recipe}"
