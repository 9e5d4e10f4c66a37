"""The sum of a matrix and many single numbers, which a TPU's compiler compiles in seconds."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.operators.backends import Backend, by_platform
from jaxmix.operators.loops import carry
from jaxmix.operators.sparse import Sparse

__all__ = ["scattered"]

# XLA sorts the numbers by position; it takes 13 s to compile a sort of 170,000 numbers.
_RUN = 4096


def scattered(x: Float[Array, "rows cols"], sparse: Sparse) -> Float[Array, "rows cols"]:
    """Returns ``x + M`` for a matrix on one device.

    Args:
        x: The matrix.
        sparse: M, of the same shape.

    Example:
        >>> scattered(jnp.ones((1, 2)), Sparse(jnp.ones(1), jnp.array([[0], [1]]), 1, 2)).tolist()
        [[1.0, 2.0]]
    """

    def on_accelerator(backend: Backend, x: Array, sparse: Sparse) -> Array:
        is_large = x.size > jnp.iinfo(sparse.indices.dtype).max
        by_runs = backend.has_loops and sparse.values.shape[0] > _RUN and not is_large
        return _by_runs(x, sparse) if by_runs else sparse.added_to(x)

    return by_platform(lambda x, sparse: sparse.added_to(x), on_accelerator, x, sparse)


def _by_runs(x: Array, sparse: Sparse) -> Array:
    """The same by a loop over runs of numbers."""
    more = -sparse.values.shape[0] % _RUN
    values = jnp.pad(sparse.values, (0, more)).reshape(-1, _RUN)
    # In one axis XLA adds them in place; in two it would copy the matrix for each run.
    at = jnp.pad(sparse.indices[0] * x.shape[1] + sparse.indices[1], (0, more)).reshape(-1, _RUN)

    def add_run(flat: Array, run: tuple[Array, Array]) -> tuple[Array, None]:
        return flat.at[run[0]].add(run[1]), None

    return jax.lax.scan(add_run, carry(x.reshape(-1), sparse), (at, values))[0].reshape(x.shape)
