"""Low-rank matrices of experts as one matrix with a row per expert."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.operators import Product, StackedLowRank, Zero

from .kinds import close

EXPERTS, P, R, Q = 3, 4, 2, 5


def stacked(rank: int = R, p: int = P, q: int = Q) -> tuple[StackedLowRank, np.ndarray]:
    """An operator and its matrix."""
    rng = np.random.default_rng([rank, p])
    b, a = rng.normal(size=(EXPERTS, p, rank)), rng.normal(size=(EXPERTS, rank, q))
    matrix = np.stack([(b[e] @ a[e]).ravel() for e in range(EXPERTS)])
    return StackedLowRank(jnp.asarray(b), jnp.asarray(a)), matrix


def test_rows_are_the_flattened_matrices_of_experts() -> None:
    """Products from both sides, and of the transpose, use the factors only."""
    operator, matrix = stacked()
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(P * Q, 2)), rng.normal(size=(EXPERTS, 2))
    assert operator.shape == (EXPERTS, P * Q) and operator.T.shape == (P * Q, EXPERTS)
    close(operator.dense(), matrix)
    close(operator.T.dense(), matrix.T)
    close(operator @ jnp.asarray(x), matrix @ x)
    close(operator.T @ jnp.asarray(y), matrix.T @ y)
    close(operator.T.T.dense(), matrix)


@pytest.mark.parametrize(("p", "q"), [(2, 6), (6, 2)])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_smaller_factor_is_scaled(p: int, q: int, is_transposed: bool) -> None:
    operator, matrix = stacked(p=p, q=q)
    operator, matrix = (operator.T, matrix.T) if is_transposed else (operator, matrix)
    scaled = operator.scaled(-2.0)
    close(scaled.dense(), -2.0 * matrix)
    assert (scaled.a is operator.a, scaled.b is operator.b) == (p < q, q < p)


def test_rows_are_experts() -> None:
    """A slice of experts is a smaller stack; one of the other axis selects from the stack."""
    operator, matrix = stacked()
    few = operator.rows(slice(None, None, -2))
    assert isinstance(few, StackedLowRank) and few.b.shape[0] == 2
    close(few.dense(), matrix[::-2])
    inputs = operator.cols(slice(3, 9))
    assert isinstance(inputs, Product)
    close(inputs.dense(), matrix[:, 3:9])
    nothing = operator.T.rows(slice(4, 4))
    assert isinstance(nothing, Zero) and nothing.shape == (0, EXPERTS)


def test_costs_are_those_of_the_factors() -> None:
    """The cost of a product does not depend on which side is the experts'."""
    operator, _ = stacked()
    assert operator.flops() == operator.T.flops() == 2 * R * EXPERTS * P * Q
    assert operator.matmul_flops(7) == operator.T.matmul_flops(7)
    assert operator.matmul_flops(7) == 2 * 7 * EXPERTS * (P * R * Q + R * Q)
