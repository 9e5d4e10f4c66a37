"""Rotations made of skew matrices: what the blocks of OFT, BOFT, PSOFT and Diag-OFT are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["MOST_TERMS", "cayley", "series", "shrunk", "skew", "terms_problem"]

# Each term of a series is a product of its own in the program.
MOST_TERMS = 1000


def skew(numbers: Float[Array, "k n"]) -> Float[Array, "k b b"]:
    """The skew matrices of which these are the upper triangles, row by row.

    Args:
        numbers: b(b − 1)/2 of them for each matrix.

    Returns:
        The matrices.

    Example:
        >>> skew(jnp.array([[3.0]])).tolist()
        [[[0.0, 3.0], [-3.0, 0.0]]]
    """
    size = round((1 + (1 + 8 * numbers.shape[1]) ** 0.5) / 2)
    if size == 1:
        return jnp.zeros((numbers.shape[0], 1, 1), numbers.dtype)
    # Counted by XLA: as constants of the program these would be as large as a matrix.
    i, j = jnp.arange(size, dtype=np.int32)[:, None], jnp.arange(size, dtype=np.int32)[None]
    low, high = jnp.minimum(i, j), jnp.maximum(i, j)
    number = jnp.where(i == j, 0, low * (2 * size - low - 1) // 2 + high - low - 1)
    sign = jnp.sign(j - i).astype(numbers.dtype)
    return jnp.asarray(numbers)[:, number] * sign[None]


def shrunk(q: Float[Array, "k a b"], bound: Float[Array, ""] | float) -> Float[Array, "k a b"]:
    """The matrices, each brought to this Frobenius norm if its own is larger.

    Args:
        q: the matrices.
        bound: the norm.

    Returns:
        Matrices of the same shape.

    Example:
        >>> shrunk(jnp.full((1, 2, 2), 4.0), 1.0).tolist()
        [[[0.5, 0.5], [0.5, 0.5]]]
    """
    square = jnp.sum(q * q, axis=(1, 2), keepdims=True)
    # Compared as squares: the root's slope at Q = 0, where training starts, is infinite.
    is_far = square > bound**2
    root = jnp.sqrt(jnp.where(is_far, square, jnp.ones_like(square)))
    return jnp.where(is_far, q * (bound / root), q)


def cayley(q: Float[Array, "k b b"]) -> Float[Array, "k b b"]:
    """``(I + Q)⁻¹ (I − Q) = 2 (I − Q²)⁻¹ (I − Q) − I`` of skew matrices.

    ``I − Q²`` is symmetric and at least I, so Cholesky's factors serve. They compile and run in a
    part of the time that pivoting takes, at the cost of digits where Q is far beyond 1.

    Args:
        q: the matrices Q.

    Returns:
        The rotations, in Q's dtype; LAPACK works in float32 at the least. NaN where Q² overflows.

    Example:
        >>> quarter = cayley(jnp.array([[[0.0, 1.0], [-1.0, 0.0]]]))
        >>> jnp.round(quarter[0, 0], 4).tolist() == [0.0, -1.0]
        True
    """
    wide = q.astype(np.promote_types(q.dtype, np.float32))
    eye = jnp.eye(q.shape[-1], dtype=wide.dtype)[None]
    square = wide @ wide
    factor = jax.lax.linalg.cholesky(eye - square, symmetrize_input=False)
    half = jax.lax.linalg.triangular_solve(factor, eye - wide, left_side=True, lower=True)
    inverse = jax.lax.linalg.triangular_solve(
        factor, half, left_side=True, lower=True, transpose_a=True
    )
    # Of infinite numbers LAPACK can make finite ones.
    is_finite = jnp.isfinite(square).all((1, 2), keepdims=True)
    return jnp.where(is_finite, 2 * inverse - eye, jnp.nan).astype(q.dtype)


def series(q: Float[Array, "k b b"], terms: int, ends_twice: bool = False) -> Array:
    """PEFT's Cayley-Neumann series, ``I + 2Q + 2Q² + … + 2Qⁿ⁻² + Qⁿ⁻¹``.

    It approximates ``(I + Q)(I − Q)⁻¹``: the inverse of `cayley` for the same Q. PEFT's loop gives
    for three terms what it gives for four.

    Args:
        q: the matrices Q.
        terms: n.
        ends_twice: whether the last power counts twice too, as before peft 0.18.

    Returns:
        The sums, which are rotations for small Q only.

    Example:
        >>> series(jnp.full((1, 1, 1), 0.5), 5).tolist()
        [[[2.8125]]]
    """
    total = power = jnp.broadcast_to(jnp.eye(q.shape[-1], dtype=q.dtype), q.shape)
    if ends_twice:
        for _ in range(1, terms):
            power = power @ q
            total = total + 2 * power
        return total
    if terms < 2:
        return total
    total = total + 2 * q
    if terms == 2:
        return total
    power = q @ q
    total = total + 2 * power
    for _ in range(3, terms - 1):
        power = power @ q
        total = total + 2 * power
    return total + power @ q


def terms_problem(terms: Any) -> str | None:
    """Describes an invalid number of terms for `series`.

    Args:
        terms: the number; None, which stands for the exact rotation, is valid.

    Returns:
        One line, or None if the number is valid.

    Example:
        >>> terms_problem(5), terms_problem(2**40)
        (None, 'terms is 1099511627776, expected an integer from 1 to 1,000')
    """
    if terms is None or (type(terms) is int and 1 <= terms <= MOST_TERMS):
        return None
    return f"terms is {terms!r}, expected an integer from 1 to {MOST_TERMS:,}"
