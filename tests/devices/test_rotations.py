"""Rotations, norms and others that span the parts of a leaf: communication and results."""

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

import jaxmix
from jaxmix import Adapter

from .compiled import Collective, large
from .layer import EXACT, PART, SPECS, TURNS, UPDATES, alone, params, small
from .spying import grid, programs

# Which rotations are tested where: some that span parts, and some that do not.
TRIED = {
    "rows": ("OFT, blocks of 48", "BOFT of outputs"),
    "columns": ("OFT, blocks of 12", "OFT, one block for all"),
    "both": ("OFT, blocks of 12", "OFT, blocks of 48", "BOFT of inputs", "RoAd, pairs apart"),
    "both on one": ("OFT, blocks of 12", "BOFT of inputs", "BOFT of outputs"),
}


@pytest.mark.parametrize("spec", SPECS)
def test_rotations(spec: str, monkeypatch: Any) -> None:
    """Equals one device in float64; either nothing is moved, or each part is exchanged twice."""
    make, where = SPECS[spec]
    with jax.enable_x64(True):
        leaves = params(make(), where, np.float64)
        truth = alone(tuple(TURNS))
        for kind in TRIED[spec]:
            adapter = Adapter({"a": TURNS[kind]}, 0.7)
            with programs(monkeypatch) as seen:
                out = jaxmix.compose(leaves, adapter)
            moved = [one for p in seen for one in large(p.as_text(), PART // 2)]
            assert moved == [Collective("all-to-all", PART)] * (2 * _goes_across(kind, where)), kind
            for name, leaf in out.items():
                wanted = truth[name.replace("a.", f"{kind}.")]
                assert np.abs(np.asarray(leaf) - wanted).max() < 1e-12, kind
                assert leaf.sharding == leaves[name].sharding


def _goes_across(kind: str, where: tuple[Any, Any]) -> bool:
    """Returns whether a rotation's blocks span the parts of its axis."""
    rows, cols = where
    if kind in ("BOFT of outputs", "RoAd, pairs apart"):
        return rows is not None
    if cols is None:
        return False
    parts = 4 if cols == "y" else 8
    return {"OFT, blocks of 12": False, "OFT, one block for all": parts == 8}.get(kind, True)


@pytest.mark.parametrize("kind", ["OFT, blocks of 48", "RoAd, pairs apart"])
def test_rotations_on_explicit_axes_within_jit(kind: str) -> None:
    """With explicit axes, a traced leaf's type has its sharding: no gathering inside jit either."""
    leaves = params(grid(AxisType.Explicit), ("x", "y"))
    adapter = Adapter({"a": small(TURNS[kind])}, 0.7)
    compiled = jax.jit(jaxmix.compose).lower(leaves, adapter).compile()
    moved = large(compiled.as_text(), PART // 2)
    assert moved == [Collective("all-to-all", PART)] * 2
    alone = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    truth = jaxmix.compose(alone, adapter)["a.weight"]
    np.testing.assert_allclose(compiled(leaves, adapter)["a.weight"], truth, atol=1e-5)


@pytest.mark.parametrize("spec", ["both", "columns"])
def test_dora_and_others_across_parts(spec: str) -> None:
    """Norms are those of whole rows: to 1e-12 in float64, to 1e-5 in float32."""
    kinds = ("DoRA", "Normed", "HiRA", "HRA", "OFT", "IA3", "Replace", "SHiRA", "LoKr")
    make, where = SPECS[spec]
    with jax.enable_x64(True):
        truth = alone(kinds)
        for dtype, bound in ((np.float64, 1e-12), (np.float32, 1e-5)):
            leaves = params(make(), where, dtype)
            for kind in kinds if dtype is np.float64 and spec == "both" else ("DoRA", "HRA"):
                update = (UPDATES if dtype is np.float32 else EXACT)[kind]
                out = jaxmix.compose(leaves, Adapter({"a": update}, 0.7))
                for name, leaf in out.items():
                    wanted = truth[name.replace("a.", f"{kind}.")]
                    assert np.abs(np.asarray(leaf) - wanted).max() < bound * np.abs(wanted).max()
