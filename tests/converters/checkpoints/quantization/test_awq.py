"""AWQ: the order within a word, and the spellings of its settings."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmix.converters.checkpoints.quantization import awq

from .stored import collected

# The output whose code each nibble of a word holds, lowest bits first, as AWQ packs them.
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
RNG = np.random.default_rng(0)
CODES, ZEROS = RNG.integers(0, 16, (6, 16)), RNG.integers(0, 16, (3, 16))
SCALES = RNG.normal(size=(3, 16)).astype(np.float16)


def words(codes: np.ndarray) -> np.ndarray:
    """Returns the codes (rows, out) in words (rows, out / 8)."""
    parts = codes.reshape(len(codes), -1, 8)[..., ORDER].astype(np.uint32)
    return (parts << np.arange(0, 32, 4, dtype=np.uint32)).sum(-1, dtype=np.uint32).view(np.int32)


TENSORS = {"p.qweight": words(CODES), "p.qzeros": words(ZEROS), "p.scales": SCALES}


def test_weight_is_its_formula(tmp_path: Path) -> None:
    """W[o, i] = scale[g, o] · (code[i, o] − zero[g, o]), also for outputs within a word."""
    packed = collected(awq.read, tmp_path, TENSORS).packed["p.weight"]
    steps = CODES - ZEROS.repeat(2, axis=0)
    expected = (steps * SCALES.repeat(2, axis=0).astype(np.float64)).astype(np.float16).T
    assert packed.shape == (16, 6)
    np.testing.assert_array_equal(packed.read(), expected.astype(np.float32))
    np.testing.assert_array_equal(packed.rows(slice(5, 11)), expected[5:11].astype(np.float32))


@pytest.mark.parametrize(
    ("settings", "problems"),
    [
        ({"version": "GEMM", "w_bit": 4}, []),
        ({"format": "exllama", "bits": 4}, []),
        ({"version": "ipex"}, []),
        ({"version": "gemv_fast"}, ["p: the AWQ version is 'gemv_fast', expected gemm"]),
        ({"w_bit": 3}, ["p: AWQ with 3 bits, expected 4"]),
    ],
)
def test_settings_of_older_versions(
    settings: dict[str, Any], problems: list[str], tmp_path: Path
) -> None:
    """The parts of a weight belong to it, whether or not it can be read."""
    readout = collected(awq.read, tmp_path, TENSORS, **settings)
    assert readout.problems == problems
    assert list(readout.packed) == ([] if problems else ["p.weight"])
    assert readout.parts == {*TENSORS}
