"""Patterns for ``pytest.raises(match=…)``, which by itself searches for any fragment."""

import re

__all__ = ["full_text"]


def full_text(message: str) -> str:
    """Returns a pattern that matches exactly this message."""
    return rf"\A{re.escape(message)}\Z"
