"""The indices of XLA's operations, as NumPy's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from .by_numpy import EXACT, by_numpy

X = np.random.default_rng(0).normal(size=(4, 5, 3))
ROWS = np.array([2, 0, 2], np.int32)
PAIRS = np.array([[3, 1], [0, 4]], np.int32)
FAR = np.array([[3, 9], [-7, 4]], np.int32)

CASES: dict[str, Callable[[Any], Any]] = {
    "rows": lambda x: x[ROWS],
    "columns": lambda x: x[:, ROWS],
    "last axis": lambda x: x[..., ROWS],
    "two axes": lambda x: x[PAIRS[:, 0], PAIRS[:, 1]],
    "two axes apart": lambda x: x[PAIRS[:, 0], :, ROWS[:2]],
    "matrix of rows": lambda x: x[PAIRS - 3],
    "clipped": lambda x: jnp.take(x, FAR, axis=1, mode="clip"),
    "filled": lambda x: jnp.take(x, FAR, axis=1, mode="fill", fill_value=7),
    "windows": lambda x: lax.gather(
        x,
        PAIRS,
        lax.GatherDimensionNumbers((0, 2, 3), (), (0, 1)),
        (1, 1, 2),
    ),
    "set": lambda x: x.at[ROWS[:2]].set(1),
    "set a column": lambda x: x.at[:, 2].set(x[:, 0]),
    "set two axes": lambda x: x.at[PAIRS[:, 0], PAIRS[:, 1]].set(2),
    "set, dropped": lambda x: x.at[FAR[:, 0]].set(3, mode="drop"),
    "added twice": lambda x: x.at[ROWS].add(x[:3]),
    "added to columns": lambda x: x.at[:, ROWS].add(x[:, :3]),
    "added, clipped": lambda x: x.at[FAR[:, 0]].add(3, mode="clip"),
    "part": lambda x: lax.dynamic_slice(x, (1, 0, 2), (2, 4, 1)),
    "part beyond the end": lambda x: lax.dynamic_slice(x, (3, -1, 9), (2, 4, 2)),
    "part replaced": lambda x: lax.dynamic_update_slice(x, 0 * x[:2, :2], (3, 1, 0)),
}


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int32])
@pytest.mark.parametrize("name", CASES)
def test_equals_xla(name: str, dtype: Any) -> None:
    """Every element, and the dtype."""
    x = (10 * X).astype(dtype)
    compiled = jax.jit(CASES[name])(x)
    with jax.disable_jit(), by_numpy(EXACT), jax.numpy_dtype_promotion("standard"):
        result = CASES[name](jax.device_put(x))
    assert result.dtype == compiled.dtype
    np.testing.assert_array_equal(np.asarray(result), np.asarray(compiled))
