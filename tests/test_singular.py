"""Singular value decompositions of operators, against NumPy's of the dense matrix."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.operators import Dense, Hadamard, LowRank, Operator, Sum, Zero
from jaxmix.singular import low_rank_of, rounding, singular, truncated

from .uncompiled import uncompiled

RNG = np.random.default_rng(0)
A, B, LEFT, RIGHT = (RNG.normal(size=shape) for shape in [(2, 7), (5, 2), (5, 3), (3, 7)])
FULL = RNG.normal(size=(5, 7))


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """Enables float64 in JAX, and compiles nothing."""
    with jax.enable_x64(True), uncompiled():
        yield


def low(rank: int = 2) -> LowRank:
    return LowRank(jnp.asarray(B[:, :rank]), jnp.asarray(A[:rank]))


def wide() -> LowRank:
    return LowRank(jnp.asarray(LEFT), jnp.asarray(RIGHT))


@pytest.mark.parametrize(
    ("make", "rank"),
    [
        (low, 2),
        (lambda: Zero(5, 7), 1),
        (lambda: Hadamard(low(), low()), 4),
        (lambda: Hadamard(low(), wide()), None),
        (lambda: Sum((low(1), wide())), 4),
        (lambda: Sum((low(2), wide())), None),
        (lambda: Sum((low(), Dense(jnp.asarray(FULL)))), None),
        (lambda: Dense(jnp.asarray(B @ A)), None),
    ],
    ids=["low", "zero", "Hadamard", "wide Hadamard", "sum", "wide sum", "mixed", "dense"],
)
def test_only_thin_operators_are_low_ranks(make: Any, rank: int | None) -> None:
    """From the rank on that equals the smaller size, a dense matrix is as good."""
    delta = make()
    found = low_rank_of(delta)
    if found is None:
        assert rank is None
    else:
        assert found.rank == rank
        np.testing.assert_allclose(found.dense(), delta.dense(), rtol=1e-12)


@pytest.mark.parametrize("make", [low, lambda: Dense(jnp.asarray(B @ A)), lambda: low().T])
def test_directions_that_are_zero_are_left_out(make: Any) -> None:
    """By QR of the factors or from the dense matrix: orthonormal sides, descending values."""
    delta: Operator = make()
    u, s, vt = singular(delta)
    assert s.shape == (2,)
    expected = np.linalg.svd(np.asarray(delta.dense()), compute_uv=False)[:2]
    np.testing.assert_allclose(s, expected, rtol=1e-12)
    np.testing.assert_allclose(u.T @ u, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(vt @ vt.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose((u * s[None]) @ vt, delta.dense(), atol=1e-12)


def test_noise_hides_small_directions_but_never_all() -> None:
    s = np.linalg.svd(B @ A, compute_uv=False)
    between = float(s[0] + s[1]) / 2
    assert singular(low(), noise=between)[1].shape == (1,)
    assert singular(low(), noise=2 * s[0])[1].shape == (1,)
    assert singular(Zero(5, 7))[1].tolist() == [0]
    assert float(rounding(jnp.asarray(s), 0.0, (5, 7))) == 7 * np.finfo(np.float64).eps * s[0]
    assert float(rounding(jnp.asarray(s), between, (5, 7))) == between


@pytest.mark.parametrize("rank", [1, 2, 4, 6])
def test_ranks_are_truncated_or_padded(rank: int) -> None:
    """The error is that of the best approximation; a rank above the sizes is padded with zeros."""
    for delta in (Dense(jnp.asarray(FULL)), wide()):
        b, a, error = truncated(delta, rank)
        assert b.shape == (5, rank) and a.shape == (rank, 7)
        dense = np.asarray(delta.dense())
        s = np.linalg.svd(dense, compute_uv=False)
        best = np.sqrt((s[rank:] ** 2).sum() / (s**2).sum())
        np.testing.assert_allclose(error, best, atol=1e-14)
        distance = np.linalg.norm(dense - b @ a) / np.linalg.norm(dense)
        np.testing.assert_allclose(distance, best, atol=1e-12)
        # Both factors have the roots of the singular values.
        np.testing.assert_allclose((b**2).sum(0), (a**2).sum(1), atol=1e-12)


@pytest.mark.parametrize(("share", "rank"), [(0.5, 1), (0.64, 1), (0.65, 2), (0.999, 2)])
def test_a_share_of_the_energy_is_kept_by_the_smallest_rank(share: float, rank: int) -> None:
    """Of singular values 4 and 3, the first has 16 of 25 parts."""
    b, _, error = truncated(Dense(jnp.diag(jnp.array([4.0, 3.0]))), share)
    assert b.shape == (2, rank)
    np.testing.assert_allclose(error, 0.6 if rank == 1 else 0, atol=1e-12)


def test_nothing_has_no_error() -> None:
    for rank in (2, 0.9, None):
        b, a, error = truncated(Dense(jnp.zeros((3, 4))), rank)
        assert float(error) == 0 and not (b @ a).any() and b.shape[1] == (2 if rank == 2 else 1)
