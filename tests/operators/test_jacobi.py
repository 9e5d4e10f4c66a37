"""The smallest singular values by rotations, on CPU; it has the same arithmetic on a TPU."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxmix.operators.backends import TPU
from jaxmix.operators.jacobi import smallest, smallest_by_rotations

RANK = 6


def matrix(rows: int, cols: int, values: Any = None) -> np.ndarray:
    """Returns a random matrix, with these singular values if they are given."""
    made = np.random.default_rng([rows, cols]).normal(size=(rows, cols))
    if values is not None:
        u, _, v = np.linalg.svd(made, full_matrices=False)
        made = u * values @ v
    return made.astype(np.float32)


def removed(x: np.ndarray, rank: int = RANK) -> np.ndarray:
    """Returns the part of the smallest singular values, in float64."""
    u, s, v = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    return u[:, len(s) - rank :] * s[len(s) - rank :] @ v[len(s) - rank :]


def by_rotations(x: Any, rank: int = RANK) -> Any:
    b, a = smallest_by_rotations(x, rank)
    return b @ a


def error(found: Any, x: np.ndarray, rank: int = RANK) -> float:
    """Returns the error over the matrix's norm."""
    difference = np.asarray(found, np.float64) - removed(x, rank)
    return float(np.linalg.norm(difference, 2) / max(np.linalg.norm(x, 2), 1e-30))


MATRICES = {
    "two": (matrix(2, 2), 1),
    "odd": (matrix(7, 9), 3),
    "wide": (matrix(40, 70), RANK),
    "tall": (matrix(70, 40), RANK),
    "two blocks": (matrix(129, 150), RANK),
    "small values": (matrix(150, 200, np.logspace(0, -5, 150)), RANK),
    "equal values": (matrix(40, 70, np.repeat([3.0, 1.0], [34, 6])), RANK),
    "no full rank": (matrix(40, 70, np.repeat([1.0, 0.0], [30, 10])), RANK),
    "rows of zeros": (matrix(40, 70) * (np.arange(40) > 7)[:, None], RANK),
    "large": (1e30 * matrix(40, 70), RANK),
    "tiny": (1e-30 * matrix(40, 70), RANK),
    "zero": (np.zeros((5, 6), np.float32), 2),
}


@pytest.mark.parametrize("name", MATRICES)
def test_it_is_as_accurate_as_an_svd_in_float32(name: str) -> None:
    """An error is that of float32, over the norm, and over the distance of singular values."""
    x, rank = MATRICES[name]
    assert error(jax.jit(by_rotations, static_argnums=1)(x, rank), x, rank) < 6e-6


def test_float64_has_its_own_accuracy() -> None:
    with jax.enable_x64(True):
        x = matrix(30, 50).astype(np.float64)
        assert error(jax.jit(by_rotations)(x), x) < 1e-13


def test_batches_are_decomposed_one_by_one() -> None:
    x = np.stack([matrix(30, 50), matrix(30, 50, np.logspace(0, -3, 30))])
    found = jax.jit(jax.vmap(by_rotations))(x)
    assert max(map(error, found, x)) < 3e-6


def test_it_runs_within_shard_map() -> None:
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    x = matrix(30, 50)
    run = jax.shard_map(by_rotations, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    assert error(jax.jit(run)(x), x) < 3e-6


def test_infinite_numbers_give_none_that_are_finite() -> None:
    x = matrix(6, 8)
    x[1, 2] = np.inf
    assert not np.isfinite(by_rotations(jnp.asarray(x), 2)).any()


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_gradients_are_those_of_an_svd(shape: tuple[int, int], monkeypatch: Any) -> None:
    """On a TPU too, so that reverse mode does not meet the loop."""
    x, weights = jnp.asarray(matrix(*shape)), matrix(*shape[::-1]).T

    def loss(x: Any) -> Any:
        return jnp.sum(smallest(x, 3).dense() * weights)

    expected = jax.grad(loss)(x)
    monkeypatch.setattr("jaxmix.operators.jacobi.by_platform", on_tpu)
    np.testing.assert_allclose(loss(x), np.sum(removed(np.asarray(x), 3) * weights), rtol=1e-4)
    np.testing.assert_allclose(jax.grad(loss)(x), expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(loss)))(x[None])[0], expected, atol=1e-5)


def on_tpu(cpu: Any, accelerator: Any, *operands: Any) -> Any:
    """Runs the form for a TPU here."""
    return accelerator(TPU, *operands)


def test_only_a_tpu_rotates() -> None:
    traced = jax.jit(partial(smallest, rank=2)).trace(jax.ShapeDtypeStruct((64, 96), np.float32))

    def text(platform: str) -> str:
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert "gesdd" in text("cpu") and "while" not in text("cpu")
    assert "while" in text("tpu") and "dynamic_update_slice" in text("tpu")
    assert "cusolver" in text("cuda")
