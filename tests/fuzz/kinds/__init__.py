"""The kinds of inputs: valid adapters and bases, to which one to three changes are made."""

from functools import cache

from ..case import Case
from .others import OTHERS
from .peft import PEFT

__all__ = ["KINDS", "valid_input"]

KINDS = tuple({**PEFT, **OTHERS})


@cache
def valid_input(kind: str) -> Case:
    """Returns the valid input of a kind."""
    return {**PEFT, **OTHERS}[kind]()
