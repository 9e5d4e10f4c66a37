"""How tests look into adapters."""

from typing import Any

from jaxmix import Adapter

__all__ = ["of"]


def of(adapter: Adapter) -> dict[str, Any]:
    """The updates, of whose families the test knows more than the type does."""
    return dict(adapter.updates)
