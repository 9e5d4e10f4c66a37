"""Runs operations without compiling them, for tests whose programs would run once.

`jax.disable_jit()` alone still compiles each operation for each shape. A program takes some 13 ms,
and a test had up to 1,600 of them. Here NumPy runs the operations that it computes as XLA does:
those that move elements, and arithmetic and matrix products of float32 and float64. XLA runs all
others. In JAX 0.10, `jnp.asarray` of a NumPy array compiles a program too; here it is a transfer.

Within `uncompiled`, compiled functions get NumPy arrays as they are, without JAX's rounding to
float32. So tests whose arguments are float64 enable x64, and tests of jit do not run uncompiled.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives

__all__ = ["OPERATIONS", "uncompiled"]

# Maps operands and parameters to the result; None where XLA must compute it.
Operation = Callable[..., np.ndarray | None]
REAL = tuple(map(np.dtype, ("float32", "float64")))
WIDE = REAL[1:]
EXACT = tuple(map(np.dtype, ("bool", "int32", "int64", "uint32")))


def _broadcast_in_dim(
    x: np.ndarray, *, shape: Any, broadcast_dimensions: Any, **_: Any
) -> np.ndarray:
    sizes = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, x.shape, strict=True):
        sizes[axis] = size
    return np.broadcast_to(x.reshape(sizes), shape)


def _reshape(x: np.ndarray, *, new_sizes: Any, dimensions: Any, **_: Any) -> np.ndarray | None:
    return x.reshape(new_sizes) if dimensions is None else None


def _slice(x: np.ndarray, *, start_indices: Any, limit_indices: Any, strides: Any) -> np.ndarray:
    steps = strides or (1,) * x.ndim
    return x[tuple(map(slice, start_indices, limit_indices, steps))]


def _select_n(which: np.ndarray, *cases: np.ndarray) -> np.ndarray | None:
    return np.where(which, cases[1], cases[0]) if which.dtype == bool else None


def _convert_element_type(
    x: np.ndarray, *, new_dtype: Any, weak_type: bool, sharding: Any
) -> np.ndarray | None:
    to_integers = x.dtype.kind == "f" and np.dtype(new_dtype) not in REAL
    if weak_type or to_integers or np.dtype(new_dtype) not in REAL + EXACT:
        return None
    return x.astype(new_dtype)


def _iota(*sizes: Any, dtype: Any, shape: Any, dimension: int, sharding: Any) -> np.ndarray | None:
    if sizes or sharding is not None:
        return None
    along = np.arange(shape[dimension], dtype=dtype)
    return np.broadcast_to(along.reshape(-1, *[1] * (len(shape) - dimension - 1)), shape)


def _dot_general(
    x: np.ndarray, y: np.ndarray, *, dimension_numbers: Any, preferred_element_type: Any, **_: Any
) -> np.ndarray | None:
    if x.dtype != y.dtype or x.dtype not in REAL or preferred_element_type not in (None, x.dtype):
        return None
    (over_x, over_y), (along_x, along_y) = dimension_numbers
    free_x, free_y = (
        [axis for axis in range(z.ndim) if axis not in (*over, *along)]
        for z, over, along in ((x, over_x, along_x), (y, over_y, along_y))
    )
    batch = tuple(x.shape[axis] for axis in along_x)
    count = int(np.prod([x.shape[axis] for axis in over_x], dtype=int))
    rows, columns = ([z.shape[axis] for axis in free] for z, free in ((x, free_x), (y, free_y)))
    left = x.transpose(*along_x, *free_x, *over_x).reshape(*batch, int(np.prod(rows)), count)
    right = y.transpose(*along_y, *over_y, *free_y).reshape(*batch, count, int(np.prod(columns)))
    return (left @ right).reshape((*batch, *rows, *columns))


def _integer_pow(x: np.ndarray, *, y: int) -> np.ndarray | None:
    return x * x if y == 2 and x.dtype in REAL else None


def _of(function: Any, *dtypes: np.dtype) -> Operation:
    """Makes an operation of a NumPy function whose operands have equal dtypes, out of these."""

    def run(*operands: np.ndarray, **parameters: Any) -> np.ndarray | None:
        if any(x.dtype != operands[0].dtype or x.dtype not in dtypes for x in operands):
            return None
        return function(*operands)

    return run


def _reduced(function: Any, *dtypes: np.dtype) -> Operation:
    """Makes an operation of a NumPy reduction whose result has its operand's dtype."""

    def run(x: np.ndarray, *, axes: Any, **_: Any) -> np.ndarray | None:
        return function(x, axis=tuple(axes)) if x.dtype in dtypes else None

    return run


def _triangular_solve(
    a: np.ndarray,
    b: np.ndarray,
    *,
    left_side: bool,
    lower: bool,
    transpose_a: bool,
    unit_diagonal: bool,
    **_: Any,
) -> np.ndarray | None:
    if unit_diagonal or a.dtype not in WIDE:
        return None
    a = np.tril(a) if lower else np.triu(a)
    a = a.swapaxes(-1, -2) if transpose_a else a
    if left_side:
        return np.linalg.solve(a, b)
    return np.linalg.solve(a.swapaxes(-1, -2), b.swapaxes(-1, -2)).swapaxes(-1, -2)


BOOL = np.dtype(bool)
OPERATIONS: dict[str, Operation] = {
    "broadcast_in_dim_p": _broadcast_in_dim,
    "reshape_p": _reshape,
    "transpose_p": lambda x, *, permutation: x.transpose(permutation),
    "squeeze_p": lambda x, *, dimensions: x.squeeze(tuple(dimensions)),
    "concatenate_p": lambda *xs, dimension: np.concatenate(xs, dimension),
    "slice_p": _slice,
    "rev_p": lambda x, *, dimensions: np.flip(x, dimensions),
    "select_n_p": _select_n,
    "convert_element_type_p": _convert_element_type,
    "iota_p": _iota,
    "dot_general_p": _dot_general,
    "add_p": _of(np.add, *REAL, *EXACT[1:]),
    "sub_p": _of(np.subtract, *REAL, *EXACT[1:]),
    "mul_p": _of(np.multiply, *REAL, *EXACT[1:]),
    "div_p": _of(np.divide, *REAL),
    "integer_pow_p": _integer_pow,
    "neg_p": _of(np.negative, *REAL, *EXACT[1:]),
    "abs_p": _of(np.abs, *REAL),
    "sqrt_p": _of(np.sqrt, *REAL),
    "sign_p": _of(np.sign, *REAL),
    "is_finite_p": _of(np.isfinite, *REAL),
    "eq_p": _of(np.equal, *REAL, *EXACT),
    "ne_p": _of(np.not_equal, *REAL, *EXACT),
    "lt_p": _of(np.less, *REAL, *EXACT),
    "le_p": _of(np.less_equal, *REAL, *EXACT),
    "gt_p": _of(np.greater, *REAL, *EXACT),
    "ge_p": _of(np.greater_equal, *REAL, *EXACT),
    "and_p": _of(np.bitwise_and, *EXACT),
    "or_p": _of(np.bitwise_or, *EXACT),
    "not_p": _of(np.invert, *EXACT),
    "max_p": _of(np.maximum, *REAL, *EXACT),
    "min_p": _of(np.minimum, *REAL, *EXACT),
    "rem_p": _of(np.fmod, *REAL),
    "cos_p": _of(np.cos, *WIDE),
    "sin_p": _of(np.sin, *WIDE),
    "exp_p": _of(np.exp, *WIDE),
    "log_p": _of(np.log, *WIDE),
    "tanh_p": _of(np.tanh, *WIDE),
    "triangular_solve_p": _triangular_solve,
    "reduce_sum_p": _reduced(np.sum, *REAL),
    "reduce_max_p": _reduced(np.max, *REAL),
    "reduce_and_p": _reduced(np.all, BOOL),
    "reduce_or_p": _reduced(np.any, BOOL),
}


def _operand(x: Any, keeps_weak: bool) -> np.ndarray | None:
    """Returns an operand's values; None for keys, weak types, and arrays of chosen devices."""
    # Keys and NumPy's own arrays have no such attribute; JAX's constants are not on any device.
    is_weak = getattr(x, "weak_type", None)
    if is_weak is None or (is_weak and not keeps_weak) or getattr(x, "committed", False):
        return None
    return np.asarray(x)


def _by_numpy(operation: Operation, old: Callable[..., Any]) -> Callable[..., Any]:
    """Runs an operation by NumPy where it can, otherwise by XLA."""

    def run(*operands: Any, **parameters: Any) -> Any:
        values = [_operand(x, operation is _convert_element_type) for x in operands]
        if all(x is not None for x in values):
            with np.errstate(all="ignore"):
                result = operation(*values, **parameters)
            if result is not None:
                # A copy, so that no two arrays share a buffer.
                return jax.device_put(np.array(result, order="C"))
        return old(*operands, **parameters)

    return run


@contextmanager
def uncompiled(*, apply: bool = True) -> Iterator[None]:
    """Within the context, compiles neither functions nor operations that NumPy has."""
    if not apply:
        yield
        return
    changed = {getattr(primitives, name): operation for name, operation in OPERATIONS.items()}
    as_array = jnp.asarray

    def transferred(x: Any, *args: Any, **options: Any) -> Any:
        is_plain = type(x) is np.ndarray and not args and not options
        return jax.device_put(x) if is_plain else as_array(x, *args, **options)

    old = {primitive: primitive.impl for primitive in changed}
    for primitive, operation in changed.items():
        primitive.def_impl(_by_numpy(operation, old[primitive]))
    try:
        with jax.disable_jit(), mock.patch.object(jnp, "asarray", transferred):
            yield
    finally:
        for primitive, impl in old.items():
            primitive.def_impl(impl)
