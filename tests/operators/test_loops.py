"""A loop's first carry."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxmix.apply.slabs import added
from jaxmix.operators import LowRank
from jaxmix.operators.loops import carry
from jaxmix.operators.scattering import scattered
from jaxmix.operators.solving import solve_by_blocks
from jaxmix.operators.sparse import Sparse


def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))


def test_carry_is_the_start_without_a_mesh() -> None:
    """No operation is added."""
    start = jnp.ones(2)
    assert carry(start, jnp.ones(3), {"a": np.ones(4, np.int32)}) is start


def test_carry_varies_like_what_is_added() -> None:
    """Integers and infinite numbers too, without a change of the numbers."""
    start, others = jnp.arange(3, dtype=np.int32), np.array([np.inf, np.nan], np.float32)

    def run(other: jax.Array) -> jax.Array:
        first = carry(start, {"a": other})
        assert first.dtype == start.dtype
        return jax.lax.fori_loop(0, 2, lambda _, x: x + jnp.zeros_like(other, np.int32), first[:1])

    out = jax.shard_map(run, mesh=mesh(), in_specs=P("x"), out_specs=P("x"))(others)
    np.testing.assert_array_equal(out, [0, 0])


def test_loops_run_where_only_an_operand_varies() -> None:
    """Each device adds its own operator to the same matrix."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(600, 256)).astype(np.float32)
    b, a = rng.normal(size=(2, 600, 3)), rng.normal(size=(2, 3, 256))
    low = LowRank(jnp.asarray(b, jnp.float32), jnp.asarray(a, jnp.float32))
    # Above 4096 numbers, they are added in runs on a TPU.
    at = rng.integers(0, 256, (2, 2, 5000)).astype(np.int32)
    values = rng.normal(size=(2, 5000)).astype(np.float32)

    def run(low: LowRank, values: jax.Array, at: jax.Array) -> tuple[jax.Array, ...]:
        first = jax.tree.map(lambda x: x[0], low)
        sparse = Sparse(values[0], at[0], *matrix.shape)
        system = jnp.eye(3, dtype=np.float32) + first.b[:3]
        outputs = (
            added(jnp.asarray(matrix), (LowRank(first.b, first.a),)),
            scattered(jnp.asarray(matrix), sparse),
            solve_by_blocks(system, jnp.ones((3, 1), np.float32)),
        )
        return tuple(x[None] for x in outputs)

    outputs = jax.jit(jax.shard_map(run, mesh=mesh(), in_specs=P("x"), out_specs=P("x")))(
        low, jnp.asarray(values), jnp.asarray(at)
    )
    for i in range(2):
        sparse = matrix.copy()
        np.add.at(sparse, tuple(at[i]), values[i])
        expected = (
            matrix + b[i] @ a[i],
            sparse,
            np.linalg.solve(np.eye(3) + b[i, :3], np.ones((3, 1))),
        )
        for actual, truth in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(actual[i], truth, rtol=1e-4, atol=1e-4)
