"""Products with sharded matrices: which operators are local, and the shardings of results."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmix.operators import (
    BlockDiagonal,
    Dense,
    Diagonal,
    Identity,
    LowRank,
    Operator,
    Permutation,
    Product,
    Sum,
    Zero,
)
from jaxmix.operators.sharded import (
    is_local,
    matrix_sharding,
    sharded_matmul,
    transposed_sharding,
)

BLOCKS = BlockDiagonal(jnp.arange(16.0).reshape(4, 2, 2), 1)
SHARED = BlockDiagonal(jnp.arange(4.0).reshape(1, 2, 2), 4)
DENSE = Dense(jnp.arange(64.0).reshape(8, 8))


def mesh() -> jax.sharding.Mesh:
    """Eight devices as (4, 2)."""
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize(
    ("spec", "shape", "expected"),
    [
        (P("x"), (4, 2, 3), P("x", None)),
        (P("x", "y"), (4, 2), P("x", "y")),
        (P(None, ("x", "y")), (4, 8), P(None, ("x", "y"))),
        (P("x", None, "y"), (4, 2, 2), None),
        (P("x"), (4,), None),
    ],
)
def test_sharding_of_a_flattened_tensor(
    spec: P, shape: tuple[int, ...], expected: P | None
) -> None:
    """An axis that is flattened into another must not be sharded."""
    sharding = matrix_sharding(NamedSharding(mesh(), spec), shape)
    assert (sharding and sharding.spec) == expected


def test_unknown_shardings_stay_unknown() -> None:
    assert matrix_sharding(None, (4, 2)) is None and transposed_sharding(None) is None


def test_transposed_sharding() -> None:
    transposed = transposed_sharding(NamedSharding(mesh(), P("x", ("y",))))
    assert transposed is not None and transposed.spec == P(("y",), "x")


@pytest.mark.parametrize(
    ("operator", "parts", "expected"),
    [
        (Identity(8), 4, True),
        (Diagonal(jnp.ones(8)), 4, True),
        (Zero(8, 8), 4, True),
        (LowRank(jnp.ones((8, 1)), jnp.ones((1, 8))), 4, True),
        (BLOCKS, 2, True),
        (BLOCKS, 4, True),
        (BLOCKS, 8, False),
        (SHARED, 4, True),
        (SHARED, 8, False),
        (DENSE, 2, False),
        (DENSE, 1, True),
        (Permutation(jnp.arange(8)), 2, False),
        (Sum((BLOCKS, Identity(8))), 4, True),
        (Sum((Identity(8), DENSE)), 4, False),
        (Product(BLOCKS, SHARED), 4, True),
        (Product(BLOCKS, DENSE), 4, False),
        (Product(DENSE, BLOCKS), 4, False),
    ],
)
def test_local_operators(operator: Operator, parts: int, expected: bool) -> None:
    """A block that spans two parts is not local, nor is anything built from such an operator."""
    assert is_local(operator, parts) is expected


def resharded(operator: Operator, columns: int, spec: P) -> bool:
    """Whether the product exchanges x by columns. Checks its numbers and its sharding too."""
    x = np.arange(8.0 * columns, dtype=np.float32).reshape(8, columns)
    sharding = NamedSharding(mesh(), spec)

    def product(x: Any) -> Any:
        return sharded_matmul(operator, x, sharding)

    out = jax.jit(product, out_shardings=sharding)(jax.device_put(x, sharding))
    np.testing.assert_allclose(out, np.asarray(operator.dense()) @ x, rtol=1e-5)
    return "sharding_constraint" in str(jax.make_jaxpr(product)(x))


@pytest.mark.parametrize(
    ("operator", "columns", "spec", "expected"),
    [
        (DENSE, 8, P("x", "y"), True),
        (DENSE, 8, P(("x", "y")), True),
        (DENSE, 8, P(None, "y"), False),  # every device has all rows
        (DENSE, 6, P("x", "y"), False),  # columns that eight devices can't share equally
        (BLOCKS, 8, P("x", "y"), False),
        (BLOCKS, 8, P(("x", "y"), None), True),  # eight parts cut the four blocks
    ],
)
def test_mixed_rows_are_exchanged_by_columns(
    operator: Operator, columns: int, spec: P, expected: bool
) -> None:
    """Only a product that mixes rows of different devices is resharded."""
    spec = P(*spec, *[None] * (2 - len(spec)))
    assert resharded(operator, columns, spec) is expected


def test_unknown_sharding_is_left_to_xla() -> None:
    jaxpr = jax.make_jaxpr(lambda x: sharded_matmul(DENSE, x, None))(np.ones((8, 8), np.float32))
    assert "sharding_constraint" not in str(jaxpr)
