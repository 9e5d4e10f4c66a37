"""Adapters of `jaxmix.init` against PEFT's for the same config: structure, values, spread."""

# pyright: reportAttributeAccessIssue=false

# Tests read fields that only some families have.

from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxmix.training import init, trainable

from .init_rows import PARAMS, ROWS, Row

if any(find_spec(name) is None for name in ("torch", "peft", "transformers")):
    pytest.skip("parity with PEFT needs torch and peft", allow_module_level=True)

from .peft_adapters import BIG, read

# Fields that a file stores once for all sites, or that depend on torch's generator.
_SAID_ONCE: dict[str, Any] = {"transposed": False, "seed": None, "number": None}
# Fields with random values; all others equal PEFT's.
_DRAWN: dict[str, set[str]] = {
    "LoRA": {"a"},
    "AdaLoRA": {"a", "b"},
    "KaSA": {"a", "d"},
    "HiRA": {"a"},
    "LoHa": {"b1", "a1", "b2", "a2", "t1", "t2"},
    "LoKr": {"x", "y", "t2"},
    "HRA": {"u"},
    "SHiRA": {"indices"},
    "FourierFT": {"spectrum", "indices"},
    "WaveFT": {"indices"},
    "C3A": {"kernels"},
    "SuperTuning": {"a"},
    "VeRA": {"a", "b"},
    "PVeRA": {"a", "b"},
    "RandLoRA": {"a", "b"},
    "VBLoRA": {"a", "b", "bank"},
    "UniLoRA": {"theta", "a_indices", "b_indices"},
    "TinyLoRA": {"projections", "v"},
    "DeLoRA": {"a"},
    "GraLoRA": {"a", "a_general"},
    "PEANuT": {"a", "encoders", "decoders"},
    "GLoRA": {"a", "b", "c"},
    "DEFT": {"p", "injected"},
    "FRoD": {"v", "indices"},
    "AdaMSS": {"a"},
}
# Initializations for which jaxmix's reader gives PEFT's file another form.
_PARTED = ("pissa", "olora")


def _plain(update: Any) -> Any:
    """Returns the update without the fields that a file stores once for all sites."""
    shared_fields = {field.name for field in fields(update)} & _SAID_ONCE.keys()
    return replace(update, **{name: _SAID_ONCE[name] for name in shared_fields})


def _compared(ours: Any, theirs: Any) -> None:
    """Compares the updates of one site."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    both = zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True)
    for (path, leaf), other in both:
        left, right = np.asarray(leaf, np.float64), np.asarray(other, np.float64)
        assert left.shape == right.shape, path
        if path[0].name not in _DRAWN.get(ours.family, ()) or not right.any():
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-4, err_msg=str(path))
            continue
        assert not np.array_equal(left, right), path
        if left.size > 20:
            _spread_alike(left, right, str(path))


def _spread_alike(left: np.ndarray, right: np.ndarray, name: str) -> None:
    """Asserts equal means and deviations within five standard errors, and equal uniform bounds."""
    assert abs(left.std() / right.std() - 1) < 5 / left.size**0.5, (name, left.std(), right.std())
    assert abs(left.mean() - right.mean()) < 7 * right.std() / left.size**0.5, name
    if np.abs(right).max() < 1.8 * right.std():
        bounds = np.abs(left).max(), np.abs(right).max()
        assert abs(bounds[0] / bounds[1] - 1) < 0.02 + 20 / left.size, (name, bounds)


_KINDS = [row for row in ROWS if row.options.get("init_lora_weights") not in _PARTED]


@pytest.mark.parametrize("row", [row for row in _KINDS if row.kind != "osf"], ids=str)
def test_init_matches_peft(row: Row, tmp_path: Path) -> None:
    """Structure, shapes, fixed values, spreads and the number of trained values match PEFT's."""
    theirs, trained = read(row, tmp_path)
    ours = init(row.kind, PARAMS, jax.random.key(3), target_modules=list(row.at), **row.options)
    assert set(ours.updates) == set(theirs.updates)
    for site, update in ours.updates.items():
        _compared(_plain(update), _plain(theirs.updates[site]))
    values, _ = trainable(ours)
    assert sum(x.size for x in jax.tree.leaves(values)) == sum(p.numel() for p in trained)


# Large enough to determine a spread to a few hundredths.
_WIDE = (
    Row("lora", {"rank": 16}),
    Row("lora", {"rank": 16, "init_lora_weights": "gaussian"}),
    Row("adalora", {"rank": 16}),
    Row("loha", {"rank": 16}),
    Row("lokr", {"rank": 8, "decompose_factor": 2}),
    Row("hra", {"rank": 16}),
    Row("fourierft", {"n_frequency": 4000}),
    Row("c3a", {"block_size": 16}),
    Row("c3a", {"block_size": 16, "init_weights": "gaussian"}),
    Row("c3a", {"block_size": 16, "init_weights": "kaiming_uniform"}),
    Row("vera", {"rank": 32}),
    Row("randlora", {"rank": 16}),
    Row("vblora", {"rank": 4, "vector_length": 32}),
    Row("tinylora", {"rank": 16, "u": 32, "init_weights": "uniform"}),
    Row("gralora", {"rank": 16}),
    Row("peanut", {"rank": 48, "depth": 1}),
    Row("glora", {"rank": 16}),
    Row("deft", {"rank": 32}),
)


@pytest.mark.parametrize("row", _WIDE, ids=str)
def test_spread_matches_peft(row: Row, tmp_path: Path) -> None:
    row = replace(row, at=("big",))
    theirs, _ = read(row, tmp_path, BIG)
    ours = init(row.kind, BIG, jax.random.key(5), target_modules=["big"], **row.options)
    _compared(_plain(ours.updates["big"]), _plain(theirs.updates["big"]))
