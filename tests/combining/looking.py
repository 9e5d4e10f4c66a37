"""Access to adapters' updates, for tests."""

from typing import Any

from jaxmix import Adapter

__all__ = ["of"]


def of(adapter: Adapter) -> dict[str, Any]:
    """The updates, typed as Any because each test knows their families."""
    return dict(adapter.updates)
