"""The smallest singular values of a matrix, by rotations that a TPU's compiler compiles in seconds.

For a TPU, XLA's own decomposition of a weight of 1024 × 4096 compiles for minutes.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmix.operators.backends import Backend, by_platform
from jaxmix.operators.loops import carry
from jaxmix.operators.lowrank import LowRank

__all__ = ["smallest", "smallest_by_rotations"]

# The rows that are rotated among two blocks fill the TPU's matrix unit.
_BLOCK = 64
# Weights take 8 to 12 sweeps. A matrix that never settles ends here.
_MOST_SWEEPS = 60


def smallest(matrix: Float[Array, "out in"], rank: int) -> LowRank:
    """Returns ``U S V`` of the r smallest singular values of a matrix.

    Args:
        matrix: The matrix, in float32 or wider.
        rank: r, less than the matrix's full rank.

    Returns:
        Two factors whose product it is, one with orthonormal rows or columns. Gradients are those
        of an SVD, which is then XLA's own on every platform.

    Example:
        >>> smallest(jnp.diag(jnp.array([3.0, 2.0])), 1).dense().tolist()
        [[0.0, 0.0], [0.0, 2.0]]
    """

    def on_accelerator(backend: Backend, matrix: Array) -> tuple[Array, Array]:
        return (_rotated if backend.has_loops else _by_svd)(matrix, rank)

    return LowRank(*by_platform(partial(_by_svd, rank=rank), on_accelerator, matrix))


def _by_svd(matrix: Array, rank: int) -> tuple[Array, Array]:
    u, values, v = jnp.linalg.svd(matrix, full_matrices=False)
    kept = values.shape[0] - rank
    return u[:, kept:] * values[None, kept:], v[kept:]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _rotated(matrix: Array, rank: int) -> tuple[Array, Array]:
    return smallest_by_rotations(matrix, rank)


@_rotated.defjvp
def _rotated_jvp(rank: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple:
    return jax.jvp(partial(_by_svd, rank=rank), primals, tangents)


def smallest_by_rotations(
    matrix: Float[Array, "out in"], rank: int
) -> tuple[Float[Array, "out r"], Float[Array, "r in"]]:
    """Returns the factors of `smallest` by one-sided Jacobi rotations, in blocks.

    Rotations of pairs of rows make all rows orthogonal. They are then the rows of ``S V``. A tall
    matrix is transposed first.

    Args:
        matrix: The matrix.
        rank: r.
    """
    if matrix.shape[0] > matrix.shape[1]:
        right, left = smallest_by_rotations(matrix.T, rank)
        return left.T, right.T
    largest = jnp.max(jnp.abs(matrix))
    rows = _orthogonal(matrix / jnp.where(largest > 0, largest, 1))
    norms = jnp.sqrt(jnp.sum(rows * rows, 1))
    more = len(rows) - len(matrix)  # rows of zeros, which are no singular values of the matrix
    order = jnp.argsort(norms)[more : more + rank]
    norms = norms[order, None]
    v = rows[order] / jnp.where(norms > 0, norms, 1)
    # Sums of products, which compile in a tenth of the time of a matrix product.
    return jax.lax.map(lambda direction: jnp.sum(matrix * direction[None], 1), v).T, v


def _orthogonal(rows: Float[Array, "n m"]) -> Float[Array, "padded m"]:
    """Rotates rows until they are orthogonal, and adds rows of zeros to fill the blocks."""
    n, m = rows.shape
    pairs = -(-n // (2 * _BLOCK))
    size = -(-n // (2 * pairs))
    blocks = jnp.pad(rows, ((0, 2 * pairs * size - n), (0, 0))).reshape(2 * pairs, size, m)
    # LAPACK's bound for the cosines between rows.
    bound = m**0.5 * jnp.finfo(rows.dtype).eps

    def sweep(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, blocks, _ = state
        zero = carry(jnp.zeros((), rows.dtype), rows)
        return count + 1, *jax.lax.fori_loop(0, 2 * pairs - 1, _rotate_blocks, (blocks, zero))

    def goes_on(state: tuple[Array, Array, Array]) -> Array:
        return (state[2] > bound) & (state[0] < _MOST_SWEEPS)

    start = jnp.zeros((), np.int32), blocks, carry(jnp.full((), jnp.inf, rows.dtype), rows)
    return jax.lax.while_loop(goes_on, sweep, start)[1].reshape(-1, m)


def _rotate_blocks(number: Array | int, state: tuple[Array, Array]) -> tuple[Array, Array]:
    """One round of a tournament of blocks, of which each pair becomes more orthogonal.

    Args:
        number: The round's number.
        state: The blocks, and the largest cosine between rows that met in this sweep.
    """
    blocks, worst = state
    half, size, m = blocks.shape[0] // 2, *blocks.shape[1:]
    first = jnp.arange(half, dtype=np.int32) + np.int32(half) * jnp.asarray(number, np.int32)
    first = first % (2 * half - 1)
    second = _opponents(number, 2 * half)[first]
    # The block with the smaller number keeps the longer rows, so that the order settles.
    pairs = jnp.stack([jnp.minimum(first, second), jnp.maximum(first, second)], 1)
    rows = blocks[pairs].reshape(half, 2 * size, m)
    gram = jax.lax.map(lambda x: _matmul(x, x.T), rows)  # a larger product is slow to compile
    is_own = jnp.eye(2 * size, dtype=bool)[None]
    norms = jnp.sqrt(jnp.sum(jnp.where(is_own, gram, 0), 2))
    bounds = norms[:, :, None] * norms[:, None]
    cosines = jnp.where(is_own | (bounds == 0), 0, jnp.abs(gram) / jnp.where(bounds, bounds, 1))
    rows = jax.lax.map(lambda x: _matmul(*x), (_rotation(gram), rows))
    blocks = blocks.at[pairs].set(rows.reshape(half, 2, size, m))
    return blocks, jnp.maximum(worst, jnp.max(cosines))


def _rotation(gram: Float[Array, "k n n"]) -> Float[Array, "k n n"]:
    """Returns the product of the rotations of one sweep that makes Gram matrices diagonal."""
    n = gram.shape[1]
    start = jnp.broadcast_to(jnp.eye(n, dtype=gram.dtype), gram.shape)
    state = gram, carry(start, gram)
    total = jax.lax.fori_loop(0, n - 1, _rotate_rows, state)[1]
    # Rounding has made it less orthogonal; a step of Newton's iteration corrects that.
    return 1.5 * total - 0.5 * _matmul(_matmul(total, jnp.swapaxes(total, 1, 2)), total)


def _rotate_rows(number: Array | int, state: tuple[Array, Array]) -> tuple[Array, Array]:
    """One round of a tournament of rows: each pair becomes orthogonal, the longer row first."""
    gram, total = state
    row = jnp.arange(gram.shape[1], dtype=np.int32)
    opponent = _opponents(number, gram.shape[1])
    is_own, is_first = (row[:, None] == row[None])[None], (row < opponent)[None]
    is_others = (opponent[:, None] == row[None])[None]
    # Sums over one number each: XLA compiles gathers more slowly.
    own = jnp.sum(jnp.where(is_own, gram, 0), 2)
    other = jnp.sum(jnp.where(is_others, own[:, None], 0), 2)
    both = jnp.sum(jnp.where(is_others, gram, 0), 2)
    ratio = (other - own) / jnp.where(both == 0, 1, 2 * both)
    sign = jnp.where((ratio < 0) | ((ratio == 0) & is_first), -1, 1)
    tangent = jnp.where(both == 0, 0, sign / (jnp.abs(ratio) + jnp.sqrt(1 + ratio * ratio)))
    cosine = 1 / jnp.sqrt(1 + tangent * tangent)
    sine = cosine * tangent
    is_wrong = jnp.where(is_first, own < other, own > other)
    cosine, sine = jnp.where(is_wrong, sine, cosine), jnp.where(is_wrong, -cosine, sine)
    turn = jnp.where(is_own, cosine[:, :, None], 0) - jnp.where(is_others, sine[:, :, None], 0)
    return _matmul(_matmul(turn, gram), jnp.swapaxes(turn, 1, 2)), _matmul(turn, total)


def _opponents(number: Array | int, count: int) -> Int[Array, " count"]:
    """Returns each player's opponent in a round of a tournament; all pairs meet in count − 1.

    Args:
        number: The round's number.
        count: The number of players, which is even.
    """
    number, last = jnp.asarray(number, np.int32), np.int32(count - 1)
    player = jnp.arange(count, dtype=np.int32)
    # The sum of two opponents' numbers is that of the round; who is left meets the last player.
    opponent = (number - player) % last
    opponent = jnp.where(opponent == player, last, opponent)
    return jnp.where(player == last, number * np.int32(count // 2) % last, opponent)


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")
