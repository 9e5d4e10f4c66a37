"""Patterns for ``pytest.raises(match=…)``, which by itself searches for any fragment."""

import re

__all__ = ["full_text"]

# JAX adds this note to some errors that pass through its frames, and pytest matches notes too.
_NOTE = r"(\n-{20}\nFor simplicity, JAX has removed its internal frames .*)?"


def full_text(message: str) -> str:
    """Returns a pattern that matches exactly this message."""
    return rf"\A{re.escape(message)}{_NOTE}\Z"
