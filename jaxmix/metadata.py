"""The metadata of an adapter's file: the model and task that it was trained for."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from jaxmix.errors import AdapterError

__all__ = ["Metadata", "checked_metadata", "shared_metadata"]

# By their names in the file: strings and other JSON values.
Metadata = Mapping[str, Any]


def checked_metadata(metadata: Any) -> dict[str, Any]:
    """Checks metadata and returns a copy.

    Args:
        metadata: ``{name: value}``, of strings and JSON values.

    Returns:
        A copy.

    Raises:
        AdapterError: If it is anything else.
    """
    copy: Any = None
    try:
        copy = json.loads(json.dumps(metadata, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        pass
    if not isinstance(metadata, Mapping) or copy != metadata:
        raise AdapterError(
            f"an adapter's metadata are {metadata!r}, expected a dict of strings and other values "
            "that can be stored as JSON."
        )
    return copy


def shared_metadata(metadata: Iterable[Metadata]) -> dict[str, Any]:
    """Returns the metadata on which several adapters agree.

    Args:
        metadata: The metadata of each adapter.

    Returns:
        The values that are equal in all adapters that have them.

    Example:
        >>> shared_metadata([{"task_type": "CAUSAL_LM", "revision": "a"}, {"revision": "b"}, {}])
        {'task_type': 'CAUSAL_LM'}
    """
    by_name: dict[str, list[Any]] = {}
    for item in metadata:
        for name, value in item.items():
            by_name.setdefault(name, []).append(value)
    return {
        name: values[0]
        for name, values in by_name.items()
        if values.count(values[0]) == len(values)
    }
