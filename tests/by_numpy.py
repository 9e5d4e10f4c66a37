"""NumPy in place of XLA, for operations outside of compiled functions.

JAX compiles a program for each such operation and each shape. A program takes some 25 ms, and the
tests have thousands of them. In all tests NumPy runs the operations whose results are then the same
bit for bit: `EXACT`. Within `uncompiled` (uncompiled.py) it runs those that round differently too.

Everything else stays XLA's: keys, weak types, arrays on a chosen device, and compiled functions,
but for the small ones of JAX itself (small_programs.py).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.extend.core import primitives

from .index_operations import (
    dynamic_slice,
    dynamic_update_slice,
    gather,
    scatter,
    scatter_add,
)
from .jax_internals import transferred

__all__ = ["EXACT", "OPERATIONS", "by_numpy", "use_numpy"]

# Maps operands and parameters to the result; None where XLA must compute it.
Operation = Callable[..., np.ndarray | None]
REAL = tuple(map(np.dtype, ("float32", "float64")))
WIDE = REAL[1:]
SHORT = tuple(map(np.dtype, (ml_dtypes.bfloat16, np.float16)))
BOOL = np.dtype(bool)
WHOLE = tuple(map(np.dtype, ("int32", "int64", "uint32")))
BITS = (*WHOLE, np.dtype("uint8"), np.dtype("uint16"))


def _broadcast_in_dim(
    x: np.ndarray, *, shape: Any, broadcast_dimensions: Any, sharding: Any
) -> np.ndarray | None:
    sizes = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, x.shape, strict=True):
        sizes[axis] = size
    return np.broadcast_to(x.reshape(sizes), shape) if sharding is None else None


def _reshape(x: np.ndarray, *, new_sizes: Any, dimensions: Any, sharding: Any) -> np.ndarray | None:
    return x.reshape(new_sizes) if dimensions is None and sharding is None else None


def _slice(x: np.ndarray, *, start_indices: Any, limit_indices: Any, strides: Any) -> np.ndarray:
    steps = strides or (1,) * x.ndim
    return x[tuple(map(slice, start_indices, limit_indices, steps))]


def _select_n(which: np.ndarray, *cases: np.ndarray) -> np.ndarray | None:
    return np.where(which, cases[1], cases[0]) if which.dtype == bool else None


def _pad(x: np.ndarray, value: np.ndarray, *, padding_config: Any) -> np.ndarray | None:
    if any(low < 0 or high < 0 or between for low, high, between in padding_config):
        return None
    widths = [(low, high) for low, high, _ in padding_config]
    return np.pad(x, widths, constant_values=value[()])


def _convert_element_type(
    x: np.ndarray, *, new_dtype: Any, weak_type: bool, sharding: Any
) -> np.ndarray | None:
    new = np.dtype(new_dtype)
    if weak_type or sharding is not None:
        return None
    if x.dtype in (*WHOLE, BOOL, *REAL) and new in REAL:
        return x.astype(new)
    if x.dtype in (*BITS, BOOL) and new in (*WHOLE, BOOL):
        return x.astype(new)
    if (x.dtype in SHORT and new in REAL) or (x.dtype == np.float32 and new in SHORT):
        return x.astype(new)
    return None


def _bitcast_convert_type(x: np.ndarray, *, new_dtype: Any) -> np.ndarray | None:
    same_size = x.dtype.itemsize == np.dtype(new_dtype).itemsize and x.dtype != BOOL
    return np.ascontiguousarray(x).view(new_dtype).reshape(x.shape) if same_size else None


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


def _divided(function: Any, of_integers: Any) -> Operation:
    """Makes a division; integers must not be negative, and not divided by zero."""

    def run(x: np.ndarray, y: np.ndarray) -> np.ndarray | None:
        if x.dtype != y.dtype:
            return None
        if x.dtype in WHOLE:
            return of_integers(x, y) if (x >= 0).all() and (y > 0).all() else None
        return function(x, y) if x.dtype in REAL else None

    return run


def _shifted(function: Any) -> Operation:
    """Makes an operation of one of NumPy's shifts, whose bits must be fewer than the numbers'."""

    def run(x: np.ndarray, by: np.ndarray) -> np.ndarray | None:
        is_usual = x.dtype == by.dtype == np.uint32 and by.size > 0 and by.max() < 32
        return function(x, by) if is_usual else None

    return run


def _reduced(function: Any, *dtypes: np.dtype) -> Operation:
    """Makes an operation of a NumPy reduction whose result has its operand's dtype."""

    def run(x: np.ndarray, *, axes: Any, **_: Any) -> np.ndarray | None:
        return function(x, axis=tuple(axes)) if x.dtype in dtypes else None

    return run


def _summed(x: np.ndarray, *, axes: Any, **_: Any) -> np.ndarray | None:
    return x.sum(axis=tuple(axes), dtype=x.dtype) if x.dtype in (*REAL, *WHOLE) else None


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


# Operations that move numbers, or round each result once.
EXACT: dict[str, Operation] = {
    "broadcast_in_dim_p": _broadcast_in_dim,
    "reshape_p": _reshape,
    "transpose_p": lambda x, *, permutation: x.transpose(permutation),
    "squeeze_p": lambda x, *, dimensions: x.squeeze(tuple(dimensions)),
    "concatenate_p": lambda *xs, dimension: np.concatenate(xs, dimension),
    "slice_p": _slice,
    "dynamic_slice_p": dynamic_slice,
    "dynamic_update_slice_p": dynamic_update_slice,
    "gather_p": gather,
    "scatter_p": scatter,
    "scatter_add_p": scatter_add,
    "pad_p": _pad,
    "rev_p": lambda x, *, dimensions: np.flip(x, dimensions),
    "select_n_p": _select_n,
    "convert_element_type_p": _convert_element_type,
    "bitcast_convert_type_p": _bitcast_convert_type,
    "iota_p": _iota,
    "add_p": _of(np.add, *REAL, *WHOLE),
    "sub_p": _of(np.subtract, *REAL, *WHOLE),
    "mul_p": _of(np.multiply, *REAL, *WHOLE),
    "div_p": _divided(np.divide, np.floor_divide),
    "rem_p": _divided(np.fmod, np.fmod),
    "neg_p": _of(np.negative, *REAL, *WHOLE),
    "abs_p": _of(np.abs, *REAL),
    "sqrt_p": _of(np.sqrt, *REAL),
    "sign_p": _of(np.sign, *REAL, *WHOLE),
    "is_finite_p": _of(np.isfinite, *REAL),
    "eq_p": _of(np.equal, *REAL, *WHOLE, BOOL),
    "ne_p": _of(np.not_equal, *REAL, *WHOLE, BOOL),
    "lt_p": _of(np.less, *REAL, *WHOLE, BOOL),
    "le_p": _of(np.less_equal, *REAL, *WHOLE, BOOL),
    "gt_p": _of(np.greater, *REAL, *WHOLE, BOOL),
    "ge_p": _of(np.greater_equal, *REAL, *WHOLE, BOOL),
    "and_p": _of(np.bitwise_and, *WHOLE, BOOL),
    "or_p": _of(np.bitwise_or, *WHOLE, BOOL),
    "xor_p": _of(np.bitwise_xor, *WHOLE, BOOL),
    "not_p": _of(np.invert, *WHOLE, BOOL),
    "shift_left_p": _shifted(np.left_shift),
    "shift_right_logical_p": _shifted(np.right_shift),
    "max_p": _of(np.maximum, *REAL, *WHOLE, BOOL),
    "min_p": _of(np.minimum, *REAL, *WHOLE, BOOL),
    "reduce_max_p": _reduced(np.max, *REAL),
    "reduce_and_p": _reduced(np.all, BOOL),
    "reduce_or_p": _reduced(np.any, BOOL),
}

OPERATIONS: dict[str, Operation] = EXACT | {
    "dot_general_p": _dot_general,
    "integer_pow_p": _integer_pow,
    "cos_p": _of(np.cos, *WIDE),
    "sin_p": _of(np.sin, *WIDE),
    "exp_p": _of(np.exp, *WIDE),
    "log_p": _of(np.log, *WIDE),
    "tanh_p": _of(np.tanh, *WIDE),
    "triangular_solve_p": _triangular_solve,
    "reduce_sum_p": _summed,
}


def _operand(x: Any, keeps_weak: bool) -> np.ndarray | None:
    """Returns an operand's values; None for keys, weak types, and arrays of chosen devices."""
    # Keys and NumPy's own arrays have no such attribute; JAX's constants are not on any device.
    is_weak = getattr(x, "weak_type", None)
    if is_weak is None or (is_weak and not keeps_weak) or getattr(x, "committed", False):
        return None
    return np.asarray(x)


def _transferred(x: np.ndarray) -> jax.Array:
    """A copy on the device, so that no two arrays share a buffer."""
    # Operations on numbers of 64 bits keep them outside of `enable_x64` too, transfers do not.
    copy = np.array(x, order="C")
    if x.dtype.itemsize < 8 or jax.config.jax_enable_x64:
        return transferred(copy)
    with jax.enable_x64(True):
        return transferred(copy)


def _run_by_numpy(operation: Operation, old: Callable[..., Any]) -> Callable[..., Any]:
    """Runs an operation by NumPy where it can, otherwise by XLA."""

    def run(*operands: Any, **parameters: Any) -> Any:
        values = [_operand(x, operation is _convert_element_type) for x in operands]
        if all(x is not None for x in values):
            with np.errstate(all="ignore"):
                result = operation(*values, **parameters)
            if result is not None:
                return _transferred(result)
        return old(*operands, **parameters)

    return run


def use_numpy(operations: Mapping[str, Operation]) -> Callable[[], None]:
    """From now on NumPy runs operations outside of compiled functions.

    Args:
        operations: NumPy's form of each, by the name of its primitive.

    Returns:
        A function that undoes it.
    """
    old = {getattr(primitives, name): getattr(primitives, name).impl for name in operations}
    for (primitive, impl), operation in zip(old.items(), operations.values(), strict=True):
        primitive.def_impl(_run_by_numpy(operation, impl))

    def undo() -> None:
        for primitive, impl in old.items():
            primitive.def_impl(impl)

    return undo


@contextmanager
def by_numpy(operations: Mapping[str, Operation]) -> Iterator[None]:
    """The same within the context."""
    undo = use_numpy(operations)
    try:
        yield
    finally:
        undo()
