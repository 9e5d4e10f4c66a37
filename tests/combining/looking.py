"""Access to adapters in tests."""

from typing import Any

from jaxmix import Adapter

__all__ = ["of"]


def of(adapter: Adapter) -> dict[str, Any]:
    """Returns the updates, untyped: tests read fields that only some families have."""
    return dict(adapter.updates)
