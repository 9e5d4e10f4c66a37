"""Formulas for norms, ranks, angles and signs of matrices and subspaces.

They use NumPy: ranks differ between sites, and JAX would compile each shape just for a few numbers.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxmix.operators import Operator
from jaxmix.singular import low_rank_of, rounding

__all__ = [
    "Matrix",
    "Thin",
    "effective_rank",
    "inner",
    "on_host",
    "overlap",
    "principal_angles",
    "shares",
    "sign_agreement",
    "singular_on_host",
]

# The number of entries per block of rows, which limits the memory of sign comparisons.
_BLOCK = 1 << 22


class Thin(NamedTuple):
    """A matrix of low rank, ``B A``: B (out, r) and A (r, in)."""

    b: np.ndarray
    a: np.ndarray


Matrix = Thin | np.ndarray


def on_host(delta: Operator) -> Matrix:
    """Converts a matrix to NumPy: its factors if it has low rank, otherwise the dense matrix.

    Args:
        delta: A matrix (out, in).

    Returns:
        The same matrix, as `Thin` or as an array.

    Example:
        >>> from jaxmix.operators import Zero
        >>> on_host(Zero(3, 2)).b.shape
        (3, 1)
    """
    if (thin := low_rank_of(delta)) is None:
        return np.asarray(delta.dense())
    return Thin(np.asarray(thin.b), np.asarray(thin.a))


def _shape(matrix: Matrix) -> tuple[int, int]:
    """Returns the shape (out, in)."""
    if isinstance(matrix, Thin):
        return matrix.b.shape[0], matrix.a.shape[1]
    return matrix.shape[0], matrix.shape[1]


def _rows(matrix: Matrix, part: slice) -> np.ndarray:
    """Returns some of the rows as an array."""
    return matrix.b[part] @ matrix.a if isinstance(matrix, Thin) else matrix[part]


def singular_on_host(delta: Matrix, noise: Any = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes ``Δ = U Σ Vᵀ`` without values that are zero to rounding; see `jaxmix.singular`.

    Args:
        delta: Δ (out, in), from `on_host`.
        noise: The largest singular value that rounding errors alone may cause.

    Returns:
        U (out, r), the diagonal of Σ (r,) in descending order, and Vᵀ (r, in).

    Example:
        >>> u, s, vt = singular_on_host(Thin(np.ones((4, 2)), np.ones((2, 9))))
        >>> u.shape, s.round(6).tolist(), vt.shape
        ((4, 1), [12.0], (1, 9))
    """
    if isinstance(delta, Thin):
        q_b, r_b = np.linalg.qr(delta.b)
        q_a, r_a = np.linalg.qr(delta.a.T)
        u, s, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
        u, vt = q_b @ u, vt @ q_a.T
    else:
        u, s, vt = np.linalg.svd(delta, full_matrices=False)
    values: Any = s
    kept = max(1, int(np.sum(s > float(rounding(values, noise, _shape(delta))))))
    return u[:, :kept], s[:kept], vt[:kept]


def inner(a: Matrix, b: Matrix) -> float:
    """Computes the inner product ``⟨A, B⟩ = Σᵢⱼ Aᵢⱼ Bᵢⱼ``, from factors if there are any.

    Args:
        a: A matrix (out, in).
        b: A matrix (out, in).

    Returns:
        The inner product.

    Example:
        >>> ones = Thin(np.ones((3, 1)), np.ones((1, 2)))
        >>> inner(ones, ones), inner(2 * np.ones((3, 2)), ones)
        (6.0, 12.0)
    """
    if not isinstance(a, Thin):
        return inner(b, a) if isinstance(b, Thin) else float(np.vdot(a, b))
    if not isinstance(b, Thin):
        return float(np.sum(a.b * (b @ a.a.T)))
    return float(np.sum((a.b.T @ b.b) * (a.a @ b.a.T)))


def effective_rank(s: Float[np.ndarray, " r"]) -> float:
    """Computes the effective rank of a matrix, ``exp(− Σ pᵢ ln pᵢ)`` with ``pᵢ = sᵢ / Σ sⱼ``.

    Args:
        s: The singular values (r,).

    Returns:
        A number from 1 (a single direction) to r (r equal directions); 0 for a matrix of zeros.

    Example:
        >>> effective_rank(np.ones(4)), effective_rank(np.zeros(1))
        (4.0, 0.0)

    Source: Roy and Vetterli, 2007.
    """
    total = np.sum(s)
    if not float(total):
        return 0.0
    p = s[s > 0] / total
    return float(np.exp(-np.sum(p * np.log(p))))


def principal_angles(
    p: Float[np.ndarray, "n k"], q: Float[np.ndarray, "n l"]
) -> Float[np.ndarray, " m"]:
    """Computes the principal angles between two subspaces, ``cos θᵢ = σᵢ(PᵀQ)``.

    Small angles are computed from their sines, which are more accurate.

    Args:
        p: An orthonormal basis of the first subspace (n, k).
        q: An orthonormal basis of the second subspace (n, l).

    Returns:
        The angles in radians (min(k, l),), in ascending order.

    Example:
        >>> eye = np.eye(3)
        >>> [round(float(angle), 4) for angle in principal_angles(eye[:, :2], eye[:, 1:])]
        [0.0, 1.5708]

    Source: Björck and Golub, 1973.
    """
    if p.shape[1] > q.shape[1]:
        p, q = q, p
    _, cosines, rotation = np.linalg.svd(q.T @ p, full_matrices=False)
    principal = p @ rotation.T
    sines = np.linalg.norm(principal - q @ (q.T @ principal), axis=0)
    return np.sort(np.arctan2(sines, cosines))


def overlap(angles: Float[np.ndarray, " m"], sizes: Iterable[int], size: int) -> float:
    """Computes how much of the smaller of two subspaces is inside the larger, relative to chance.

    It is ``(mean cos² θᵢ − c) / (1 − c)``, where c is the larger dimension divided by that of the
    space, the expected value for random subspaces.

    Args:
        angles: The principal angles (m,).
        sizes: The dimensions of both subspaces.
        size: The dimension of the space.

    Returns:
        1 if one subspace contains the other, about 0 for random subspaces, and below 0 if they
        avoid each other; 0 if one of them is the whole space.

    Example:
        >>> overlap(np.zeros(2), (2, 3), 5), overlap(np.zeros(2), (2, 5), 5)
        (1.0, 0.0)
    """
    chance = max(sizes) / size
    if chance >= 1:
        return 0.0
    return (float(np.mean(np.cos(angles) ** 2)) - chance) / (1 - chance)


def sign_agreement(a: Matrix, b: Matrix) -> float | None:
    """Computes the share of entries in which two matrices have the same sign.

    Args:
        a: A matrix (out, in).
        b: A matrix (out, in).

    Returns:
        The share, from 0 to 1, among entries where neither is 0; None if there are no such entries.

    Example:
        >>> a, b = np.array([[1.0, -2.0, 0.0]]), np.array([[3.0, 4.0, 5.0]])
        >>> sign_agreement(a, b)
        0.5
    """
    rows, cols = _shape(a)
    step = max(1, _BLOCK // cols)
    same = known = 0
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        product = np.sign(_rows(a, part)) * np.sign(_rows(b, part))
        same += int(np.sum(product > 0))
        known += int(np.sum(product != 0))
    return same / known if known else None


def shares(so_far: Sequence[Matrix]) -> list[float]:
    """Computes the share of each step in the total effect, ``⟨Δᵢ − Δᵢ₋₁, Δₙ⟩ / ‖Δₙ‖²``.

    Args:
        so_far: The cumulative effects Δᵢ (out, in): of the first step, of the first two, and so on.

    Returns:
        A share for each step. They sum to 1, or are all 0 if the total effect is zero.

    Example:
        >>> shares([np.ones((2, 3)), 4 * np.ones((2, 3))])
        [0.25, 0.75]
    """
    products = [float(inner(effect, so_far[-1])) for effect in so_far]
    previous = [0.0, *products[:-1]]
    if not products[-1]:
        return [0.0 for _ in products]
    return [(x - before) / products[-1] for x, before in zip(products, previous, strict=True)]
