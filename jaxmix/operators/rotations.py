"""Rotations from skew-symmetric matrices, which OFT, BOFT, PSOFT and Diag-OFT use as blocks."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmix.operators.backends import Backend, by_platform
from jaxmix.operators.solving import inverse

__all__ = [
    "MAX_TERMS",
    "blocks_side_by_side",
    "cayley",
    "cayley_neumann",
    "clip_norm",
    "skew_symmetric",
    "stacked_blocks",
    "terms_misfit",
]

# The most terms of a series: each term is a separate product in the program.
MAX_TERMS = 1000

# At least this many matrices of at most this size are inverted in a loop on a TPU: for 1024 of
# 8 × 8, a v5e's compiler expects two thirds of the time of a decomposition.
_SMALL = 16


def skew_symmetric(numbers: Float[Array, "k n"]) -> Float[Array, "k b b"]:
    """Builds skew-symmetric matrices from their upper triangles.

    Args:
        numbers: The upper triangle of each matrix, row by row (k, b(b − 1)/2).

    Returns:
        The matrices (k, b, b).

    Example:
        >>> skew_symmetric(jnp.array([[3.0]])).tolist()
        [[[0.0, 3.0], [-3.0, 0.0]]]
    """
    size = round((1 + (1 + 8 * numbers.shape[1]) ** 0.5) / 2)
    if size == 1:
        return jnp.zeros((numbers.shape[0], 1, 1), numbers.dtype)
    # XLA computes the indices: as constants of the program they would be as large as a matrix.
    i, j = jnp.arange(size, dtype=np.int32)[:, None], jnp.arange(size, dtype=np.int32)[None]
    low, high = jnp.minimum(i, j), jnp.maximum(i, j)
    number = jnp.where(i == j, 0, low * (2 * size - low - 1) // 2 + high - low - 1)
    sign = jnp.sign(j - i).astype(numbers.dtype)
    return jnp.asarray(numbers)[:, number] * sign[None]


def clip_norm(q: Float[Array, "k a b"], bound: Float[Array, ""] | float) -> Float[Array, "k a b"]:
    """Scales each matrix down to a Frobenius norm if its own norm is larger.

    Args:
        q: The matrices.
        bound: The largest norm.

    Returns:
        Matrices of the same shape.

    Example:
        >>> clip_norm(jnp.full((1, 2, 2), 4.0), 1.0).tolist()
        [[[0.5, 0.5], [0.5, 0.5]]]
    """
    square = jnp.sum(q * q, axis=(1, 2), keepdims=True)
    # Compare squares: the gradient of the root is infinite at Q = 0, where training starts.
    is_far = square > bound**2
    root = jnp.sqrt(jnp.where(is_far, square, jnp.ones_like(square)))
    return jnp.where(is_far, q * (bound / root), q)


def cayley(q: Float[Array, "k b b"]) -> Float[Array, "k b b"]:
    """Returns the Cayley transform ``(I + Q)⁻¹ (I − Q)`` of skew-symmetric matrices.

    It is computed as ``2 (I − Q²)⁻¹ (I − Q) − I``. ``I − Q²`` is symmetric positive definite, so a
    Cholesky decomposition solves it. That compiles and runs much faster than LU with pivoting, but
    loses precision where the norm of Q is far above 1. A TPU's compiler takes 12 s to compile the
    decompositions of many small matrices; there it is computed as ``2 (I + Q)⁻¹ − I``.

    Args:
        q: The matrices Q.

    Returns:
        The rotations, in Q's dtype; they are computed in at least float32, which LAPACK needs.
        NaN where Q² overflows.

    Example:
        >>> quarter = cayley(jnp.array([[[0.0, 1.0], [-1.0, 0.0]]]))
        >>> jnp.round(quarter[0, 0], 4).tolist() == [0.0, -1.0]
        True
    """
    wide = q.astype(np.promote_types(q.dtype, np.float32))

    def on_accelerator(backend: Backend, q: Array) -> Array:
        in_loop = backend.has_loops and q.shape[1] <= _SMALL <= q.shape[0]
        return (_cayley_in_a_loop if in_loop else _cayley_by_cholesky)(q)

    return by_platform(_cayley_by_cholesky, on_accelerator, wide).astype(q.dtype)


def _cayley_by_cholesky(q: Float[Array, "k b b"]) -> Float[Array, "k b b"]:
    """``2 (I − Q²)⁻¹ (I − Q) − I``."""
    eye = jnp.eye(q.shape[-1], dtype=q.dtype)[None]
    square = q @ q
    factor = jax.lax.linalg.cholesky(eye - square, symmetrize_input=False)
    half = jax.lax.linalg.triangular_solve(factor, eye - q, left_side=True, lower=True)
    inverse = jax.lax.linalg.triangular_solve(
        factor, half, left_side=True, lower=True, transpose_a=True
    )
    # Of infinite numbers LAPACK can make finite ones.
    is_finite = jnp.isfinite(square).all((1, 2), keepdims=True)
    return jnp.where(is_finite, 2 * inverse - eye, jnp.nan)


def _cayley_in_a_loop(q: Float[Array, "k b b"]) -> Float[Array, "k b b"]:
    """``2 (I + Q)⁻¹ − I``."""
    eye = jnp.eye(q.shape[-1], dtype=q.dtype)[None]
    is_finite = jnp.isfinite(jnp.sum(q * q, (1, 2), keepdims=True))
    return jnp.where(is_finite, 2 * inverse(eye + q) - eye, jnp.nan)


def cayley_neumann(q: Float[Array, "k b b"], terms: int, ends_twice: bool = False) -> Array:
    """Returns PEFT's Cayley-Neumann series, ``I + 2Q + 2Q² + … + 2Qⁿ⁻² + Qⁿ⁻¹``.

    It approximates ``(I + Q)(I − Q)⁻¹``, the inverse of `cayley` for the same Q. As in PEFT, three
    terms give the same result as four.

    Args:
        q: The matrices Q.
        terms: The number of terms n.
        ends_twice: Whether the last power has the factor 2 as well, as before peft 0.18.

    Returns:
        The sums, which are approximately orthogonal for small Q only.

    Example:
        >>> cayley_neumann(jnp.full((1, 1, 1), 0.5), 5).tolist()
        [[[2.8125]]]
    """
    powers = 4 if terms == 3 and not ends_twice else terms
    factors = [1.0, *[2.0] * (powers - 1)]
    if powers > 2 and not ends_twice:
        factors[-1] = 1.0
    return _polynomial(q, factors)


def _polynomial(q: Float[Array, "k b b"], factors: Sequence[float]) -> Float[Array, "k b b"]:
    """``Σ cᵢ Qⁱ`` by Horner's rule in Q²: half as many products as there are powers.

    Multiples of the identity are left out of the products, which XLA then fuses with the sums.
    """
    eye = factors[0] * jnp.eye(q.shape[-1], dtype=q.dtype)[None]
    if len(factors) == 1:
        return jnp.broadcast_to(eye, q.shape)
    if len(factors) == 2:
        return eye + factors[1] * q
    square = q @ q
    pairs = [(*factors[i : i + 2], 0.0)[:2] for i in range(0, len(factors), 2)]
    even, odd = pairs.pop()
    # The sum of the higher powers over Q²ⁱ, without the identity.
    total = odd * q if odd else None
    for lower, own in reversed(pairs):
        shifted = even * square + own * q
        total = shifted if total is None else square @ total + shifted
        even = lower
    assert total is not None
    return eye + total


def blocks_side_by_side(blocks: Float[Array, "k b b"]) -> Float[Array, "b kb"]:
    """Returns the transposes of square blocks side by side, the form in which they are held.

    A TPU stores arrays in tiles of 128 columns, which blocks of 32 columns would not fill.

    Args:
        blocks: The blocks.

    Example:
        >>> blocks = jnp.array([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
        >>> blocks_side_by_side(blocks).tolist()
        [[1.0, 3.0, 5.0, 7.0], [2.0, 4.0, 6.0, 8.0]]
    """
    k, b, _ = blocks.shape
    return jnp.transpose(blocks, (2, 0, 1)).reshape(b, k * b)


def stacked_blocks(side_by_side: Float[Array, "b kb"]) -> Float[Array, "k b b"]:
    """Returns the blocks that `blocks_side_by_side` arranged.

    Args:
        side_by_side: The transposed blocks.

    Example:
        >>> stacked_blocks(jnp.array([[1.0, 3.0, 5.0, 7.0], [2.0, 4.0, 6.0, 8.0]])).tolist()
        [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]
    """
    b = side_by_side.shape[0]
    return jnp.transpose(side_by_side.reshape(b, -1, b), (1, 2, 0))


def terms_misfit(terms: Any) -> str | None:
    """Describes an invalid number of terms for `cayley_neumann`.

    Args:
        terms: The number; None stands for the exact rotation and is valid.

    Returns:
        A message, or None if the number is valid.

    Example:
        >>> terms_misfit(5), terms_misfit(2**40)
        (None, 'terms is 1099511627776, expected an integer from 1 to 1,000')
    """
    if terms is None or (type(terms) is int and 1 <= terms <= MAX_TERMS):
        return None
    return f"terms is {terms!r}, expected an integer from 1 to {MAX_TERMS:,}"
