"""The figures of rounding to 16 bits, compared with NumPy in float64."""

import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix.converters.merging import Rounding, merge_checkpoint, recipe
from jaxmix.errors import CheckpointError
from jaxmix.families import LoRA

from ...messages import full_text
from ..bases import Adapters, load, mixed, save_base

BF16 = ml_dtypes.bfloat16


@pytest.mark.parametrize("block", [1 << 20, 20])
@pytest.mark.parametrize("dtype", [BF16, np.float16])
def test_figures(
    dtype: Any, block: int, adapters: Adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are given for each tensor and in total, in one run of rows or in many."""
    monkeypatch.setattr(recipe, "BLOCK", block)
    base = save_base(tmp_path / "base", dtype=dtype, shards=3)
    rounding = merge_checkpoint(base, mixed(adapters), tmp_path / "out").rounding
    assert rounding is not None
    weights, loaded = load(base), load(tmp_path / "out")
    wide = {n: a.astype(np.float32) for n, a in weights.items() if a.dtype == dtype}
    exact = {n: np.asarray(a) for n, a in jaxmix.compose(wide, mixed(adapters)).items()}
    names = [name for name in wide if "_proj." in name]
    rows = []
    for name in names:
        w, e = (x[name].astype(np.float64).ravel() for x in (wide, exact))
        rows.append((loaded[name].astype(np.float64).ravel() - e, w, e - w))
        _check(rounding.tensors[name], *rows[-1])
    assert set(rounding.tensors) == set(names)
    error, weight, effect = (np.concatenate(column) for column in zip(*rows, strict=True))
    _check(rounding, error, weight, effect)
    # Uniform between two neighbours: about their distance over √12.
    assert rounding.of_weight is not None
    assert 0.3 < rounding.of_weight / (2.0**-8 if dtype == BF16 else 2.0**-11) < 1.5


def _check(rounding: Rounding, error: Any, weight: Any, effect: Any) -> None:
    """Compares the figures with NumPy's."""
    square = [float(np.sum(x * x)) for x in (error, weight, effect)]
    largest = [float(np.abs(x).max()) for x in (error, weight, effect)]
    expected = {
        "largest": largest[0],
        "rms": math.sqrt(square[0] / error.size),
        "of_weight": math.sqrt(square[0] / square[1]),
        "of_effect": math.sqrt(square[0] / square[2]),
        "largest_of_weight": largest[0] / largest[1],
        "largest_of_effect": largest[0] / largest[2],
    }
    for name, value in expected.items():
        assert getattr(rounding, name) == pytest.approx(value, rel=1e-3), name


def test_float32_and_strength_0_have_no_figures(
    base: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """float32 is not rounded; a mix of strength 0 has no effect to compare with."""
    assert merge_checkpoint(base, mixed(adapters), tmp_path / "1").rounding is None
    half = save_base(tmp_path / "half", dtype=np.float16)
    rounding = merge_checkpoint(half, 0.0 * mixed(adapters), tmp_path / "2").rounding
    assert rounding is not None and (rounding.largest, rounding.rms, rounding.of_effect) == (
        0.0,
        0.0,
        None,
    )
    assert merge_checkpoint(half, [], tmp_path / "3").rounding is None


def test_numbers_beyond_float16(tmp_path: Path) -> None:
    """The error states the number that would be infinite, and nothing is written."""
    (tmp_path / "base").mkdir()
    file = tmp_path / "base" / "model.safetensors"
    save_file({"proj.weight": np.full((3, 2), 60000, np.float16)}, file)
    a, b = jnp.ones((1, 2)), jnp.asarray([[0.0], [10000.0], [20000.0]])
    adapter = jaxmix.Adapter({"proj": LoRA(a, b, 1.0)})
    message = full_text(
        "proj.weight: 4 numbers of the merged tensor exceed the range of float16 (the largest is "
        "80000). Convert the base to bfloat16 or float32 first, or lower the strengths."
    )
    with pytest.raises(CheckpointError, match=message):
        merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    merge_checkpoint(tmp_path / "base", 0.25 * adapter, tmp_path / "out", verify=True)
    # Numbers of the base are not checked.
    weights = np.array([[np.inf, 1], [np.nan, 2], [3, 4]], np.float16)
    save_file({"proj.weight": weights}, file)
    merge_checkpoint(tmp_path / "base", 0.25 * adapter, tmp_path / "out", force=True, verify=True)
    merged = load_file(tmp_path / "out" / "model.safetensors")["proj.weight"]
    assert np.array_equal(np.isfinite(merged), np.isfinite(weights))
