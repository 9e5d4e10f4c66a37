"""Tensors with rows of the base followed by new rows."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxmix.converters.checkpoints.huggingface import Stored
from jaxmix.converters.merging.resized_tensor import new_tensor, resize_tensor
from jaxmix.errors import CheckpointError

FILE = Path("model.safetensors")
BASE = np.arange(12, dtype=np.float32).reshape(4, 3)
STORED = Stored("embed.weight", "F32", BASE.shape, FILE, 8, BASE.nbytes)
EXTRA = np.full((2, 3), 0.1, np.float64)


def read(stored: Stored, part: slice) -> np.ndarray:
    """Returns rows of the base; the slice must be inside it."""
    assert stored is STORED and 0 <= part.start < part.stop <= len(BASE)
    return BASE[part]


@pytest.mark.parametrize("rows", [2, 4, 6])
def test_every_run_of_rows_is_read(rows: int) -> None:
    """The new tensor has fewer rows than the base, as many, or more."""
    extra = EXTRA[: max(0, rows - len(BASE))]
    resized = resize_tensor(STORED, rows, extra)
    expected = np.concatenate([BASE[:rows], extra.astype(np.float32)])
    assert (resized.shape, resized.size, resized.file) == ((rows, 3), rows * 12, FILE)
    for start in range(rows):
        for stop in range(start + 1, rows + 1):
            run = resized.rows(slice(start, stop), read)
            np.testing.assert_array_equal(run, expected[start:stop], strict=True)


def test_new_tensor_has_only_new_rows() -> None:
    """Its numbers are rounded to the dtype of the file, and no row of a base is read."""
    tensor = new_tensor("score.weight", "BF16", EXTRA, FILE)
    expected = EXTRA.astype(ml_dtypes.bfloat16)
    assert (tensor.name, tensor.dtype, tensor.shape, tensor.size) == (
        "score.weight",
        "BF16",
        (2, 3),
        12,
    )
    np.testing.assert_array_equal(tensor.rows(slice(0, 2), read), expected, strict=True)
    np.testing.assert_array_equal(tensor.rows(slice(1, 2), read), expected[1:], strict=True)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_new_rows_have_the_dtype_that_was_read(dtype: type) -> None:
    """`read` may return another dtype than that of the file."""
    resized = resize_tensor(STORED, 5, EXTRA[:1])
    rows = resized.rows(slice(3, 5), lambda stored, part: BASE[part].astype(dtype))
    assert rows.dtype == dtype and rows.shape == (2, 3)


def test_numbers_beyond_the_dtype_are_refused() -> None:
    """An infinity that is passed is kept, a finite number must not become one."""
    assert np.isinf(new_tensor("b", "F16", np.array([np.inf]), FILE).extra).all()
    with pytest.raises(CheckpointError) as caught:
        new_tensor("b", "F16", np.array([1e5]), FILE)
    assert str(caught.value) == (
        "b: the new rows exceed the range of F16. Convert the base to bfloat16 or float32 first."
    )
