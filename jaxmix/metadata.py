"""What an adapter's file says about it beside its numbers: for which model and task it is."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from jaxmix.errors import AdapterError

__all__ = ["Metadata", "checked_metadata", "shared_metadata"]

# By the names that the file has for them: strings, or what else JSON holds.
Metadata = Mapping[str, Any]


def checked_metadata(metadata: Any) -> dict[str, Any]:
    """Metadata as a dict of its own.

    Args:
        metadata: ``{name: value}``, strings and what JSON can hold.

    Returns:
        A copy.

    Raises:
        AdapterError: if it is anything else.
    """
    copy: Any = None
    try:
        copy = json.loads(json.dumps(metadata, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        pass
    if not isinstance(metadata, Mapping) or copy != metadata:
        raise AdapterError(
            f"an adapter's metadata are {metadata!r}, expected a dict of strings and other values "
            "that JSON can hold."
        )
    return copy


def shared_metadata(several: Iterable[Metadata]) -> dict[str, Any]:
    """The metadata of what is made of several adapters: what all say that say anything.

    Args:
        several: the metadata of each.

    Returns:
        The values on which none disagrees.

    Example:
        >>> shared_metadata([{"task_type": "CAUSAL_LM", "revision": "a"}, {"revision": "b"}, {}])
        {'task_type': 'CAUSAL_LM'}
    """
    found: dict[str, list[Any]] = {}
    for metadata in several:
        for name, value in metadata.items():
            found.setdefault(name, []).append(value)
    return {
        name: values[0] for name, values in found.items() if values.count(values[0]) == len(values)
    }
