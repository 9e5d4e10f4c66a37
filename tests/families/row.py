"""A row of the contract's table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmix.families import Update

from .formulas import Leaves

__all__ = ["Config", "Factors", "Row"]

Factors = dict[str, Any]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One form of a family.

    Args:
        build: Builds the update from PEFT's factors and the config, as a reader does.
        formula: PEFT's computation, one of `tests.families.formulas`.
        weight: The weight's shape in PyTorch.
        shapes: The shape of each factor, by PEFT's name.
        size: The expected result of ``size()``.
        config: What the formula needs in addition to the factors.
        additive: Whether the update is linear in its strength, ``W + s·Δ``.
        std: The standard deviation of the factors' numbers.
        fixed: Factors that are not drawn.
        says: The update's properties, where they do not follow from the factors' names:
            ``reads_base``, ``has_bias``, ``has_weight``; ``fits_out`` and ``fits_in`` if a weight
            with one more output, or input, fits too; ``reads_bias_alone`` if the map of the weight
            reads nothing.
    """

    build: Callable[[Factors, Config], Update]
    formula: Callable[[Any, Config, Leaves, float], tuple[np.ndarray, np.ndarray]]
    weight: tuple[int, ...]
    shapes: Mapping[str, tuple[int, ...]]
    size: str
    config: Config = field(default_factory=dict)
    additive: bool = True
    std: float = 0.7
    fixed: Mapping[str, np.ndarray] = field(default_factory=dict)
    properties: Mapping[str, bool] = field(default_factory=dict)

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored as (in, out)."""
        return bool(self.config.get("fan_in_fan_out"))

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight as a matrix."""
        rows, columns = self.weight[0], int(np.prod(self.weight[1:]))
        return (columns, rows) if self.transposed else (rows, columns)

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """PyTorch's weight as the matrix that updates act on."""
        return weight.T if self.transposed else weight.reshape(len(weight), -1)

    def factors(self, seed: int) -> Factors:
        """PEFT's tensors in float64."""
        rng = np.random.default_rng(seed)
        tensors = {name: self.std * rng.normal(size=shape) for name, shape in self.shapes.items()}
        return {**tensors, **self.fixed}

    def update(self, factors: Factors) -> Update:
        """The update, with JAX arrays."""
        return self.build({name: jnp.asarray(f) for name, f in factors.items()}, self.config)

    def leaves(self, seed: int) -> Leaves:
        """A weight and a bias, and different ones for the base."""
        rng, bias = np.random.default_rng(seed + 100), self.shape[:1]
        shapes = (self.weight, bias, self.weight, bias)
        return Leaves(*(rng.normal(size=shape) for shape in shapes))
