"""Modules and random numbers for the updates that the tests draw."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["KINDS", "RANK", "Module", "Rng", "common_divisor", "divisor", "normal", "ones", "zeros"]

Rng = np.random.Generator
Shape = tuple[int, ...]

# Fixed, because each new shape means another compilation.
RANK = 2


@dataclass(frozen=True)
class Module:
    """A module: its kind, its weight's shape in PyTorch, and whether it has a bias."""

    kind: str
    shape: Shape
    bias: bool = False

    @property
    def matrix(self) -> tuple[int, int]:
        """(out, in) of the weight as a matrix."""
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def kernel(self) -> Shape:
        """A convolution's spatial shape."""
        return self.shape[2:]


KINDS: dict[str, Module] = {
    "wide": Module("linear", (6, 8), True),
    "tall": Module("linear", (8, 4)),
    "square": Module("linear", (6, 6), True),
    "conv1d": Module("conv", (4, 6, 3), True),
    "conv2d": Module("conv", (6, 4, 3, 2)),
    "conv3d": Module("conv", (4, 2, 1, 2, 3), True),
    "embedding": Module("embedding", (10, 4)),
    "norm": Module("norm", (5,), True),
}

# Factors may be NumPy arrays, although the families' fields are annotated as jax.Array.
ones: Any = np.ones
zeros: Any = np.zeros


def normal(rng: Rng, *shape: int, std: float = 1.0) -> Any:
    """Random float64 numbers."""
    return std * rng.normal(size=shape)


def common_divisor(*sizes: int) -> int:
    """The largest number up to 4 that divides all sizes."""
    return next(n for n in (4, 3, 2, 1) if not any(size % n for size in sizes))


def divisor(rng: Rng, size: int, *candidates: int) -> int:
    """A random one of the candidates that divide a size, or the size if none does."""
    return int(rng.choice([n for n in candidates if size % n == 0] or [size]))
