"""`save`: writes an adapter or mix as a folder."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxmix.adapter import Adapter, Mixable
from jaxmix.converters.adapters.mixfile.coding import EncodeArray, encode_strength, encode_updates
from jaxmix.converters.adapters.mixfile.hashing import fingerprint
from jaxmix.converters.adapters.mixfile.record import (
    FORMAT,
    MIX_FILE,
    TENSORS_FILE,
    VERSION,
    is_ours,
    text,
)
from jaxmix.converters.adapters.mixfile.tensors import count_infinite, write
from jaxmix.converters.files.output import checked_output, new_folder
from jaxmix.errors import AdapterError, CheckpointError
from jaxmix.mixing import Mix, mix

__all__ = ["is_saved", "save"]

# Returns the data in mix.json for a key and an array.
_Store = Callable[[str, Any], dict[str, str]]


def save(mixed: Adapter | Mix, folder: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Writes an adapter or a mix, which ``jaxmix.load(folder)`` reads back bit for bit.

    The folder contains ``mix.json``, which people can read and edit (order, names, strengths,
    families, sites, source and SHA-256 of each part), and ``mix.safetensors`` with the arrays in
    their own shapes and dtypes: LoRA's A (r, in) and B (out, r), and so on. An array that several
    sites share is written once. The folder is renamed into place when it is complete.
    ``huggingface_hub.upload_folder`` uploads it, and ``jaxmix.load("owner/name")`` reads it.

    Args:
        mixed: The adapter or mix. Its arrays may be NumPy's or JAX's; they are loaded as NumPy's.
        folder: The folder to write.
        force: Replace an existing saved mix, which stays until the new one is complete.

    Returns:
        The folder, links resolved.

    Raises:
        AdapterError: If it is not an adapter, two parts have the same name, or an update can't be
            written: a traced or non-finite number, or an update that is of no family of jaxmix.
        CheckpointError: If the folder has other content, or can't be written.

    Example:
        >>> import tempfile, numpy as np, jaxmix
        >>> from jaxmix.families import LoRA
        >>> lora = Adapter({"proj": LoRA(np.ones((1, 3)), np.ones((2, 1)), 1.0)}, name="style")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jaxmix.load(save(jaxmix.mix(0.6 * lora), folder + "/mixed"))
        mix of 1 adapter, applied in this order:
          1. style: LoRA rank 1 at 1 site, strength 0.6 (proj)

    Source: the format is jaxmix's own, ``jaxmix.converters.adapters.mixfile``.
    """
    if not isinstance(mixed, Mixable):
        raise AdapterError(
            f"save got a {type(mixed).__name__}, expected an adapter or a mix. Write "
            "save(mix(a, b), folder)."
        )
    parts = mix(mixed).parts  # refuses duplicate names
    arrays: dict[str, Any] = {}
    keys: dict[int, str] = {}

    def store(key: str, array: Any) -> dict[str, str]:
        """Stores an array and returns its data; a shared array keeps its first key."""
        if id(array) not in keys:
            if count := count_infinite(array):
                raise ValueError(f"has {count} of {array.size} numbers that are NaN or infinite")
            keys[id(array)] = key
            arrays[key] = array
        return {"tensor": keys[id(array)]}

    digests: dict[int, str] = {}
    records = [_part(i, part, store, digests) for i, part in enumerate(parts)]
    kind = "adapter" if isinstance(mixed, Adapter) else "mix"
    head = {"format": FORMAT, "version": VERSION, "kind": kind, "parts": records}
    document = _encoded(text(head))
    size = sum(array.nbytes for array in arrays.values())
    place = checked_output(folder, (), force=force, size=size, marks=(MIX_FILE,), replaces=is_saved)
    if (place / MIX_FILE).exists() and not is_ours(place / MIX_FILE):
        raise CheckpointError(
            f"the output {place} is not replaced, since jaxmix did not write its {MIX_FILE}. "
            "Choose another folder, or move it."
        )
    with new_folder(place, force=force, replaces=is_saved) as partial:
        write(partial / TENSORS_FILE, arrays)
        (partial / MIX_FILE).write_bytes(document)
    return place


def _part(i: int, part: Adapter, store: _Store, digests: dict[int, str]) -> dict[str, Any]:
    """The data of a part in mix.json."""

    def leaf(site: str) -> EncodeArray:
        return lambda array, path: store(f"{i}/{site}/{path}", array)

    return {
        "name": part.name,
        "strength": encode_strength(part.strength, lambda array, path: store(f"{i}/{path}", array)),
        "source": part.source,
        **({"metadata": dict(part.metadata)} if part.metadata else {}),
        "sha256": fingerprint(part, digests),
        "updates": encode_updates(part, leaf),
    }


def _encoded(data: str) -> bytes:
    """Encodes the document."""
    try:
        return data.encode()
    except UnicodeEncodeError as error:
        characters = error.object[error.start : error.end]
        raise AdapterError(
            f"a name, source or site contains {characters!r}, which can't be written to a file. "
            "Rename it."
        ) from error


def is_saved(name: str) -> bool:
    """Returns whether a file is one of the two that `save` writes.

    Args:
        name: The file's path in the folder.

    Returns:
        True if so.
    """
    return name in (MIX_FILE, TENSORS_FILE)
