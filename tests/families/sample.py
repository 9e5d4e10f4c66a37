"""Random updates of a family for the laws, and PEFT's results for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxmix.families import Update

from .formulas import Leaves
from .module import Module, Rng

__all__ = ["Peft", "Sample"]

Formula = Callable[[Any, Mapping[str, Any], Leaves, float], tuple[np.ndarray, np.ndarray]]
# A formula of `tests.families.formulas`, with PEFT's factors (None if absent) and its config.
Peft = tuple[Formula, dict[str, Any], dict[str, Any]]


@dataclass(frozen=True)
class Sample:
    """Random updates of a family at any module.

    Args:
        draw: Draws an update for a module.
        peft: Returns PEFT's formula, factors and config for an update: the inverse of `Row.build`.
            None for updates that replace leaves of the base, which the laws' fold applies itself.
        shaped: Whether the formula takes the weight in its own shape, and not as a matrix.
    """

    draw: Callable[[Rng, Module], Update]
    peft: Callable[[Any], Peft] | None = None
    shaped: bool = False
