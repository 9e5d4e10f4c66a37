"""Checks of options that all initializers share; they refuse what PEFT refuses."""

import math
from collections.abc import Collection
from numbers import Integral
from typing import Any

from jaxmix.errors import ShapeError, UnsupportedError

__all__ = ["check_choice", "check_positive", "scale_of"]


def check_positive(**options: int) -> None:
    """Checks that all options are integers of at least 1.

    Raises:
        ShapeError: If an option is not a positive integer; the message names it.
    """
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ShapeError(f"{name} is {value!r}, expected a positive integer")
    if wrong := [f"{name} is {value}" for name, value in options.items() if value < 1]:
        raise ShapeError(f"{', '.join(wrong)}, expected at least 1")


def check_choice(name: str, value: Any, known: Collection[Any]) -> None:
    """Checks that an option has a value that PEFT knows.

    Raises:
        UnsupportedError: If the value is not one of `known`.
    """
    # Equal is not enough: Python takes 1 for True.
    if not any(type(value) is type(choice) and value == choice for choice in known):
        raise UnsupportedError(
            f"{name} is {value!r}, expected one of {', '.join(map(repr, known))}"
        )


def scale_of(rank: int, alpha: float, use_rslora: bool = False) -> float:
    """Returns γ = alpha/rank, or alpha/√rank with rslora.

    Raises:
        ShapeError: If the rank is below 1.
    """
    check_positive(rank=rank)
    return alpha / (math.sqrt(rank) if use_rslora else rank)
