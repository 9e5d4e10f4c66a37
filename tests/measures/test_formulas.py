"""The formulas against NumPy on dense, non-square matrices."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.measures import (
    effective_rank,
    formulas,
    inner,
    overlap,
    principal_angles,
    shares,
    sign_agreement,
)
from jaxmix.measures.formulas import Matrix, Thin, on_host, singular_on_host
from jaxmix.operators import Kronecker, LowRank, Zero

RNG = np.random.default_rng(0)
ROWS, COLS = 7, 5


def low(rank: int) -> Thin:
    """Returns a low-rank matrix whose factors are not orthonormal."""
    return Thin(RNG.normal(size=(ROWS, rank)), RNG.normal(size=(rank, COLS)))


THIN, WIDE = low(2), low(3)
FULL = RNG.normal(size=(ROWS, COLS))
MATRICES: dict[str, Matrix] = {"thin": THIN, "wide": WIDE, "full": FULL}


def dense(matrix: Matrix) -> np.ndarray:
    """Returns the dense matrix."""
    return matrix.b @ matrix.a if isinstance(matrix, Thin) else matrix


@pytest.mark.parametrize("b", MATRICES)
@pytest.mark.parametrize("a", MATRICES)
def test_inner_is_the_sum_of_products(a: str, b: str) -> None:
    """The inner product from factors or dense matrices is the sum of elementwise products."""
    left, right = MATRICES[a], MATRICES[b]
    np.testing.assert_allclose(inner(left, right), np.sum(dense(left) * dense(right)), rtol=1e-12)


@pytest.mark.parametrize("name", MATRICES)
def test_singular_vectors_reconstruct_the_matrix(name: str) -> None:
    """The decomposition has the matrix's rank, orthonormal sides, and the matrix as its product."""
    delta = MATRICES[name]
    u, s, vt = singular_on_host(delta)
    rank = np.linalg.matrix_rank(dense(delta))
    assert (u.shape, s.shape, vt.shape) == ((ROWS, rank), (rank,), (rank, COLS))
    np.testing.assert_allclose(u * s @ vt, dense(delta), atol=1e-12)
    np.testing.assert_allclose(u.T @ u, np.eye(rank), atol=1e-12)
    np.testing.assert_allclose(s, np.linalg.svd(dense(delta))[1][:rank], rtol=1e-12)


def test_directions_below_the_tolerance_are_dropped() -> None:
    """Directions that rounding may have made are dropped; a zero matrix keeps one direction."""
    delta = np.diag([2.0, 1e-3, 1e-3])[:, :2]
    assert singular_on_host(delta, 0.01)[1].tolist() == [2.0]
    assert singular_on_host(np.zeros((3, 2)))[1].tolist() == [0.0]


def test_on_host_keeps_low_rank_factors() -> None:
    """Low-rank operators keep their factors; others become dense matrices."""
    x, y = jnp.arange(2.0)[:, None], jnp.arange(12.0).reshape(3, 4)
    matrix = on_host(Kronecker(x, y))
    assert isinstance(matrix, np.ndarray)
    np.testing.assert_array_equal(matrix, np.kron(x, y))
    thin = on_host(LowRank(y, y.T))
    assert isinstance(thin, Thin) and isinstance(thin.b, np.ndarray)
    assert isinstance(on_host(Zero(2, 3)), Thin)


def test_effective_rank() -> None:
    """The effective rank is exp(entropy): 1 for one direction, r for r equal ones."""
    assert effective_rank(np.array([3.0])) == 1.0
    assert effective_rank(np.array([3.0, 0.0])) == 1.0
    np.testing.assert_allclose(effective_rank(np.full(3, 0.2)), 3)
    p = np.array([0.75, 0.25])
    np.testing.assert_allclose(effective_rank(8 * p), np.exp(-(p * np.log(p)).sum()))
    assert effective_rank(np.zeros(2)) == 0


def test_principal_angles() -> None:
    """Known angles between spaces with arbitrary bases are found, even too small for a cosine."""
    angles = np.array([1e-9, 0.3, 1.2])
    n = 8
    rotation, _ = np.linalg.qr(RNG.normal(size=(n, n)))
    p = rotation[:, :3]
    q = np.cos(angles) * rotation[:, :3] + np.sin(angles) * rotation[:, 3:6]
    mixed, _ = np.linalg.qr(RNG.normal(size=(3, 3)))
    np.testing.assert_allclose(principal_angles(p @ mixed, q), angles, rtol=1e-6)
    # Either argument may be the smaller space.
    larger = np.concatenate([q @ mixed, rotation[:, 6:7]], axis=1)
    for pair in ((p, larger), (larger, p)):
        np.testing.assert_allclose(principal_angles(*pair), angles, rtol=1e-6)


def test_overlap() -> None:
    """The overlap is 1 if one space contains the other, and 0 on average for random spaces."""
    n, k, j = 12, 3, 4
    assert overlap(np.zeros(k), (k, j), n) == 1
    assert overlap(np.full(k, np.pi / 2), (k, j), n) == pytest.approx(-0.5)
    assert overlap(np.zeros(k), (k, n), n) == 0
    overlaps = []
    for _ in range(300):
        p, q = (np.linalg.qr(RNG.normal(size=(n, size)))[0] for size in (k, j))
        overlaps.append(overlap(principal_angles(p, q), (k, j), n))
    assert abs(np.mean(overlaps)) < 0.03 and np.std(overlaps) > 0.05


def test_sign_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only entries that are non-zero in both count; the blocks of rows do not change the result."""
    sparse = np.where(RNG.random((ROWS, COLS)) < 0.4, FULL, 0)
    signs = np.sign(sparse) * np.sign(dense(THIN))
    expected = np.sum(signs > 0) / np.sum(sparse != 0)
    for block in (1 << 22, 2 * COLS, 1):
        monkeypatch.setattr(formulas, "_BLOCK", block)
        assert sign_agreement(sparse, THIN) == expected
    assert sign_agreement(np.zeros((2, 3)), np.ones((2, 3))) is None


def test_shares() -> None:
    """The shares match values computed by hand, with a second step that partly undoes the first."""
    one_step, two_steps = np.array([[2.0, 0.0, 1.0]]), np.array([[1.0, 1.0, 1.0]])
    assert shares([one_step, two_steps]) == [1.0, 0.0]
    assert shares([THIN, THIN]) == [1.0, 0.0]
    assert shares([one_step, 0 * one_step]) == [0.0, 0.0]
    steps = [low(1), low(2), low(3)]
    assert sum(shares(steps)) == pytest.approx(1)
