"""Linear systems solved by blocks, as on a TPU, against NumPy's in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.operators.solving import solve, solve_by_blocks


def system(n: int, m: int) -> tuple[Any, Any]:
    """A system that needs pivots."""
    rng = np.random.default_rng([n, m])
    a = rng.normal(size=(n, n))
    a[0, 0] = 0
    return a, rng.normal(size=(n, m))


@pytest.mark.parametrize("n, m", [(5, 3), (128, 2), (300, 70)])
def test_blocks_are_as_accurate_as_lapack(n: int, m: int) -> None:
    a, b = system(n, m)
    truth = np.linalg.solve(a, b)

    def error(x: Any) -> float:
        return float(np.abs(np.asarray(x) - truth).max() / np.abs(truth).max())

    narrow = jnp.asarray(a, np.float32), jnp.asarray(b, np.float32)
    assert error(jax.jit(solve_by_blocks)(*narrow)) < 4 * error(jnp.linalg.solve(*narrow)) + 1e-6
    with jax.enable_x64(True):
        wide = jnp.asarray(a), jnp.asarray(b)
        assert error(jax.jit(solve_by_blocks)(*wide)) < 1e-10
        assert error(jax.jit(solve)(*wide)) < 1e-10


def test_singular_systems_have_no_finite_solution() -> None:
    out = solve_by_blocks(jnp.ones((3, 3)), jnp.ones((3, 1)).at[0].set(2))
    assert not np.isfinite(out).all()
