"""Block-diagonal operators with larger blocks."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.operators import BlockDiagonal


@pytest.mark.parametrize("size", [3, 6, 12, 24])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("copies", [1, 2])
def test_coarse_blocks_are_the_same_matrix(size: int, dtype: jnp.dtype, copies: int) -> None:
    """Larger blocks represent the same matrix, bit for bit."""
    numbers = np.random.default_rng(0).normal(size=(8 // copies, 3, 3))
    blocks = BlockDiagonal(jnp.asarray(numbers, dtype), copies)
    coarse = blocks.coarse(size)
    assert coarse.block_size == size and coarse.blocks.dtype == dtype
    np.testing.assert_array_equal(coarse.dense(), blocks.dense())
