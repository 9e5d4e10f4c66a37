"""All families in the streaming merge, in runs of a few rows, compared with `compose`.

One row per structure of an operator; ``HYPOTHESIS_PROFILE=long`` runs all rows, which takes
minutes.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix.converters.merging import merge_checkpoint, recipe

from ...families.table import ROWS

SOME = (
    *("lora fan_in_fan_out", "dora bias", "loha conv2d", "lokr both factored", "oft", "shira"),
    *("hira", "ia3", "boft", "road_1 in groups of 2", "tokens", "c3a", "diag-oft rescaled"),
)
CHOSEN = ROWS if os.environ.get("HYPOTHESIS_PROFILE") == "long" else SOME


@pytest.mark.thorough
def test_every_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One model has a module for each row of the contract's table, and one adapter for all."""
    monkeypatch.setattr(recipe, "BLOCK", 12)
    runs: list[int] = []
    plain: Any = recipe.Prepared.compute

    def spy(self: Any, read: np.ndarray, rows: slice) -> recipe.ComputedRows:
        runs.append(len(self.runs))
        return plain(self, read, rows)

    monkeypatch.setattr(recipe.Prepared, "compute", spy)
    tensors, updates = {}, {}
    for i, row in enumerate(ROWS[name] for name in CHOSEN):
        leaves = row.leaves(i)
        tensors[f"rows.{i}.weight"] = np.asarray(leaves.weight, np.float32)
        tensors[f"rows.{i}.bias"] = np.asarray(leaves.bias, np.float32)
        factors = {
            name: np.asarray(f, np.float32) if np.asarray(f).dtype.kind == "f" else f
            for name, f in row.factors(i).items()
        }
        updates[f"rows.{i}"] = row.update(factors)
    (tmp_path / "base").mkdir()
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    adapter = 0.7 * jaxmix.Adapter(updates)
    merged = merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out", verify=True)
    proof = merged.verified
    assert proof is not None and proof.ok, proof and proof.text
    expected, output = (
        jaxmix.compose(tensors, adapter),
        load_file(tmp_path / "out" / "model.safetensors"),
    )
    for name, array in output.items():
        np.testing.assert_allclose(array, expected[name], rtol=2e-4, atol=2e-4, err_msg=name)
    assert len(merged.changed) >= len(CHOSEN) and max(runs) > 3
