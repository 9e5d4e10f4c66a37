"""bitsandbytes: codes and blocks that cross bytes and rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmix.converters.checkpoints.quantization import bitsandbytes

from .stored import collected

CODES = np.random.default_rng(0).integers(0, 16, 15)
# fp4 has a sign, and these sizes by the other three bits.
FP4 = np.array([0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4], np.float32)


def state(**fields: Any) -> np.ndarray:
    """Returns the JSON of a weight (3, 5) in blocks of 4."""
    record = {"shape": [3, 5], "blocksize": 4, "dtype": "float32", **fields}
    return np.frombuffer(json.dumps(record).encode(), np.uint8)


@pytest.mark.parametrize("rows", [slice(0, 3), slice(1, 2), slice(1, 3), slice(2, 2)])
def test_rows_begin_within_bytes_and_blocks(rows: slice, tmp_path: Path) -> None:
    """A row has an odd number of codes, the first one of each byte in the high bits."""
    pairs = np.append(CODES, 0).reshape(-1, 2)
    absmax = np.array([1, 2, 4, 8], np.float32)
    tensors = {
        "p.weight": (pairs[:, :1] << 4 | pairs[:, 1:]).astype(np.uint8),
        "p.weight.absmax": absmax,
        "p.weight.quant_map": np.zeros(16, np.float32),
        "p.weight.quant_state.bitsandbytes__fp4": state(),
    }
    readout = collected(bitsandbytes.read, tmp_path, tensors)
    assert not readout.problems and {*tensors} <= readout.parts
    expected = np.where(CODES < 8, 1, -1) * FP4[CODES % 8] * absmax.repeat(4)[:15]
    weight = readout.packed["p.weight"].rows(rows)
    np.testing.assert_array_equal(weight, expected.reshape(3, 5)[rows].astype(np.float32))


def test_eight_bits_are_scaled_by_rows(tmp_path: Path) -> None:
    """SCB is the largest value of a row, which the code 127 stands for."""
    codes = np.array([[127, -127, 0], [1, 64, -128]], np.int8)
    tensors = {
        "p.weight": codes,
        "p.SCB": np.array([2, 254], np.float32),
        "p.weight_format": np.zeros((), np.uint8),
        "q.weight": codes,
    }
    readout = collected(bitsandbytes.read, tmp_path, tensors)
    # Integers without a scale are not weights of bitsandbytes.
    assert list(readout.packed) == ["p.weight"] and readout.parts == {*tensors} - {"q.weight"}
    expected = [[2, -2, 0], [2, 128, -256]]
    np.testing.assert_allclose(readout.packed["p.weight"].read(), expected, rtol=1e-6)
    last = readout.packed["p.weight"].rows(slice(1, 2))
    np.testing.assert_allclose(last, expected[1:], rtol=1e-6)
