"""Reads whole modules that were trained with an adapter, from safetensors files next to it.

A key is ``<module>.weight`` or ``<module>.bias``, with PEFT's prefix or without. The tensors
replace the base's leaves, as those of ``modules_to_save`` do.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.converters.adapters.common.base_model import BaseModel
from jaxmix.converters.adapters.common.extra_weights import is_whole_model, unread_error
from jaxmix.converters.adapters.common.tensors import FACTOR_DTYPES, read_tensors
from jaxmix.placement.names import unwrapped
from jaxmix.placement.ties import HEADS

__all__ = ["Leaves", "read_sidecars"]

# {site: {"weight" or "bias": array}}
Leaves = Mapping[str, Mapping[str, Any]]

# The heads that TRL's trainers add to a model, which no checkpoint has.
_TRL_HEADS = ("v_head", "value_head")


def read_sidecars(
    folder: Path,
    names: Sequence[str],
    *,
    split_leaf: Callable[[str], tuple[str, str] | None],
    sites: Collection[str],
    own_leaves: Sequence[Leaves] = (),
    base: BaseModel | None,
) -> dict[str, dict[str, np.ndarray]]:
    """Reads the leaves in files next to an adapter.

    Args:
        folder: The adapter's folder.
        names: The files that the adapter's reader does not read.
        split_leaf: Splits a key into its module and ``"weight"`` or ``"bias"``; None for a key that
            names neither, or a parameter of the adapter.
        sites: The sites for which the adapter has factors.
        own_leaves: The leaves in the adapter's own file.
        base: The model that it was trained on, if given, to distinguish its modules from others.

    Returns:
        ``{site: {"weight" or "bias": array}}``, the leaves to add.

    Raises:
        CheckpointError: If a file is not such a safetensors file, or a leaf occurs twice with
            different numbers; all such files are listed.
        AdapterError: If a number is not finite.
    """
    modules = set() if base is None else {_tail(module) for module in base.modules}
    # If no name agrees, the base has another library's names, which prove nothing.
    has_same_names = any(_tail(site) in modules for site in sites)
    modules |= {_tail(head) for head in HEADS}  # a base with a tied head may have no leaf for it
    collected: dict[str, dict[str, np.ndarray]] = {}
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
            split = split_leaf(path) if array.dtype in FACTOR_DTYPES else None
            if split is None:
                wrong.append(f"{key} is not a module's weight or bias")
                continue
            site, leaf = split
            if site.split(".")[0] in _TRL_HEADS:
                wrong.append(f"{key} belongs to a head that TRL adds, which the base does not have")
            elif base is not None and has_same_names and _tail(site) not in modules:
                wrong.append(f"{base.description} has no module {site}")
            elif any(_differs(array, others, site, leaf) for others in (*own_leaves, collected)):
                wrong.append(f"{key} is also in another file, with different numbers")
            else:
                leaves.setdefault(site, {})[leaf] = array
        if wrong:
            problems[name] = "; ".join(wrong[:3]) + (" …" if len(wrong) > 3 else "")
        for site, arrays in leaves.items():
            collected.setdefault(site, {}).update(arrays)
    if problems:
        raise unread_error(str(folder), problems)
    return collected


def _differs(array: np.ndarray, others: Leaves, site: str, leaf: str) -> bool:
    """Whether the leaf is among the others with different numbers."""
    other = others.get(site, {}).get(leaf)
    return other is not None and not (
        other.dtype == array.dtype and np.array_equal(np.asarray(other), array)
    )


def _tail(site: str) -> str:
    """The end of a module's name, from its last part that is not a number."""
    head, _, last = site.rpartition(".")
    return last if not last.isdigit() or not head else f"{_tail(head)}.{last}"
