"""Arrays that PEFT stores once for all sites of an adapter."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxmix.errors import UnsupportedError, listing

__all__ = ["same_array"]


def same_array(updates: Mapping[str, Any], name: str, of: Callable[[Any], Any]) -> Any:
    """Returns the array that the updates of all sites share: one object, or equal ones.

    Args:
        updates: ``{site: update}``.
        name: The tensor's name, for the message.
        of: Returns the array of an update.

    Returns:
        The array.

    Raises:
        UnsupportedError: If they differ; the sites that differ from the first one are listed.

    Example:
        >>> bank = np.ones(2)
        >>> same_array({"a": bank, "b": bank}, "bank", lambda update: update) is bank
        True
    """
    arrays = {site: of(update) for site, update in updates.items()}
    (site, first), *rest = arrays.items()
    if others := [other for other, array in rest if not _is_same(array, first)]:
        raise UnsupportedError(
            f"PEFT stores one {name} for all sites, and that of these sites differs from {site}:"
            f"{listing(others)}\nExport them as separate adapters."
        )
    return first


def _is_same(a: Any, b: Any) -> bool:
    return a is b or (a.dtype == b.dtype and np.array_equal(a, b))
