"""Rounds results to 16 bits once, and measures the error of that rounding."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

__all__ = ["Loss", "Rounding", "is_rounded", "round_to_dtype", "summarize", "total_loss"]


@dataclass(frozen=True)
class Loss:
    """Statistics over some elements of a tensor: of error, base weight and the mix's effect.

    Args:
        count: The number of elements.
        squares: ``Σx²`` of error, weight and effect.
        most: ``max |x|`` of error, weight and effect.
        overflowed: The number of finite numbers that rounding made infinite.
        largest: The largest absolute value among them.
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
    def of(cls, fields: Mapping[str, Any]) -> "Loss":
        """Builds a loss from the output of `asdict`, as read back from JSON."""
        return cls(fields["count"], tuple(fields["squares"]), tuple(fields["most"]))


@dataclass(frozen=True)
class Rounding:
    """The error of the one rounding to 16 bits, in tensors that adapters changed.

    Here e is the error, w the base's weight and d the change by the mix before rounding.

    Args:
        largest: ``max |e|``.
        rms: ``√mean e²``.
        of_weight: ``√(Σe² / Σw²)``: near 0.0017 for bfloat16, 0.0002 for float16.
        of_effect: ``√(Σe² / Σd²)``; at 1 the rounding error is as large as the mix's effect. None
            if the mix has no effect.
        largest_of_weight: ``max |e| / max |w|``.
        largest_of_effect: ``max |e| / max |d|``.
        tensors: The same figures for each tensor by name; empty within these.
    """

    largest: float
    rms: float
    of_weight: float | None
    of_effect: float | None
    largest_of_weight: float | None
    largest_of_effect: float | None
    tensors: "Mapping[str, Rounding]"


def is_rounded(dtype: Any) -> bool:
    """Whether results must be rounded to this dtype, which is narrower than the arithmetic."""
    return np.dtype(dtype).itemsize < 4


def round_to_dtype(exact: Array, base: Array, dtype: Any) -> tuple[Array, Loss]:
    """Rounds numbers to a dtype and measures the error.

    Args:
        exact: The numbers (rows, …), in float32.
        base: The base's numbers (rows, …), of any float dtype.
        dtype: The dtype to round to.

    Returns:
        The rounded numbers, and the loss.
    """
    out, table = _round(exact, base, dtype)
    count, largest, statistics = 0, 0.0, np.asarray(table)
    if not np.isfinite(statistics).all():
        table, over = jax.device_get(_measure_finite(exact, base, out))
        statistics = np.asarray(table)
        count, largest = int(np.sum(over[0], dtype=np.int64)), float(np.max(over[1], initial=0.0))
    squares = tuple(float(np.sum(row, dtype=np.float64)) for row in statistics[:3])
    most = tuple(float(np.max(row, initial=0.0)) for row in statistics[3:])
    return out, Loss(math.prod(exact.shape), squares, most, count, largest)  # pyright: ignore[reportArgumentType]


@partial(jax.jit, static_argnames="dtype")
def _round(exact: Array, base: Array, dtype: Any) -> tuple[Array, Array]:
    """Rounds, and returns the statistics (6, rows), which are finite if all numbers are."""
    out = exact.astype(dtype)
    return out, _statistics(out.astype(exact.dtype) - exact, exact, base)


@jax.jit
def _measure_finite(exact: Array, base: Array, out: Array) -> tuple[Array, tuple[Array, Array]]:
    """Returns the statistics without numbers that rounding made infinite, and these by row."""
    rounded = out.astype(exact.dtype)
    is_lost = jnp.isfinite(exact) & ~jnp.isfinite(rounded)
    error = jnp.where(is_lost, jnp.zeros_like(exact), rounded - exact)
    beyond = jnp.where(is_lost, jnp.abs(exact), jnp.zeros_like(exact))
    lost = jnp.sum(_rows(is_lost), axis=1), jnp.max(_rows(beyond), axis=1, initial=0)
    return _statistics(error, exact, base), lost


def _statistics(error: Array, exact: Array, base: Array) -> Array:
    """Sums over each row: longer sums would lose digits in float32."""
    old = base.astype(exact.dtype)
    kinds = [_rows(x) for x in (error, old, exact - old)]
    squares = [jnp.sum(x * x, axis=1) for x in kinds]
    most = [jnp.max(jnp.abs(x), axis=1, initial=0) for x in kinds]
    return jnp.stack(squares + most)


def _rows(x: Array) -> Array:
    """Returns the numbers as a matrix, with those of a vector in one row."""
    return x.reshape(1, -1) if x.ndim < 2 else x.reshape(x.shape[0], -1)


def summarize(losses: Mapping[str, Loss]) -> Rounding | None:
    """Returns the rounding error of each tensor and of all together.

    Args:
        losses: The losses by tensor.

    Returns:
        The figures; None if nothing was rounded.
    """
    if not losses:
        return None
    tensors = {name: _figures(loss, {}) for name, loss in losses.items()}
    return _figures(total_loss(losses.values()), tensors)


def total_loss(losses: Iterable[Loss]) -> Loss:
    """Adds losses."""
    return sum(losses, Loss(0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)))


def _figures(loss: Loss, tensors: Mapping[str, Rounding]) -> Rounding:
    """Converts a loss to the figures that are reported."""
    error, weight, effect = loss.squares
    largest_error, largest_weight, largest_effect = loss.most

    def ratio(a: float, b: float) -> float | None:
        return a / b if b else None

    roots = [ratio(error, weight), ratio(error, effect)]
    of_weight, of_effect = (None if r is None else math.sqrt(r) for r in roots)
    rms = math.sqrt(error / loss.count) if loss.count else 0.0
    maxima = ratio(largest_error, largest_weight), ratio(largest_error, largest_effect)
    return Rounding(largest_error, rms, of_weight, of_effect, *maxima, tensors)
