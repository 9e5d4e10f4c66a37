"""The array that PEFT stores once for all of an adapter's sites."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxmix.errors import UnsupportedError, listing

__all__ = ["same_array"]


def same_array(updates: Mapping[str, Any], name: str, of: Callable[[Any], Any]) -> Any:
    """The array that every site's update holds: one object, or equal ones.

    Args:
        updates: ``{site: update}``.
        name: the tensor's name, for the message.
        of: from an update to its array.

    Returns:
        The array.

    Raises:
        UnsupportedError: if sites hold others; it lists those that differ from the first.

    Example:
        >>> bank = np.ones(2)
        >>> same_array({"a": bank, "b": bank}, "bank", lambda update: update) is bank
        True
    """
    arrays = {site: of(update) for site, update in updates.items()}
    (site, first), *rest = arrays.items()
    if others := [other for other, array in rest if not _is_same(array, first)]:
        raise UnsupportedError(
            f"PEFT stores one {name} for all sites, and these have another than {site}:"
            f"{listing(others)}\nExport them as adapters of their own."
        )
    return first


def _is_same(a: Any, b: Any) -> bool:
    return a is b or (a.dtype == b.dtype and np.array_equal(a, b))
