"""The kinds of inputs: valid adapters and bases, of which one or a few things are then changed."""

from functools import cache

from ..case import Case
from .others import OTHERS
from .peft import PEFT

__all__ = ["KINDS", "made"]

KINDS = tuple({**PEFT, **OTHERS})


@cache
def made(kind: str) -> Case:
    """The valid input of a kind."""
    return {**PEFT, **OTHERS}[kind]()
