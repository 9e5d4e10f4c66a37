"""`save`: any mix as a folder."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxmix.adapter import Adapter, Mixable
from jaxmix.converters.adapters.mixfile.coding import Leaf, encode_strength, encode_updates
from jaxmix.converters.adapters.mixfile.hashing import fingerprint
from jaxmix.converters.adapters.mixfile.record import (
    FORMAT,
    MIX_FILE,
    TENSORS_FILE,
    VERSION,
    is_ours,
    text,
)
from jaxmix.converters.adapters.mixfile.tensors import infinite, write
from jaxmix.converters.files.output import checked_output, new_folder
from jaxmix.errors import AdapterError, CheckpointError
from jaxmix.mixing import Mix, mix

__all__ = ["is_saved", "save"]

# From a key and an array to what stands for it in mix.json.
_Put = Callable[[str, Any], dict[str, str]]


def save(mixed: Adapter | Mix, folder: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Writes an adapter or a mix: ``jaxmix.load(folder)`` is the same again, bit for bit.

    The folder holds ``mix.json``, which people can read and edit (order, names, strengths, kinds,
    sites, source and SHA-256 of each part), and ``mix.safetensors``, in the arrays' own shapes and
    dtypes: LoRA's A (r, in) and B (out, r), and so on. An array that several sites share is written
    once. It is written beside its place and renamed once it is whole; two plain files, which
    ``huggingface_hub.upload_folder`` takes as they are, and ``jaxmix.load("owner/name")`` reads.

    Args:
        mixed: what to save. Its arrays may be NumPy's or JAX's; they come back as NumPy's.
        folder: where it should come to stand.
        force: replace ``folder`` if a saved mix stands there; it stays until the new one is whole.

    Returns:
        The folder, links resolved.

    Raises:
        AdapterError: if it is no adapter, two parts have one name, or something in it can't be
            written: a traced or non-finite number, an update of no family of jaxmix.
        CheckpointError: if the folder is taken by something else, or can't be written.

    Example:
        >>> import tempfile, numpy as np, jaxmix
        >>> from jaxmix.families import LoRA
        >>> lora = Adapter({"proj": LoRA(np.ones((1, 3)), np.ones((2, 1)), 1.0)}, name="style")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jaxmix.load(save(jaxmix.mix(0.6 * lora), folder + "/mixed"))
        mix of 1 adapter, applied in this order:
          1. style: LoRA rank 1 at 1 site, strength 0.6 (proj)

    Source: the format is jaxmix's own, `jaxmix.converters.adapters.mixfile`.
    """
    if not isinstance(mixed, Mixable):
        raise AdapterError(
            f"save got a {type(mixed).__name__}, expected an adapter or a mix. Write "
            "save(mix(a, b), folder)."
        )
    parts = mix(mixed).parts  # which refuses two of one name
    arrays: dict[str, Any] = {}
    keys: dict[int, str] = {}

    def put(key: str, array: Any) -> dict[str, str]:
        """What stands for an array; one that was put before has its key."""
        if id(array) not in keys:
            if count := infinite(array):
                raise ValueError(f"has {count} of {array.size} numbers NaN or infinite")
            keys[id(array)] = key
            arrays[key] = array
        return {"tensor": keys[id(array)]}

    digests: dict[int, str] = {}
    told = [_part(i, part, put, digests) for i, part in enumerate(parts)]
    kind = "adapter" if isinstance(mixed, Adapter) else "mix"
    head = {"format": FORMAT, "version": VERSION, "kind": kind, "parts": told}
    told_text = _encoded(text(head))
    size = sum(array.nbytes for array in arrays.values())
    place = checked_output(folder, (), force=force, size=size, marks=(MIX_FILE,), replaces=is_saved)
    if (place / MIX_FILE).exists() and not is_ours(place / MIX_FILE):
        raise CheckpointError(
            f"the output {place} is not replaced, for jaxmix.save did not write its {MIX_FILE}. "
            "Give another folder, or move it."
        )
    with new_folder(place, force=force, replaces=is_saved) as new:
        write(new / TENSORS_FILE, arrays)
        (new / MIX_FILE).write_bytes(told_text)
    return place


def _part(i: int, part: Adapter, put: _Put, digests: dict[int, str]) -> dict[str, Any]:
    """A part as mix.json has it."""

    def leaf(site: str) -> Leaf:
        return lambda array, path: put(f"{i}/{site}/{path}", array)

    return {
        "name": part.name,
        "strength": encode_strength(part.strength, lambda array, path: put(f"{i}/{path}", array)),
        "source": part.source,
        **({"metadata": dict(part.metadata)} if part.metadata else {}),
        "sha256": fingerprint(part, digests),
        "updates": encode_updates(part, leaf),
    }


def _encoded(data: str) -> bytes:
    """A text as the file holds it."""
    try:
        return data.encode()
    except UnicodeEncodeError as error:
        found = error.object[error.start : error.end]
        raise AdapterError(
            f"a name, source or site has {found!r} in it, which no file can hold. Expected a text; "
            "rename it."
        ) from error


def is_saved(name: str) -> bool:
    """Whether a file is one of the two that `save` writes.

    Args:
        name: its path in the folder.

    Returns:
        Whether it is.
    """
    return name in (MIX_FILE, TENSORS_FILE)
