"""What the one rounding to 16 bits does: measured where it is done, and summed up."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

__all__ = ["Loss", "Rounding", "is_rounded", "rounded", "summed"]

# By row of a tensor: the sums of squares, and the largest, of error, weight and effect.
_FIELDS = ("error", "weight", "effect")


@dataclass(frozen=True)
class Loss:
    """Sums over some of a tensor's numbers: of the error, the base's weight, the mix's effect.

    Args:
        count: how many numbers.
        squares: ``Σx²`` of the three.
        most: ``max |x|`` of the three.
        overflowed: how many finite numbers are none after the rounding.
        largest: the largest of these.
    """

    count: int
    squares: tuple[float, float, float]
    most: tuple[float, float, float]
    overflowed: int = 0
    largest: float = 0.0

    def __add__(self, other: "Loss") -> "Loss":
        squares = tuple(a + b for a, b in zip(self.squares, other.squares, strict=True))
        most = tuple(max(a, b) for a, b in zip(self.most, other.most, strict=True))
        return Loss(self.count + other.count, squares, most)  # pyright: ignore[reportArgumentType]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Loss":
        """What `asdict` made, as JSON has it."""
        return cls(told["count"], tuple(told["squares"]), tuple(told["most"]))


@dataclass(frozen=True)
class Rounding:
    """The error of the one rounding to 16 bits, of tensors that adapters changed.

    With e the error, w the base's weight and d what the mix changes before it is rounded.

    Args:
        largest: ``max |e|``.
        rms: ``√mean e²``.
        of_weight: ``√(Σe² / Σw²)``: near 0.0017 for bfloat16, 0.0002 for float16.
        of_effect: ``√(Σe² / Σd²)``; at 1 the rounding is as large as all that the mix does. None
            where the mix does nothing.
        largest_of_weight: ``max |e| / max |w|``.
        largest_of_effect: ``max |e| / max |d|``.
        tensors: the same of each tensor, by name; empty in these.
    """

    largest: float
    rms: float
    of_weight: float | None
    of_effect: float | None
    largest_of_weight: float | None
    largest_of_effect: float | None
    tensors: "Mapping[str, Rounding]"


def is_rounded(dtype: Any) -> bool:
    """Whether results are wider than a dtype, so that they are rounded to it."""
    return np.dtype(dtype).itemsize < 4


def rounded(exact: Array, base: Array, dtype: Any) -> tuple[Array, Loss]:
    """Numbers rounded to a dtype, and what that did.

    Args:
        exact: the numbers (rows, …), in float32.
        base: the base's numbers in their place, of any float dtype.
        dtype: the dtype to round to.

    Returns:
        The numbers of that dtype, and the loss.
    """
    out, *told = _rounded(exact, base, dtype)
    squares, most, over = jax.device_get(told)
    lost = float(np.max(over[1], initial=0.0))
    sums = tuple(float(np.sum(s, dtype=np.float64)) for s in squares)
    tops = tuple(float(np.max(m, initial=0.0)) for m in most)
    count = int(np.sum(over[0], dtype=np.int64))
    return out, Loss(math.prod(exact.shape), sums, tops, count, lost)  # pyright: ignore[reportArgumentType]


@partial(jax.jit, static_argnames="dtype")
def _rounded(exact: Array, base: Array, dtype: Any) -> tuple[Array, Any, Any, Any]:
    """Rounds, and sums up row by row: in float32 a sum over more would lose digits."""
    out = exact.astype(dtype)
    back, old = out.astype(exact.dtype), base.astype(exact.dtype)
    is_lost = jnp.isfinite(exact) & ~jnp.isfinite(back)
    error = jnp.where(is_lost, jnp.zeros_like(exact), back - exact)

    def rows(x: Array) -> Array:
        return x.reshape(1, -1) if x.ndim < 2 else x.reshape(x.shape[0], -1)

    kinds = [rows(x) for x in (error, old, exact - old)]
    squares = [jnp.sum(x * x, axis=1) for x in kinds]
    most = [jnp.max(jnp.abs(x), axis=1) for x in kinds]
    beyond = jnp.where(is_lost, jnp.abs(exact), jnp.zeros_like(exact))
    lost = (jnp.sum(rows(is_lost), axis=1), jnp.max(rows(beyond), axis=1))
    return out, squares, most, lost


def summed(losses: Mapping[str, Loss]) -> Rounding | None:
    """The error of each tensor, and of all.

    Args:
        losses: by tensor.

    Returns:
        The figures; None if nothing was rounded.
    """
    if not losses:
        return None
    tensors = {name: _figures(loss, {}) for name, loss in losses.items()}
    return _figures(total(losses.values()), tensors)


def total(losses: Iterable[Loss]) -> Loss:
    """All losses as one."""
    return sum(losses, Loss(0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)))


def _figures(loss: Loss, tensors: Mapping[str, Rounding]) -> Rounding:
    """A loss in the figures that people compare."""
    error, weight, effect = loss.squares
    top, heaviest, farthest = loss.most

    def ratio(a: float, b: float) -> float | None:
        return a / b if b else None

    roots = [ratio(error, weight), ratio(error, effect)]
    of_weight, of_effect = (None if r is None else math.sqrt(r) for r in roots)
    rms = math.sqrt(error / loss.count) if loss.count else 0.0
    tops = ratio(top, heaviest), ratio(top, farthest)
    return Rounding(top, rms, of_weight, of_effect, *tops, tensors)


def as_json(losses: Mapping[str, Loss]) -> dict[str, Any]:
    """The losses as JSON has them; `Loss.of` reads one."""
    return {name: asdict(loss) for name, loss in losses.items()}
