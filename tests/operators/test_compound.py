"""Sums and products of operators that do not merge."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.operators import Dense, Diagonal, Identity, LowRank, Operator, Product, Sum, Zero
from jaxmix.operators.compound import terms

from .kinds import SQUARE, TALL, WIDE, close, example

pytestmark = pytest.mark.usefixtures("no_compiling")


def test_terms_of_a_sum() -> None:
    """A sum has its terms, and any other operator is its only term."""
    x, y = Identity(3), Diagonal(jnp.ones(3))
    assert terms(Sum((x, y))) == (x, y)
    assert terms(x) == (x,) and terms(Product(x, y))[0].shape == (3, 3)


def test_sum_of_three_terms() -> None:
    """All methods use every term, in order."""
    kinds = ("sparse", "hadamard", "kronecker")
    operators, matrices = zip(
        *(example(kind, WIDE, i) for i, kind in enumerate(kinds)), strict=True
    )
    total, matrix = Sum(operators), np.sum(matrices, axis=0)
    x, y = np.ones((12, 2)), np.ones((2, 8))
    close(total @ jnp.asarray(x), matrix @ x)
    close(jnp.asarray(y) @ total, y @ matrix)
    close(total.take_rows(jnp.array([5, 0, 5])), matrix[[5, 0, 5]])
    close(total.added_to(jnp.ones(WIDE)), 1 + matrix)
    close(total.rows(slice(1, 4)).dense(), matrix[1:4])
    assert total.matmul_flops(5) == sum(op.matmul_flops(5) for op in operators) + 2 * 8 * 5


def wide_and_tall(n: int) -> tuple[Operator, Operator]:
    """A low rank (2, n) and a dense matrix (n, 30)."""
    return LowRank(jnp.ones((2, 1)), jnp.ones((1, n))), Dense(jnp.arange(n * 30.0).reshape(n, 30))


def test_product_is_made_dense_on_the_cheaper_side() -> None:
    """The cost is that of the cheaper order, and both orders give the same matrix."""
    first, second = wide_and_tall(4)
    product, transposed = Product(first, second), Product(second.T, first.T)
    from_left = second.flops() + first.matmul_flops(30)
    from_right = first.flops() + second.T.matmul_flops(2)
    assert from_left != from_right
    assert product.flops() == min(from_left, from_right) == transposed.flops()
    matrix = np.asarray(first.dense()) @ np.asarray(second.dense())
    close(product.dense(), matrix)
    close(transposed.dense(), matrix.T)


@pytest.mark.parametrize("is_first_smaller", [True, False])
def test_smaller_factor_of_a_product_is_scaled(is_first_smaller: bool) -> None:
    """The other factor is the same object."""
    factors = (Diagonal(jnp.ones(3)), Dense(jnp.ones((3, 3))))
    first, second = factors if is_first_smaller else factors[::-1]
    scaled = Product(first, second).scaled(2.0)
    assert (scaled.second is second) == is_first_smaller
    assert (scaled.first is first) == (not is_first_smaller)
    close(scaled.dense(), 2 * np.ones((3, 3)))


def test_product_takes_rows_of_its_first_factor() -> None:
    (first, x), (second, y) = example("kronecker", WIDE, 1), example("hadamard", TALL, 2)
    product, matrix = Product(first, second), x @ y
    assert product.shape == (8, 8)
    close(product.rows(slice(2, 5)).dense(), matrix[2:5])
    close(product.take_rows(jnp.array([7, 1])), matrix[[7, 1]])
    assert product.rows(slice(2, 5)).second is second
    assert product.matmul_flops(3) == first.matmul_flops(3) + second.matmul_flops(3)


def test_product_with_a_square_factor_transposes_in_reverse() -> None:
    (first, x), (second, y) = example("blocks", SQUARE, 1), example("sparse", TALL, 2)
    product = Product(first, second)
    close(product.T.dense(), (x @ y).T)
    assert product.T.first.shape == second.shape[::-1]
    assert Product(Zero(2, 12), product).shape == (2, 8)
