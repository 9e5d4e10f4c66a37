"""MXFP4: powers of two at both ends, and the axes of experts."""

from pathlib import Path

import numpy as np

from jaxmix.converters.checkpoints.quantization import mxfp4
from jaxmix.converters.checkpoints.quantization.mxfp4 import power_of_two

from .stored import collected


def test_exponents_of_bytes() -> None:
    """The smallest power is subnormal, and 255 is not a number."""
    powers = power_of_two(np.array([0, 1, 127, 130, 254], np.uint8))
    assert powers.dtype == np.float32
    assert powers.tolist() == [2.0**-127, 2.0**-126, 1, 8, 2.0**127]
    assert np.isnan(power_of_two(np.array([255], np.uint8))).all()


def test_experts_are_transposed(tmp_path: Path) -> None:
    """The file has (experts, out, groups, bytes), transformers (experts, in, out)."""
    low, high = np.random.default_rng(0).integers(0, 16, (2, 2, 3, 2, 4))
    scales = np.arange(126, 138, dtype=np.uint8).reshape(2, 3, 2)
    tensors = {"w_blocks": (low | high << 4).astype(np.uint8), "w_scales": scales}
    readout = collected(mxfp4.read, tmp_path, tensors)
    assert not readout.problems and readout.parts == {*tensors}
    experts = readout.packed["w"]
    assert experts.shape == (2, 16, 3)
    sizes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    expected = np.empty((2, 16, 3), np.float32)
    for e, o, g, k in np.ndindex(2, 3, 2, 4):
        for part, code in enumerate((low[e, o, g, k], high[e, o, g, k])):
            power = 2.0 ** (int(scales[e, o, g]) - 127)
            expected[e, 8 * g + 2 * k + part, o] = sizes[code % 8] * power * (-1) ** (code // 8)
    np.testing.assert_array_equal(experts.read(), expected)
    np.testing.assert_array_equal(experts.rows(slice(1, 2)), expected[1:])
