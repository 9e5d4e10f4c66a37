"""XLA's operations on parts of arrays, by NumPy's indices."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from jax.lax import GatherScatterMode

__all__ = ["dynamic_slice", "dynamic_update_slice", "gather", "scatter", "scatter_add"]

ADDED = tuple(map(np.dtype, ("float32", "float64", "int32", "int64", "uint32")))


def _part(x: np.ndarray, starts: tuple[np.ndarray, ...], sizes: Any) -> tuple[slice, ...]:
    """The part of these sizes that starts there, moved so that it lies within the array."""
    return tuple(
        slice(start, start + size)
        for start, size in (
            (min(max(int(start), 0), length - size), size)
            for start, size, length in zip(starts, sizes, x.shape, strict=True)
        )
    )


def dynamic_slice(x: np.ndarray, *starts: np.ndarray, slice_sizes: Any) -> np.ndarray:
    """A part of an array."""
    return x[_part(x, starts, slice_sizes)]


def dynamic_update_slice(x: np.ndarray, update: np.ndarray, *starts: np.ndarray) -> np.ndarray:
    """An array with a part replaced."""
    result = x.copy()
    result[_part(x, starts, update.shape)] = update
    return result


def _places(
    shape: tuple[int, ...],
    indices: np.ndarray,
    axes: Any,
    sizes: tuple[int, ...],
    windows: dict[int, int],
    mode: Any,
) -> tuple[np.ndarray, ...] | None:
    """NumPy's indices of one window for each row of indices; None where one lies outside.

    Args:
        shape: The array's shape.
        indices: Each window's start, along the last axis.
        axes: The array's axis of each number of a start.
        sizes: A window's sizes.
        windows: The result's axis of each of the array's axes that are in it.
        mode: What happens to windows that lie outside.
    """
    batch = indices.shape[:-1]
    count = len(batch) + len(windows)
    of_batch = [axis for axis in range(count) if axis not in windows.values()]
    spread = [1] * count
    for axis, size in zip(of_batch, batch, strict=True):
        spread[axis] = size
    places: list[np.ndarray] = []
    for axis, (length, size) in enumerate(zip(shape, sizes, strict=True)):
        place = np.zeros([1] * count, np.int64)
        if axis in axes:
            starts = indices[..., axes.index(axis)].astype(np.int64)
            last = length - size
            if mode is GatherScatterMode.FILL_OR_DROP and ((starts < 0) | (starts > last)).any():
                return None
            place = np.clip(starts, 0, last).reshape(spread)
        if axis in windows:
            along = [1] * count
            along[windows[axis]] = size
            place = place + np.arange(size).reshape(along)
        places.append(place)
    return tuple(places)


def gather(
    x: np.ndarray,
    indices: np.ndarray,
    *,
    dimension_numbers: Any,
    slice_sizes: Any,
    mode: Any,
    **_: Any,
) -> np.ndarray | None:
    """A part of an array for each row of indices; None where one lies outside of it."""
    numbers = dimension_numbers
    if numbers.operand_batching_dims:
        return None
    kept = [axis for axis in range(x.ndim) if axis not in numbers.collapsed_slice_dims]
    windows = dict(zip(kept, numbers.offset_dims, strict=True))
    places = _places(x.shape, indices, numbers.start_index_map, slice_sizes, windows, mode)
    return None if places is None else x[places]


def _scatter(
    write: Callable[[np.ndarray, Any, np.ndarray], None],
    dtypes: tuple[np.dtype, ...] | None,
    x: np.ndarray,
    indices: np.ndarray,
    updates: np.ndarray,
    *,
    dimension_numbers: Any,
    mode: Any,
    **_: Any,
) -> np.ndarray | None:
    """An array into which a part was written for each row of indices; None where one is outside."""
    numbers = dimension_numbers
    is_left_out = dtypes is not None and x.dtype not in dtypes
    if is_left_out or numbers.operand_batching_dims or x.dtype != updates.dtype:
        return None
    kept = [axis for axis in range(x.ndim) if axis not in numbers.inserted_window_dims]
    windows = dict(zip(kept, numbers.update_window_dims, strict=True))
    sizes = tuple(updates.shape[windows[axis]] if axis in windows else 1 for axis in range(x.ndim))
    axes = numbers.scatter_dims_to_operand_dims
    places = _places(x.shape, indices, axes, sizes, windows, mode)
    if places is None:
        return None
    result = x.copy()
    write(result, places, updates)
    return result


scatter = partial(_scatter, np.ndarray.__setitem__, None)
scatter_add = partial(_scatter, np.add.at, ADDED)
