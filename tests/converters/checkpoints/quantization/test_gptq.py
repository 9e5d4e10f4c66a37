"""GPTQ: versions, zero points and groups."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxmix
from jaxmix.converters.merging import merge_checkpoint
from jaxmix.errors import CheckpointError

from ....messages import full_text
from .bases import CASES, packed, read, save, unpacked


def by_hand(tensors: dict[str, np.ndarray], bits: int, plus: int) -> np.ndarray:
    """Returns GPTQ's formula, number by number, from a dense string of bits, the lowest first."""
    codes, zeros = tensors["proj.qweight"], tensors["proj.qzeros"]
    scales, groups = tensors["proj.scales"], tensors["proj.g_idx"]

    def number(integers: Any, position: int) -> int:
        string = sum((int(integer) % 2**32) << 32 * k for k, integer in enumerate(integers))
        return string >> position * bits & 2**bits - 1

    out = np.empty((codes.shape[1], len(groups)), np.float32)
    for o, i in np.ndindex(*out.shape):
        group = groups[i]
        step = number(codes[:, o], i) - number(zeros[group], o) - plus
        out[o, i] = np.float16(float(scales[group, o]) * step)
    return out


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2", None])
def test_zero_points_depend_on_gptqs_version(
    bits: int, version: str | None, tmp_path: Path
) -> None:
    """Version 1 stores them minus 1; without a version, version 1 is assumed."""
    tensors = packed(f"gptq_{bits}_desc_act")
    settings = {"quant_method": "gptq", "bits": bits, "checkpoint_format": version}
    expected = by_hand(tensors, bits, plus=int(version != "gptq_v2"))
    np.testing.assert_array_equal(read(save(tmp_path / "base", tensors, settings)), expected)


def test_zero_point_of_0_borrows(tmp_path: Path) -> None:
    """Version 1 subtracts 1 from whole words, so a zero point of 0 borrows from the next."""
    tensors, zeros = packed("gptq_4"), np.zeros((4, 96), np.uint32)
    zeros[:, 1::2] = 5
    integers = np.bitwise_or.reduce([zeros[:, k::8] << np.uint32(4 * k) for k in range(8)])
    settings = CASES["gptq_4"]["settings"]
    plain = {"proj.qzeros": integers.view(np.int32)}
    less = {"proj.qzeros": (integers - np.uint32(0x11111111)).view(np.int32)}
    old = save(tmp_path / "old", tensors | less, settings)
    new = save(tmp_path / "new", tensors | plain, settings | {"checkpoint_format": "gptq_v2"})
    np.testing.assert_array_equal(read(old), read(new))


@pytest.mark.parametrize("group_size", [16, -1, "x"])
def test_groups_without_an_index_are_consecutive(group_size: Any, tmp_path: Path) -> None:
    """Without an index of groups, they are consecutive inputs."""
    tensors = packed("gptq_8")
    del tensors["proj.g_idx"]
    settings = CASES["gptq_8"]["settings"] | {"group_size": group_size}
    base = save(tmp_path / "base", tensors, settings)
    np.testing.assert_array_equal(read(base), unpacked("gptq_8"))


def test_groups_out_of_range_are_refused(tmp_path: Path) -> None:
    """Groups of inputs are data, so they are checked when they are read."""
    groups = np.full(64, 4, np.int32)
    base = save(
        tmp_path / "base",
        packed("gptq_4") | {"proj.g_idx": groups, "z": np.ones(1)},
        CASES["gptq_4"]["settings"],
    )
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"proj.g_idx in {tmp_path}/base/model-1.safetensors has groups from "
            "4 to 4, expected 0 to 3. Download or save it again."
        ),
    ):
        merge_checkpoint(base, jaxmix.Adapter({}), tmp_path / "out", dequantize=True)
    assert not list(tmp_path.glob("out*"))
