"""DiagOFT against the OFT of peft 0.13 and of 0.15: the folders they saved, their own forwards."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxmix.affine import Base
from jaxmix.families import DiagOFT

from ..goldens.archive import Archive

GOLDENS = {version: Archive(f"formats/oft-{version}") for version in ("0.13", "0.15")}
CASES = [
    (version, name, eps)
    for version, golden in GOLDENS.items()
    for name, eps in golden.json("cases.json").items()
]


def update(version: str, blocks: np.ndarray, scale: np.ndarray | None, bound: float | None):
    """What a reader of these files makes of a site's tensors."""
    if version == "0.13":
        return DiagOFT(jnp.asarray(blocks), None, bound, factor=-0.5, by_block=True)
    r = None if scale is None else jnp.asarray(scale.reshape(-1))
    return DiagOFT(jnp.asarray(blocks), r, bound, factor=0.5, side="in", by_block=True)


@pytest.mark.parametrize(("version", "name", "eps"), CASES)
def test_it_is_peft_s_own_forward(
    version: str, name: str, eps: float | None, tmp_path: Path
) -> None:
    """Of linear layers and a convolution; blocks that overhang are cut; the bias stays."""
    golden = GOLDENS[version]
    base, expected = (golden.tensors(f"{x}.safetensors") for x in ("base", f"{name}.expected"))
    file = golden.unpack(tmp_path) / name / "adapter_model.safetensors"
    tensors = {k.removeprefix("base_model.model."): x for k, x in load_file(file).items()}
    with jax.enable_x64(True):
        for site in ("proj", "odd", "conv"):
            weight = base[f"{site}.weight"]
            matrix, blocks = weight.reshape(len(weight), -1), tensors[f"{site}.oft_r"]
            bound = None
            if eps is not None:
                size = math.ceil(len(weight) / 4) ** 2
                # PEFT's root is a tensor of float32, and so is what it divides.
                bound = float(np.float32(eps * size / np.sqrt(np.float32(len(blocks)))))
            one = update(version, blocks, tensors.get(f"{site}.oft_s"), bound)
            assert one.misfit(matrix.shape) is None
            mapped = one.weight_map(Base(None, matrix.shape), jnp.ones(()))(jnp.asarray(matrix))
            truth = expected[f"{site}.weight"].reshape(matrix.shape)
            np.testing.assert_allclose(np.asarray(mapped), truth, rtol=0, atol=1e-14)
            assert np.abs(truth - matrix).max() > 1e-4
