"""Whole modules that were trained beside a PEFT adapter, from safetensors next to it.

A key is ``<module>.weight`` or ``<module>.bias``, with PEFT's prefix or without. They replace the
base's leaves, as those of ``modules_to_save`` do.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.converters.adapters.base import BaseModel
from jaxmix.converters.adapters.beside import is_whole_model, unread_error
from jaxmix.converters.adapters.peft.keys import Sites, plain_leaf
from jaxmix.converters.adapters.peft.tensors import FLOATS, read_tensors
from jaxmix.placement.names import unwrapped
from jaxmix.placement.ties import HEADS

__all__ = ["read_sidecars"]

# The heads that TRL's trainers add to a model of their own, which no checkpoint has.
_HEADS = ("v_head", "value_head")


def read_sidecars(
    folder: Path,
    names: Sequence[str],
    sites: Sites,
    base: BaseModel | None,
) -> dict[str, dict[str, np.ndarray]]:
    """Reads the leaves in files beside an adapter.

    Args:
        folder: The adapter's folder.
        names: The files that its own reader does not read.
        sites: The adapter's own tensors.
        base: The model that it was trained on, if given, to tell its modules from others.

    Returns:
        ``{site: {"weight" or "bias": array}}``, the leaves to add.

    Raises:
        CheckpointError: If a file is not such a safetensors, or a leaf is there twice and differs;
            all such files are listed.
        AdapterError: If a number is not finite.
    """
    modules = set() if base is None else {_tail(module) for module in base.modules}
    # A tree of another library has other names, which say nothing about what it lacks.
    is_named_alike = any(_tail(site) in modules for site in sites.factors)
    modules |= {_tail(head) for head in HEADS}  # A tied base may have none of its own.
    found: dict[str, dict[str, np.ndarray]] = {}
    problems: dict[str, str] = {}
    for name in names:
        if not name.endswith(".safetensors") or is_whole_model(name):
            problems[name] = ""
            continue
        leaves: dict[str, dict[str, np.ndarray]] = {}
        wrong: list[str] = []
        tensors = read_tensors(folder / name)
        for key, path in unwrapped(tensors, is_peft=True).items():
            array = tensors[key]
            place = plain_leaf(path) if array.dtype in FLOATS else None
            if place is None:
                wrong.append(f"{key} is not a module's weight or bias")
            elif place[0].split(".")[0] in _HEADS:
                wrong.append(f"{key} is of a head that TRL adds, which the base does not have")
            elif base is not None and is_named_alike and _tail(place[0]) not in modules:
                wrong.append(f"{base.what} has no module {place[0]}")
            elif any(_differs(array, own, *place) for own in (sites.saved, sites.base, found)):
                wrong.append(f"{key} is in another file too, with other numbers")
            else:
                leaves.setdefault(place[0], {})[place[1]] = array
        if wrong:
            problems[name] = "; ".join(wrong[:3]) + (" …" if len(wrong) > 3 else "")
        for site, own in leaves.items():
            found.setdefault(site, {}).update(own)
    if problems:
        raise unread_error(str(folder), problems)
    return found


def _differs(
    array: np.ndarray, others: Mapping[str, Mapping[str, Any]], site: str, leaf: str
) -> bool:
    """Whether a leaf is there already, with other numbers."""
    other = others.get(site, {}).get(leaf)
    return other is not None and not (
        other.dtype == array.dtype and np.array_equal(np.asarray(other), array)
    )


def _tail(site: str) -> str:
    """The end of a module's name, from its last word that is not a number."""
    head, _, last = site.rpartition(".")
    return last if not last.isdigit() or not head else f"{_tail(head)}.{last}"
