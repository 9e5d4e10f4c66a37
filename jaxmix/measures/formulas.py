"""Formulas of what adapters change: norms, ranks, angles and signs, of matrices and subspaces.

They are NumPy's: ranks differ from site to site, and each shape would be compiled anew for the sake
of a few numbers.
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

# Entries of a block of rows, so that signs are compared within a few megabytes.
_BLOCK = 1 << 22


class Thin(NamedTuple):
    """A matrix of low rank, ``B A``: B (out, r) and A (r, in)."""

    b: np.ndarray
    a: np.ndarray


Matrix = Thin | np.ndarray


def on_host(delta: Operator) -> Matrix:
    """A matrix as NumPy's arrays: the factors of one of low rank, and any other itself.

    Args:
        delta: A matrix (out, in).

    Returns:
        The same matrix.

    Example:
        >>> from jaxmix.operators import Zero
        >>> on_host(Zero(3, 2)).b.shape
        (3, 1)
    """
    if (thin := low_rank_of(delta)) is None:
        return np.asarray(delta.dense())
    return Thin(np.asarray(thin.b), np.asarray(thin.a))


def _shape(matrix: Matrix) -> tuple[int, int]:
    """``(out, in)``."""
    if isinstance(matrix, Thin):
        return matrix.b.shape[0], matrix.a.shape[1]
    return matrix.shape[0], matrix.shape[1]


def _rows(matrix: Matrix, part: slice) -> np.ndarray:
    """Some of its rows, dense."""
    return matrix.b[part] @ matrix.a if isinstance(matrix, Thin) else matrix[part]


def singular_on_host(delta: Matrix, noise: Any = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``Δ = U Σ Vᵀ`` without what is nought to rounding, as `jaxmix.singular.singular` has it.

    Args:
        delta: Δ (out, in), by `on_host`.
        noise: How large rounding alone may make a singular value of Δ.

    Returns:
        U (out, r), Σ's diagonal (r,), the largest first, and Vᵀ (r, in).

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
    """The inner product ``⟨A, B⟩ = Σᵢⱼ Aᵢⱼ Bᵢⱼ``, by the factors of what is of low rank.

    Args:
        a: A matrix (out, in).
        b: Another (out, in).

    Returns:
        A number.

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
    """The effective rank of a matrix, ``exp(− Σ pᵢ ln pᵢ)`` with ``pᵢ = sᵢ / Σ sⱼ``.

    Args:
        s: Its singular values (r,).

    Returns:
        A number from 1 (one direction) to r (r directions alike); 0 for a matrix of noughts.

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
    """The principal angles between two subspaces, ``cos θᵢ = σᵢ(PᵀQ)``.

    Small angles come from their sines, which rounding leaves alone.

    Args:
        p: An orthonormal basis of one (n, k).
        q: An orthonormal basis of the other (n, l).

    Returns:
        The angles in radians, (min(k, l),), the smallest first.

    Example:
        >>> eye = np.eye(3)
        >>> [round(float(angle), 4) for angle in principal_angles(eye[:, :2], eye[:, 1:])]
        [0.0, 1.5708]

    Source: Björck and Golub, 1973.
    """
    if p.shape[1] > q.shape[1]:
        p, q = q, p
    _, cosines, turn = np.linalg.svd(q.T @ p, full_matrices=False)
    principal = p @ turn.T
    sines = np.linalg.norm(principal - q @ (q.T @ principal), axis=0)
    return np.sort(np.arctan2(sines, cosines))


def overlap(angles: Float[np.ndarray, " m"], sizes: Iterable[int], size: int) -> float:
    """How much of the smaller of two subspaces lies in the larger, above chance.

    ``(mean cos² θᵢ − c) / (1 − c)``, where c, the larger one's share of all directions, is what two
    spaces drawn at random have.

    Args:
        angles: Their principal angles (m,).
        sizes: Their dimensions.
        size: That of the whole space.

    Returns:
        1 where one holds the other, about 0 where they lie as if drawn at random, below 0 where
        they avoid each other; 0 where one of them is the whole space.

    Example:
        >>> overlap(np.zeros(2), (2, 3), 5), overlap(np.zeros(2), (2, 5), 5)
        (1.0, 0.0)
    """
    chance = max(sizes) / size
    if chance >= 1:
        return 0.0
    return (float(np.mean(np.cos(angles) ** 2)) - chance) / (1 - chance)


def sign_agreement(a: Matrix, b: Matrix) -> float | None:
    """The share of entries in which two matrices have the same sign.

    Args:
        a: A matrix (out, in).
        b: Another (out, in).

    Returns:
        A number from 0 to 1, of the entries where neither is 0; None where there is none.

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
    """The share of each step in the whole, ``⟨Δᵢ − Δᵢ₋₁, Δₙ⟩ / ‖Δₙ‖²``.

    Args:
        so_far: The effect (out, in) of the first step, of the first two, and so on.

    Returns:
        A number for each; together 1, or 0 where all of it comes to nought.

    Example:
        >>> shares([np.ones((2, 3)), 4 * np.ones((2, 3))])
        [0.25, 0.75]
    """
    pulls = [float(inner(one, so_far[-1])) for one in so_far]
    before = [0.0, *pulls[:-1]]
    if not pulls[-1]:
        return [0.0 for _ in pulls]
    return [(now - then) / pulls[-1] for now, then in zip(pulls, before, strict=True)]
