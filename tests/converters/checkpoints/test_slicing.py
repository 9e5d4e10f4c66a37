"""Slices of stored tensors equal NumPy's, and read little more than their bytes."""

from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxmix.converters.checkpoints.huggingface import Stored, read_checkpoint
from jaxmix.converters.checkpoints.slicing import ranges, read_slice
from jaxmix.errors import CheckpointError

SHAPE = (6, 40, 50)


def stored(folder: Path, tensor: np.ndarray) -> Stored:
    """Stores a tensor after another one, so it does not start at the first byte."""
    save_file({"a": np.ones(3, np.float32), "w": tensor}, folder / "model.safetensors")
    return read_checkpoint(folder).tensors["w"]


def test_random_slices_equal_numpys(tmp_path: Path) -> None:
    """Slices on any axes, also empty, negative and out of range."""
    rng = np.random.default_rng(0)
    tensor = rng.normal(size=SHAPE).astype(ml_dtypes.bfloat16)
    source = stored(tmp_path, tensor)
    for _ in range(60):
        count = rng.integers(0, 4)
        index = tuple(slice(*sorted(rng.integers(-3, size + 3, 2).tolist())) for size in SHAPE)
        part = read_slice(source, index[:count])
        assert part.dtype == tensor.dtype and part.shape == tensor[index[:count]].shape
        assert part.tobytes() == tensor[index[:count]].tobytes()


@pytest.mark.parametrize(
    ("index", "count"),
    [
        ((), 6 * 40 * 50),
        ((slice(2, 3),), 40 * 50),
        ((slice(2, 4), slice(10, 30)), 2 * 20 * 50),  # one run per row
        ((slice(0, 2), slice(None), slice(0, 5)), 2 * 40 * 50),  # short runs: with their gaps
        ((slice(3, 3),), 0),
    ],
)
def test_bytes_read(tmp_path: Path, index: tuple[slice, ...], count: int) -> None:
    """Complete runs are read, with the gaps only between short ones."""
    source, counter = stored(tmp_path, np.zeros(SHAPE, np.float32)), Counter[str]()
    read_slice(source, index, counter)
    assert counter["w"] == 4 * count


def test_scalar_is_read(tmp_path: Path) -> None:
    part = read_slice(stored(tmp_path, np.array(2.5)))
    assert part.shape == () and part == 2.5


def test_truncated_file_is_reported(tmp_path: Path) -> None:
    source = stored(tmp_path, np.zeros(SHAPE, np.float32))
    source.file.write_bytes(source.file.read_bytes()[:-1])
    assert read_slice(source, (slice(0, 5),)).shape == (5, 40, 50)
    with pytest.raises(CheckpointError) as caught:
        read_slice(source)
    assert str(caught.value) == (
        f"{source.file} ends within the tensor w. Was the file changed while it was being read? "
        "Download or save it again."
    )


def test_slices_become_ranges_of_every_axis() -> None:
    """One range per axis; axes without a slice are whole."""
    assert ranges((slice(-2, None),), (5, 3)) == [range(3, 5), range(3)]
    assert ranges(None, (2, 3)) == [range(2), range(3)]
