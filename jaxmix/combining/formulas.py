"""The formulas of the methods, which combine the tensors of several adapters into one.

A stack (n, …) holds the tensor of each adapter, already multiplied by the sign of its weight; the
weights (n,) are not negative. The tensors may have any shape: a Δ (out, in), a factor or a bias.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

__all__ = [
    "Options",
    "breadcrumbs",
    "dare_linear",
    "dare_ties",
    "linear",
    "magnitude_prune",
    "model_stock",
    "sce",
    "slerp",
    "ties",
]

MajoritySign = Literal["total", "frequency"]

# Above this cosine two directions count as equal, and slerp is linear (as in mergekit).
_COLLINEAR = 0.9995


@dataclass(frozen=True)
class Options:
    """The options of a method.

    Args:
        density: The share of each tensor's entries to keep.
        majority_sign: Whether the sign of the sum wins, or the most frequent sign.
        outliers: The share of each tensor's largest entries to drop.
    """

    density: float = 1.0
    majority_sign: MajoritySign = "total"
    outliers: float = 0.0


Tensors = Float[Array, "n *shape"]
Weights = Float[Array, " n"]
Key = Array | None


def linear(stack: Tensors, weights: Weights, options: Options, key: Key) -> Float[Array, "*shape"]:
    """``Σ wᵢ Δᵢ``, task arithmetic."""
    return jnp.tensordot(weights, stack, 1)


def magnitude_prune(
    stack: Tensors, weights: Weights, options: Options, key: Key
) -> Float[Array, "*shape"]:
    """``Σ wᵢ trim(Δᵢ)``, where trim keeps the largest entries."""
    return linear(_trimmed(stack, options.density), weights, options, key)


def ties(stack: Tensors, weights: Weights, options: Options, key: Key) -> Float[Array, "*shape"]:
    """TIES: trims, elects a sign for each position, and averages the entries with that sign."""
    return _elected(_trimmed(stack, options.density), weights, options)


def dare_linear(
    stack: Tensors, weights: Weights, options: Options, key: Key
) -> Float[Array, "*shape"]:
    """``Σ wᵢ drop(Δᵢ)``, where drop zeroes random entries and scales up the rest."""
    return linear(_dropped(stack, options.density, key), weights, options, key)


def dare_ties(
    stack: Tensors, weights: Weights, options: Options, key: Key
) -> Float[Array, "*shape"]:
    """DARE's drop, followed by TIES's election."""
    return _elected(_dropped(stack, options.density, key), weights, options)


def breadcrumbs(
    stack: Tensors, weights: Weights, options: Options, key: Key
) -> Float[Array, "*shape"]:
    """``Σ wᵢ Δᵢ`` without the largest and the smallest entries.

    The share of outliers is dropped first, then the smallest entries until the density is reached.
    If the density and the share of outliers exceed 1 together, fewer outliers are dropped.
    """
    size = stack[0].size
    kept = int(options.density * size)
    top = min(int(options.outliers * size), size - kept)
    return linear(_ranked(stack, top, top + kept), weights, options, key)


def sce(stack: Tensors, weights: Weights, options: Options, key: Key) -> Float[Array, "*shape"]:
    """SCE: selects entries of large variance, weights by energy, erases minority signs."""
    if options.density < 1:
        spread = jnp.var(stack, 0)
        kept = int(int(jnp.count_nonzero(spread)) * options.density)
        stack = stack * _largest(spread, 0, kept).astype(stack.dtype)[None]
    energy = jnp.mean(stack.reshape(len(stack), -1) ** 2, 1)
    total = jnp.sum(energy)
    share = jnp.where(total > 0, energy / jnp.where(total > 0, total, 1), 1 / len(stack))
    mask = _agreeing(stack, "total").astype(stack.dtype)
    left = jnp.tensordot(share, mask, 1)
    return jnp.tensordot(share, stack * mask, 1) / jnp.where(left > 0, left, 1)


def model_stock(
    stack: Tensors, weights: Weights, options: Options, key: Key
) -> Float[Array, "*shape"]:
    """Model Stock: ``t · mean(Δᵢ)`` with ``t = n cos θ / (1 + (n − 1) cos θ)``.

    θ is the average angle between two of the Δᵢ: what they agree on is kept, the rest counts as
    noise. If they point away from each other, the result is zero.
    """
    flat = stack.reshape(len(stack), -1)
    cosines = [_cosine(flat[i], flat[j]) for i, j in combinations(range(len(flat)), 2)]
    cosine = jnp.maximum(sum(cosines) / len(cosines), 0)
    t = len(flat) * cosine / (1 + (len(flat) - 1) * cosine)
    return t * jnp.mean(stack, 0)


def slerp(stack: Tensors, weights: Weights, options: Options, key: Key) -> Float[Array, "*shape"]:
    """The arc from Δ₁ to Δ₂ at t = w₂/(w₁ + w₂); a straight line if both have one direction."""
    t = weights[1] / (weights[0] + weights[1])
    cosine = _cosine(stack[0].reshape(-1), stack[1].reshape(-1))
    straight = jnp.abs(cosine) > _COLLINEAR
    angle = jnp.arccos(jnp.where(straight, 0, cosine))
    first = jnp.where(straight, 1 - t, jnp.sin((1 - t) * angle) / jnp.sin(angle))
    second = jnp.where(straight, t, jnp.sin(t * angle) / jnp.sin(angle))
    return first * stack[0] + second * stack[1]


def _trimmed(stack: Tensors, density: float) -> Tensors:
    """Keeps the largest entries of each tensor."""
    return _ranked(stack, 0, int(density * stack[0].size))


def _ranked(stack: Tensors, start: int, stop: int) -> Tensors:
    """Keeps the entries of each tensor ranked from ``start`` to ``stop`` by absolute value."""
    if start == 0 and stop >= stack[0].size:
        return stack
    kept = jnp.stack([_largest(jnp.abs(tensor), start, stop) for tensor in stack])
    return jnp.where(kept, stack, 0)


def _largest(sizes: Float[Array, "*shape"], start: int, stop: int) -> Bool[Array, "*shape"]:
    """Masks the entries ranked from ``start`` to ``stop`` in descending order; ties by position."""
    flat = sizes.reshape(-1)
    return (_first(flat, stop) & ~_first(flat, start)).reshape(sizes.shape)


def _first(sizes: Float[Array, " size"], count: int) -> Bool[Array, " size"]:
    """Masks the ``count`` largest entries."""
    if count == 0:
        return jnp.zeros(sizes.shape, bool)
    least = _ordered(sizes, sizes.size - count)
    above, equal = sizes > least, sizes == least
    return above | (equal & (jnp.cumsum(equal) <= count - jnp.sum(above)))


def _ordered(sizes: Float[Array, " size"], place: int) -> Array | np.ndarray:
    """Returns the entry at a position of the sorted array.

    On CPU, NumPy's partition is thirty times faster than XLA's sort.
    """
    if isinstance(sizes, Tracer) or any(d.platform != "cpu" for d in sizes.devices()):
        return jnp.sort(sizes)[place]
    return np.partition(np.asarray(sizes), place)[place]


def _dropped(stack: Tensors, density: float, key: Key) -> Tensors:
    """Keeps random entries of each tensor, divided by the density."""
    if density == 1:
        return stack
    assert key is not None
    kept = jnp.stack([_mask(jax.random.fold_in(key, i), density, t) for i, t in enumerate(stack)])
    return jnp.where(kept, stack / density, 0)


def _mask(key: Array, density: float, tensor: Float[Array, "*shape"]) -> Bool[Array, "*shape"]:
    """Draws a mask of the entries to keep."""
    return jax.random.bernoulli(key, density, tensor.shape)


def _agreeing(stack: Tensors, majority: MajoritySign) -> Bool[Array, "n *shape"]:
    """Masks the entries that have the elected sign of their position; a tie elects plus."""
    signs = jnp.sign(stack)
    votes = jnp.sum(stack if majority == "total" else signs, 0)
    return signs == jnp.where(votes >= 0, 1, -1).astype(stack.dtype)[None]


def _elected(stack: Tensors, weights: Weights, options: Options) -> Float[Array, "*shape"]:
    """Divides the weighted sum of the entries with the elected sign by their number."""
    mask = _agreeing(stack, options.majority_sign).astype(stack.dtype)
    return jnp.tensordot(weights, stack * mask, 1) / jnp.maximum(jnp.sum(mask, 0), 1)


def _cosine(x: Float[Array, " n"], y: Float[Array, " n"]) -> Float[Array, ""]:
    """Returns the cosine between two vectors, 0 if one of them is zero."""
    norms = jnp.linalg.norm(x) * jnp.linalg.norm(y)
    return jnp.clip(jnp.vdot(x, y) / jnp.where(norms > 0, norms, 1), -1, 1)
