"""NumPy in uncompiled tests equals XLA's results, and all other operations stay XLA's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from .by_numpy import EXACT, OPERATIONS
from .compiling import COMPILED, timed_events
from .uncompiled import uncompiled

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(2, 3, 4))
FLAGS = X > 0
NUMBERS = RNG.integers(0, 1 << 32, (3, 4)).astype(np.uint32)
SMALL = (NUMBERS % 9).astype(np.int32)

CASES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "broadcast_in_dim_p": lambda x, y, f: lax.broadcast_in_dim(x, (3, 2, 4), (0, 2)),
    "reshape_p": lambda x, y, f: lax.reshape(x, (2, 6)),
    "transpose_p": lambda x, y, f: lax.transpose(x, (1, 0)),
    "squeeze_p": lambda x, y, f: lax.squeeze(x[:, None], (1,)),
    "concatenate_p": lambda x, y, f: lax.concatenate([x, y], 1),
    "slice_p": lambda x, y, f: (lax.slice(x, (1, 0), (3, 3)), lax.slice(x, (0, 0), (3, 4), (2, 3))),
    "rev_p": lambda x, y, f: lax.rev(x, (0,)),
    "select_n_p": lambda x, y, f: (lax.select(f, x, y), lax.select_n(f[0, 0], x, y)),
    "convert_element_type_p": lambda x, y, f: (
        [
            lax.convert_element_type(z, kind)
            for z in (x, f)
            for kind in (jnp.float32, jnp.float64, jnp.int32, jnp.bfloat16, jnp.float16)
        ]
        + [lax.convert_element_type(lax.convert_element_type(x, jnp.bfloat16), x.dtype)]
        + [lax.convert_element_type(z, jnp.uint32) for z in (NUMBERS.view(np.uint16), SMALL, f)]
    ),
    "bitcast_convert_type_p": lambda x, y, f: [
        lax.bitcast_convert_type(z, kind)
        for z, kind in ((x.astype(jnp.float32), jnp.uint32), (NUMBERS, jnp.float32), (x, jnp.uint8))
    ],
    "dynamic_slice_p": lambda x, y, f: lax.dynamic_slice(x, (1, 3), (2, 2)),
    "dynamic_update_slice_p": lambda x, y, f: lax.dynamic_update_slice(x, y[:2, :1], (0, 2)),
    "gather_p": lambda x, y, f: x[SMALL % 3],
    "scatter_p": lambda x, y, f: x.at[np.array([2, 0])].set(y[:2]),
    "scatter_add_p": lambda x, y, f: x.at[np.array([2, 2])].add(y[:2]),
    "pad_p": lambda x, y, f: [
        lax.pad(x, x[0, 0], ((1, 2, 0), (0, 3, 0))),
        lax.pad(x, x[0, 0], ((-1, 2, 1), (0, 3, 0))),
    ],
    "iota_p": lambda x, y, f: [lax.broadcasted_iota(jnp.int32, (3, 2, 2), i) for i in range(3)],
    "dot_general_p": lambda x, y, f: (
        x @ y.T,
        x[0] @ y[0],
        lax.dot_general(x, y, (((1,), (1,)), ((0,), (0,)))),
        lax.dot_general(x[None], y[:, None], (((2,), (2,)), ((), ()))),
        lax.dot_general(x, y, (((), ()), ((), ()))),
    ),
    "add_p": lambda x, y, f: (lax.add(x, y), lax.add(x, x[0, 0])),
    "sub_p": lambda x, y, f: lax.sub(x, y),
    "mul_p": lambda x, y, f: (lax.mul(x, y), 2.0 * x),
    "div_p": lambda x, y, f: (
        lax.div(x, y),
        lax.div(x, 0 * x),
        lax.div(SMALL, SMALL + 2),
        lax.div(-SMALL, SMALL + 2),
    ),
    "integer_pow_p": lambda x, y, f: (lax.integer_pow(x, 2), lax.integer_pow(x, -3)),
    "neg_p": lambda x, y, f: lax.neg(x),
    "abs_p": lambda x, y, f: lax.abs(x),
    "sqrt_p": lambda x, y, f: lax.sqrt(x),
    "sign_p": lambda x, y, f: (lax.sign(x), lax.sign(SMALL - 4)),
    "is_finite_p": lambda x, y, f: lax.is_finite(x / (0 * x)),
    "eq_p": lambda x, y, f: lax.eq(x, x),
    "ne_p": lambda x, y, f: lax.ne(x, y),
    "lt_p": lambda x, y, f: lax.lt(x, y),
    "le_p": lambda x, y, f: lax.le(x, y),
    "gt_p": lambda x, y, f: lax.gt(x, y),
    "ge_p": lambda x, y, f: lax.ge(x, y),
    "and_p": lambda x, y, f: [lax.bitwise_and(z, z.T.reshape(3, 4)) for z in (f, NUMBERS)],
    "or_p": lambda x, y, f: [lax.bitwise_or(z, z.T.reshape(3, 4)) for z in (f, NUMBERS)],
    "not_p": lambda x, y, f: [lax.bitwise_not(z) for z in (f, jnp.asarray(NUMBERS))],
    "max_p": lambda x, y, f: lax.max(x, lax.sqrt(y)),
    "min_p": lambda x, y, f: lax.min(x, y),
    "rem_p": lambda x, y, f: (lax.rem(x, y), lax.rem(SMALL, SMALL + 2), lax.rem(-SMALL, SMALL + 2)),
    "xor_p": lambda x, y, f: [lax.bitwise_xor(z, z.T.reshape(3, 4)) for z in (f, NUMBERS)],
    "shift_left_p": lambda x, y, f: lax.shift_left(NUMBERS, NUMBERS % 40),
    "shift_right_logical_p": lambda x, y, f: [
        lax.shift_right_logical(NUMBERS, by) for by in (NUMBERS % 32, NUMBERS % 40)
    ],
    "cos_p": lambda x, y, f: lax.cos(x),
    "sin_p": lambda x, y, f: lax.sin(x),
    "exp_p": lambda x, y, f: lax.exp(x),
    "log_p": lambda x, y, f: lax.log(x),
    "tanh_p": lambda x, y, f: lax.tanh(x),
    "triangular_solve_p": lambda x, y, f: [
        lax.linalg.triangular_solve(
            x[:, :3] + 3 * jnp.eye(3, dtype=x.dtype),
            y if left else y.T,
            left_side=left,
            lower=lower,
            transpose_a=transpose,
        )
        for left in (True, False)
        for lower in (True, False)
        for transpose in (True, False)
    ],
    "reduce_sum_p": lambda x, y, f: (jnp.sum(x, 1), jnp.sum(NUMBERS, 0, dtype=np.uint32)),
    "reduce_max_p": lambda x, y, f: jnp.max(x, (0, 1)),
    "reduce_and_p": lambda x, y, f: jnp.all(f, 0),
    "reduce_or_p": lambda x, y, f: jnp.any(f, 0),
}


def test_every_operation_has_a_case() -> None:
    """Each replaced operation is tested."""
    assert set(CASES) == set(OPERATIONS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_operation_equals_xla(name: str, dtype: Any) -> None:
    """Values, dtypes and weak types equal XLA's."""
    arrays = (X.astype(dtype), Y.astype(dtype), FLAGS)
    with jax.enable_x64(True):
        compiled = jax.jit(CASES[name])(*arrays)
        with uncompiled():
            uncompiled_result = CASES[name](*map(jnp.asarray, arrays))
    for a, b in zip(jax.tree.leaves(uncompiled_result), jax.tree.leaves(compiled), strict=True):
        assert (a.dtype, a.weak_type) == (b.dtype, b.weak_type)
        rounding = 0.0 if name in EXACT else 50 * float(np.finfo(dtype).eps)
        np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=rounding, atol=rounding
        )


def test_nothing_is_compiled() -> None:
    """No program is compiled within the context; after it, operations are XLA's again."""
    x = jax.device_put(np.ones((5, 23), np.float32))
    with timed_events() as events, uncompiled():
        y = jnp.sum(jnp.concatenate([x, x + x], 1).T.reshape(46, 5) @ x, 1)
    assert events[COMPILED] == 0 and (np.asarray(y).shape == (46,))
    with timed_events() as events:
        lax.dot(x, x.T)
    assert events[COMPILED] == 1


def test_exact_operations_are_never_compiled() -> None:
    """Outside of the context too, and arrays are made without a program."""
    with timed_events() as events:
        lax.transpose(jnp.asarray(np.ones((5, 29), np.float32)), (1, 0))
        jax.block_until_ready((jnp.asarray(np.ones((5, 31), np.float32)), jnp.zeros((5, 37))))
    assert events[COMPILED] == 0


def test_devices_keys_and_weak_types_are_kept() -> None:
    """XLA handles arrays of chosen devices, keys and weak types."""
    device = jax.devices()[1]
    with uncompiled():
        assert lax.neg(jax.device_put(np.ones(3, np.float32), device)).devices() == {device}
        assert lax.neg(jnp.asarray(1.0)).weak_type
        keys = lax.broadcast_in_dim(jax.random.key(1), (2,), ())
        assert jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)


def test_numbers_of_64_bits_are_kept() -> None:
    """Outside of `enable_x64` too, as XLA keeps them."""
    with jax.enable_x64(True):
        x = jnp.asarray(X)
    assert x[1:].dtype == np.float64
    np.testing.assert_array_equal(x[1:], X[1:])
