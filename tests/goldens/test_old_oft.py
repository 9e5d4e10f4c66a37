"""OFT adapters of peft 0.13, 0.15 and 0.17 match the outputs that those versions recorded."""

import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load

import jaxmix

ZIP = Path(__file__).with_name("old_oft.zip")
with zipfile.ZipFile(ZIP) as _zip:
    CASES = sorted({name.rpartition("/")[0] for name in _zip.namelist()})


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.one_of(2)
@pytest.mark.parametrize("case", CASES)
def test_old_oft_matches_its_version(case: str, tmp_path: Path) -> None:
    """The composed weights give the output that the adapter's own version of PEFT computed."""
    with zipfile.ZipFile(ZIP) as archive:
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (tmp_path / file).write_bytes(archive.read(f"{case}/{file}"))
        truth = load(archive.read(f"{case}/truth.safetensors"))
    x, output = truth.pop("x"), truth.pop("output")
    with jax.enable_x64(True):
        needs_base = "coft_share" in case and case.startswith("0.15")
        adapter = jaxmix.load(tmp_path, base=truth if needs_base else None)
        weights = {k: np.asarray(v) for k, v in jaxmix.compose(truth, adapter).items()}
    error = np.abs(run(weights, x) - output).max() / np.abs(output).max()
    assert error < 1e-12
    moved = np.abs(run(truth, x) - output).max() / np.abs(output).max()
    assert moved > 1e-3 or case.endswith("terms1")


def run(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Returns the output of layer, tanh, layer, for linear layers or 3 × 3 convolutions."""
    for i, name in enumerate(("one", "two")):
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        x = np.tanh(x) if i else x
        if weight.ndim == 2:
            x = x @ weight.T + bias
        else:
            patches = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))
            x = np.einsum("nchwij,ocij->nohw", patches, weight) + bias[:, None, None]
    return x
