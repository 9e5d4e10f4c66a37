"""`load`: an adapter from a folder or from the Hugging Face hub."""

import os
import re
from pathlib import Path
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.converters.peft import CONFIG_FILE, WEIGHTS_FILE, read_peft
from jaxmix.errors import CheckpointError

__all__ = ["load"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


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
        CheckpointError: if a file is missing, damaged or incomplete, or holds keys that mean nothing
            for its kind of adapter.
        UnsupportedError: if the adapter, or a field of its config, is of a kind that can't be part of
            a mix; the message says why, and what to do.
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
    path = Path(text).expanduser()
    if subfolder is not None:
        _check_inside(subfolder)
    if path.is_dir():
        folder = path / subfolder if subfolder else path
        default = folder.resolve().name
    elif path.exists():
        raise CheckpointError(
            f"{text} is a file, expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}. "
            "Give the folder that holds it."
        )
    elif _HUB_ID.fullmatch(text):
        folder = _download(text, subfolder, revision)
        default = (subfolder or text).rstrip("/").rsplit("/", 1)[-1]
    else:
        raise CheckpointError(
            f"{text!r} is neither a folder nor a hub id.\nExpected a folder with {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}, or 'owner/name'."
        )
    return read_peft(folder, name or default, strength)


def _check_inside(subfolder: str) -> None:
    """Refuses a subfolder that leaves its folder."""
    parts = Path(subfolder).parts
    if not parts or Path(subfolder).is_absolute() or ".." in parts or "\\" in subfolder:
        raise CheckpointError(
            f"subfolder {subfolder!r} leads out of its folder, expected a path inside it such as "
            "'checkpoint-100'. Give the folder itself as the first argument."
        )


def _download(hub_id: str, subfolder: str | None, revision: str | None) -> Path:
    """The folder in the local cache with the two files of an adapter on the hub."""
    import huggingface_hub
    from huggingface_hub import errors

    def fetch(filename: str) -> str:
        return huggingface_hub.hf_hub_download(
            hub_id, filename, subfolder=subfolder, revision=revision
        )

    place = f"{hub_id}{f'/{subfolder}' if subfolder else ''} on the hub" + (
        f" at revision {revision!r}" if revision else ""
    )
    try:
        config = Path(fetch(CONFIG_FILE))
    except errors.GatedRepoError as error:
        raise CheckpointError(f"{place} is gated. Ask for access, then `hf auth login`.") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{hub_id!r} is neither a folder here nor a repository on the hub. Check the spelling; a "
            "private repository needs `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{hub_id} on the hub has no revision {revision!r}.") from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{place} is not in the local cache and the hub can't be reached. {hub_id!r} is no folder "
            "here either: go online once, or give the path of a downloaded folder."
        ) from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(
            f"{place} has no {CONFIG_FILE}, so it is no PEFT adapter there. If it lies in a folder of "
            "the repository, say subfolder=…"
        ) from error
    try:
        fetch(WEIGHTS_FILE)
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{place}: {WEIGHTS_FILE} is not in the local cache and the hub can't be reached."
        ) from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(
            f"{place} has no {WEIGHTS_FILE}. jaxmix reads no .bin files, since they are pickles: "
            "download the folder and convert it with torch.load(…, weights_only=True) and "
            "safetensors.torch.save_file."
        ) from error
    return config.parent
