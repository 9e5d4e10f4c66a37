"""The methods' formulas: tensors of several adapters in, one tensor out.

A stack holds what each adapter adds, (n, ...), with its weight's sign already in it; weights (n,)
are not negative. Each formula is for tensors of any shape: a Δ (out, in), a factor, a bias.
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

# From here on two directions count as one, and the way between them is straight (mergekit).
_COLLINEAR = 0.9995


@dataclass(frozen=True)
class Options:
    """What a method needs to know beside the weights.

    Args:
        density: the share of each tensor's entries that are kept.
        majority_sign: whether the sign of the sum wins, or the sign that more of them have.
        outliers: the share of each tensor's entries that are dropped as too large.
    """

    density: float = 1.0
    majority_sign: MajoritySign = "total"
    outliers: float = 0.0


Stack = Float[Array, "n *shape"]
Weights = Float[Array, " n"]
Key = Array | None


def linear(stack: Stack, weights: Weights, options: Options, key: Key) -> Float[Array, "*shape"]:
    """``Σ wᵢ Δᵢ``, task arithmetic."""
    return jnp.tensordot(weights, stack, 1)


def magnitude_prune(
    stack: Stack, weights: Weights, options: Options, key: Key
) -> Float[Array, "*shape"]:
    """``Σ wᵢ trim(Δᵢ)``: the largest entries of each."""
    return linear(_trimmed(stack, options.density), weights, options, key)


def ties(stack: Stack, weights: Weights, options: Options, key: Key) -> Float[Array, "*shape"]:
    """TIES: trim, elect a sign for each entry, and average those that have it."""
    return _elected(_trimmed(stack, options.density), weights, options)


def dare_linear(
    stack: Stack, weights: Weights, options: Options, key: Key
) -> Float[Array, "*shape"]:
    """``Σ wᵢ drop(Δᵢ)``: random entries of each, the rest made larger for those that are gone."""
    return linear(_dropped(stack, options.density, key), weights, options, key)


def dare_ties(stack: Stack, weights: Weights, options: Options, key: Key) -> Float[Array, "*shape"]:
    """DARE's drop, and the election of TIES."""
    return _elected(_dropped(stack, options.density, key), weights, options)


def breadcrumbs(
    stack: Stack, weights: Weights, options: Options, key: Key
) -> Float[Array, "*shape"]:
    """``Σ wᵢ Δᵢ`` of the entries that are neither among the largest nor among the smallest.

    The share of outliers goes first, and then the smallest ones until the density is reached; where
    both shares come to more than all there is, fewer outliers go.
    """
    size = stack[0].size
    kept = int(options.density * size)
    top = min(int(options.outliers * size), size - kept)
    return linear(_ranked(stack, top, top + kept), weights, options, key)


def sce(stack: Stack, weights: Weights, options: Options, key: Key) -> Float[Array, "*shape"]:
    """SCE: select the entries that differ most, weigh by energy, erase what is outvoted."""
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
    stack: Stack, weights: Weights, options: Options, key: Key
) -> Float[Array, "*shape"]:
    """Model Stock: ``t · mean(Δᵢ)`` with ``t = n cos θ / (1 + (n − 1) cos θ)``.

    θ is the mean angle between two of them: what they agree on is kept, the rest is taken for
    noise. Where they point away from each other nothing is left.
    """
    flat = stack.reshape(len(stack), -1)
    cosines = [_cosine(flat[i], flat[j]) for i, j in combinations(range(len(flat)), 2)]
    cosine = jnp.maximum(sum(cosines) / len(cosines), 0)
    t = len(flat) * cosine / (1 + (len(flat) - 1) * cosine)
    return t * jnp.mean(stack, 0)


def slerp(stack: Stack, weights: Weights, options: Options, key: Key) -> Float[Array, "*shape"]:
    """The arc from Δ₁ to Δ₂ at t = w₂/(w₁ + w₂); a straight line where both have one direction."""
    t = weights[1] / (weights[0] + weights[1])
    cosine = _cosine(stack[0].reshape(-1), stack[1].reshape(-1))
    straight = jnp.abs(cosine) > _COLLINEAR
    angle = jnp.arccos(jnp.where(straight, 0, cosine))
    one = jnp.where(straight, 1 - t, jnp.sin((1 - t) * angle) / jnp.sin(angle))
    two = jnp.where(straight, t, jnp.sin(t * angle) / jnp.sin(angle))
    return one * stack[0] + two * stack[1]


def _trimmed(stack: Stack, density: float) -> Stack:
    """Each tensor with its largest entries alone."""
    return _ranked(stack, 0, int(density * stack[0].size))


def _ranked(stack: Stack, start: int, stop: int) -> Stack:
    """Each tensor with the entries alone that are from ``start`` to ``stop`` by size."""
    if start == 0 and stop >= stack[0].size:
        return stack
    kept = jnp.stack([_largest(jnp.abs(one), start, stop) for one in stack])
    return jnp.where(kept, stack, 0)


def _largest(sizes: Float[Array, "*shape"], start: int, stop: int) -> Bool[Array, "*shape"]:
    """Which entries are from ``start`` to ``stop``, the largest first; of equals the first."""
    flat = sizes.reshape(-1)
    return (_first(flat, stop) & ~_first(flat, start)).reshape(sizes.shape)


def _first(sizes: Float[Array, " size"], count: int) -> Bool[Array, " size"]:
    """Which entries are the largest ``count`` ones."""
    if count == 0:
        return jnp.zeros(sizes.shape, bool)
    least = _ordered(sizes, sizes.size - count)
    above, equal = sizes > least, sizes == least
    return above | (equal & (jnp.cumsum(equal) <= count - jnp.sum(above)))


def _ordered(sizes: Float[Array, " size"], place: int) -> Array | np.ndarray:
    """The number that stands at this place when they are in order.

    On CPU, XLA sorts thirty times slower than NumPy finds the one number.
    """
    if isinstance(sizes, Tracer) or any(d.platform != "cpu" for d in sizes.devices()):
        return jnp.sort(sizes)[place]
    return np.partition(np.asarray(sizes), place)[place]


def _dropped(stack: Stack, density: float, key: Key) -> Stack:
    """Each tensor with a random part of its entries, divided by the density."""
    if density == 1:
        return stack
    assert key is not None
    kept = jnp.stack([_mask(jax.random.fold_in(key, i), density, t) for i, t in enumerate(stack)])
    return jnp.where(kept, stack / density, 0)


def _mask(key: Array, density: float, tensor: Float[Array, "*shape"]) -> Bool[Array, "*shape"]:
    """Which entries of a tensor are kept."""
    return jax.random.bernoulli(key, density, tensor.shape)


def _agreeing(stack: Stack, majority: MajoritySign) -> Bool[Array, "n *shape"]:
    """Which entries have the sign that was elected for their place; a tie elects plus."""
    signs = jnp.sign(stack)
    votes = jnp.sum(stack if majority == "total" else signs, 0)
    return signs == jnp.where(votes >= 0, 1, -1).astype(stack.dtype)[None]


def _elected(stack: Stack, weights: Weights, options: Options) -> Float[Array, "*shape"]:
    """The weighted sum of the entries of the elected sign, over how many they are."""
    mask = _agreeing(stack, options.majority_sign).astype(stack.dtype)
    return jnp.tensordot(weights, stack * mask, 1) / jnp.maximum(jnp.sum(mask, 0), 1)


def _cosine(x: Float[Array, " n"], y: Float[Array, " n"]) -> Float[Array, ""]:
    """The cosine between two vectors; 0 where one is nought."""
    norms = jnp.linalg.norm(x) * jnp.linalg.norm(y)
    return jnp.clip(jnp.vdot(x, y) / jnp.where(norms > 0, norms, 1), -1, 1)
