"""What all kinds ask of their words: what PEFT refuses is refused."""

import math
from collections.abc import Collection
from numbers import Integral
from typing import Any

from jaxmix.errors import ShapeError, UnsupportedError

__all__ = ["one_of", "positive", "scale_of"]


def positive(**words: int) -> None:
    """Refuses numbers below 1, and what is no integer.

    Raises:
        ShapeError: If one is; by its name.
    """
    for word, value in words.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ShapeError(f"{word} is {value!r}, expected an integer from 1 on")
    if wrong := [f"{word} is {value}" for word, value in words.items() if value < 1]:
        raise ShapeError(f"{', '.join(wrong)}, expected 1 at the least")


def one_of(word: str, value: Any, known: Collection[Any]) -> None:
    """Refuses what PEFT does not know.

    Raises:
        UnsupportedError: If the value is none of those known.
    """
    if value not in known:
        raise UnsupportedError(
            f"{word} is {value!r}, expected one of {', '.join(map(repr, known))}"
        )


def scale_of(rank: int, alpha: float, use_rslora: bool = False) -> float:
    """γ = alpha/rank, or alpha/√rank.

    Raises:
        ShapeError: If the rank is below 1.
    """
    positive(rank=rank)
    return alpha / (math.sqrt(rank) if use_rslora else rank)
