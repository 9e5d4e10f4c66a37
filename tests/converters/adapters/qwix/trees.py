"""Random factors for trees of LoRA leaves."""

from typing import Any

import numpy as np

__all__ = ["drawn"]


def drawn(*shape: int, seed: int = 0) -> Any:
    """Returns random numbers in float64."""
    return np.random.default_rng([seed, *shape]).normal(size=shape)
