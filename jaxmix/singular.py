"""The singular value decomposition of an operator, from its factors if it has low rank."""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.operators import Hadamard, LowRank, Operator, Sum, Zero, add

__all__ = ["low_rank_of", "rounding", "singular", "truncated"]

# From this size on a randomised decomposition is used if a key is given. An exact one of a smaller
# matrix takes less than a second on two cores.
LARGE = 768
# Halko, Martinsson, Tropp: a few additional directions, and a few power iterations.
_OVERSAMPLING = 10
_ITERATIONS = 4


def low_rank_of(delta: Operator) -> LowRank | None:
    """Returns an operator as one low rank; None if that has no advantage over a dense matrix.

    Args:
        delta: Any operator (rows, cols).

    Returns:
        ``B A``, computed without a dense matrix.

    Example:
        >>> from jaxmix.operators import Dense
        >>> ones = LowRank(jnp.ones((3, 1)), jnp.ones((1, 3)))
        >>> low_rank_of(Hadamard(ones, ones)).rank, low_rank_of(Dense(jnp.ones((3, 3))))
        (1, None)
    """
    match delta:
        case LowRank():
            return delta
        case Zero():
            rows, cols = delta.shape
            return LowRank(jnp.zeros((rows, 1)), jnp.zeros((1, cols)))
        case Hadamard() if delta.left.rank * delta.right.rank < min(delta.shape):
            return delta.low_rank()
        case Sum():
            thin = [low_rank_of(term) for term in delta.terms]
            known = [term for term in thin if term is not None]
            if len(known) < len(thin) or sum(term.rank for term in known) >= min(delta.shape):
                return None
            both = reduce(add, known[1:], known[0])
            return both if isinstance(both, LowRank) else None
        case _:
            return None


def singular(delta: Operator, noise: Any = 0.0) -> tuple[Array, Array, Array]:
    """Returns ``Δ = U Σ Vᵀ`` without directions that are zero up to rounding, at least one.

    Args:
        delta: Δ (out, in).
        noise: The largest singular value of Δ that rounding alone may cause.

    Returns:
        U (out, r), Σ's diagonal (r,) in descending order, and Vᵀ (r, in).
    """
    with jax.default_matmul_precision("highest"):
        u, s, vt = _decomposed(delta)
    kept = _rank(s, noise, delta.shape)
    return u[:, :kept], s[:kept], vt[:kept]


def truncated(
    delta: Operator, rank: int | float | None, key: Array | None = None, noise: Any = 0.0
) -> tuple[Float[Array, "out r"], Float[Array, "r in"], Float[Array, ""]]:
    """Returns ``B A ≈ Δ``, the best of its rank, with the singular values split evenly.

    Args:
        delta: Δ (out, in).
        rank: r, padded with zeros if Δ has a smaller rank; or a share of the energy, kept with the
            smallest rank that suffices; None for the rank of Δ up to rounding.
        key: For decomposing a large dense Δ by random products if the rank is an integer.
        noise: The largest singular value of Δ that rounding alone may cause.

    Returns:
        B (out, r), A (r, in), and ``‖Δ − B A‖ / ‖Δ‖`` (), which is 0 for Δ = 0.

    Example:
        >>> from jaxmix.operators import Dense
        >>> b, a, error = truncated(Dense(jnp.diag(jnp.array([4.0, 3.0]))), 1)
        >>> b.shape, a.shape, round(float(error), 3)
        ((2, 1), (1, 2), 0.6)
    """
    with jax.default_matmul_precision("highest"):
        if key is not None and isinstance(rank, int) and _is_large(delta.shape, rank):
            if low_rank_of(delta) is None:
                return _randomised(_dense(delta), rank, key)
        u, s, vt = _decomposed(delta)
        tails = jnp.cumsum(s[::-1] ** 2)[::-1]
        if isinstance(rank, int):
            kept = rank
        elif rank is None:
            kept = _rank(s, noise, delta.shape)
        else:
            kept = max(1, int(jnp.sum(tails > (1 - rank) * tails[0])))
        left = tails[kept] if kept < s.size else jnp.zeros_like(tails[0])
        return *_shared(u, s, vt, kept), jnp.sqrt(left / jnp.where(tails[0] > 0, tails[0], 1))


def rounding(s: Float[Array, " r"], noise: Any, shape: tuple[int, int]) -> Float[Array, ""]:
    """Returns the largest singular value of a matrix that may be caused by rounding alone.

    Args:
        s: The matrix's singular values (r,).
        noise: The same for rounding before the decomposition.
        shape: The matrix's shape (out, in).

    Returns:
        A number ().
    """
    return jnp.maximum(max(shape) * jnp.finfo(s.dtype).eps * jnp.max(s), noise)


def _rank(s: Array, noise: Any, shape: tuple[int, int]) -> int:
    """The number of singular values above rounding, at least 1."""
    return max(1, int(jnp.sum(s > rounding(s, noise, shape))))


def _shared(u: Array, s: Array, vt: Array, kept: int) -> tuple[Array, Array]:
    """``B = U √Σ`` and ``A = √Σ Vᵀ``, truncated or padded with zeros."""
    root = jnp.sqrt(s[:kept])
    b, a = u[:, :kept] * root[None, :], root[:, None] * vt[:kept]
    more = kept - root.size
    return jnp.pad(b, ((0, 0), (0, more))), jnp.pad(a, ((0, more), (0, 0)))


def _decomposed(delta: Operator) -> tuple[Array, Array, Array]:
    """U, Σ and Vᵀ; for ``B A`` by QR of both factors and the SVD of the small core."""
    if (thin := low_rank_of(delta)) is None:
        u, s, vt = jnp.linalg.svd(_dense(delta), full_matrices=False)
        return u, s, vt
    q_b, r_b = jnp.linalg.qr(thin.b)
    q_a, r_a = jnp.linalg.qr(thin.a.T)
    u, s, vt = jnp.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return q_b @ u, s, vt @ q_a.T


def _dense(delta: Operator) -> Float[Array, "out in"]:
    """Δ as a dense matrix."""
    return delta.dense()


def _is_large(shape: tuple[int, ...], rank: int) -> bool:
    """Whether a randomised decomposition is much faster."""
    return min(shape) >= LARGE and 4 * (rank + _OVERSAMPLING) <= min(shape)


def _randomised(matrix: Array, rank: int, key: Array) -> tuple[Array, Array, Array]:
    """The SVD in the range of a few random products of Δ, and its error."""
    size = (matrix.shape[1], rank + _OVERSAMPLING)
    q, _ = jnp.linalg.qr(matrix @ jax.random.normal(key, size, matrix.dtype))
    for _ in range(_ITERATIONS):
        back, _ = jnp.linalg.qr(matrix.T @ q)
        q, _ = jnp.linalg.qr(matrix @ back)
    u, s, vt = jnp.linalg.svd(q.T @ matrix, full_matrices=False)
    b, a = _shared(q @ u, s, vt, rank)
    norm = jnp.linalg.norm(matrix)
    return b, a, jnp.linalg.norm(matrix - b @ a) / jnp.where(norm > 0, norm, 1)
