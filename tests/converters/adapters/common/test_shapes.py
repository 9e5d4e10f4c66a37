"""Checks of the shapes of a site's tensors: each error lists everything that differs."""

import ml_dtypes
import numpy as np
import pytest

from jaxmix.converters.adapters.common.shapes import (
    at_least_float32,
    check_cores,
    check_ranks,
    describe_shapes,
    required,
)
from jaxmix.errors import CheckpointError, ShapeError

AXES = {"A": (2, 0), "B": (2, 1)}


def tensors(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Returns zeros with these shapes."""
    return {name: np.zeros(shape) for name, shape in shapes.items()}


def test_matching_ranks_are_accepted() -> None:
    """Absent tensors are not checked."""
    check_ranks(tensors(A=(4, 6), B=(3, 4)), AXES, 4)
    check_ranks(tensors(B=(3, 4)), AXES, 4)


@pytest.mark.parametrize("shape", [(5, 6), (4,), (4, 6, 1), (4, 0)])
def test_other_ranks_and_axes_are_refused(shape: tuple[int, ...]) -> None:
    """Refuses another rank, another number of axes, and tensors without elements."""
    with pytest.raises(ShapeError) as caught:
        check_ranks(tensors(A=shape, B=(3, 4)), AXES, 4)
    assert str(caught.value) == f"A has shape {shape}, expected (4, ·) with the config's rank 4"


def test_all_tensors_with_other_ranks_are_listed() -> None:
    with pytest.raises(ShapeError) as caught:
        check_ranks(tensors(A=(5, 6), B=(3, 5)), AXES, 4)
    assert str(caught.value) == (
        "A has shape (5, 6), expected (4, ·); B has shape (3, 5), expected (·, 4) with the "
        "config's rank 4"
    )


def test_cores_of_one_kernel_are_accepted() -> None:
    """Other tensors and absent cores are not checked."""
    check_cores(tensors(t1=(2, 2, 3, 3), t2=(2, 2, 3, 3), w=(7,)), ("t1", "t2"), 2)
    check_cores(tensors(w=(7,)), ("t1", "t2"), 2)


@pytest.mark.parametrize("shape", [(2, 3, 3, 3), (2, 2, 3, 1), (2, 2)])
def test_cores_that_differ_are_refused(shape: tuple[int, ...]) -> None:
    """Refuses cores of another rank, of another kernel, or without a kernel."""
    with pytest.raises(ShapeError) as caught:
        check_cores(tensors(t1=(2, 2, 3, 3), t2=shape), ("t1", "t2"), 2)
    assert str(caught.value) == (
        f"t1 (2, 2, 3, 3), t2 {shape}, expected (2, 2, *kernel) with one kernel"
    )


def test_single_core_needs_a_kernel() -> None:
    with pytest.raises(ShapeError) as caught:
        check_cores(tensors(t1=(2, 2)), ("t1", "t2"), 2)
    assert str(caught.value) == "t1 (2, 2), expected (2, 2, *kernel) with one kernel"


def test_required_tensors_are_returned_in_order() -> None:
    arrays = tensors(A=(1,), B=(2,), C=(3,))
    assert [tensor.shape for tensor in required(arrays, "C", "A")] == [(3,), (1,)]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (tensors(A=(1, 2)), "B is missing; found A (1, 2)"),
        (tensors(C=(3,)), "A, B are missing; found C (3,)"),
        ({}, "A, B are missing; found nothing"),
    ],
)
def test_missing_tensors_are_listed(arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        required(arrays, "A", "B")
    assert str(caught.value) == message


def test_shapes_are_described_in_order() -> None:
    assert describe_shapes(tensors(B=(2, 3), A=())) == "B (2, 3), A ()"


def test_16_bit_floats_are_widened() -> None:
    """Wider floats keep their dtype."""
    for dtype, wide in [
        (np.float16, np.float32),
        (ml_dtypes.bfloat16, np.float32),
        (np.float32, np.float32),
        (np.float64, np.float64),
    ]:
        assert at_least_float32(np.zeros(1, dtype)).dtype == wide
