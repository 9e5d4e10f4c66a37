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
_STORED_ONCE: dict[str, Any] = {"transposed": False, "seed": None, "number": None}
# Fields with random values; all others equal PEFT's.
_RANDOM: dict[str, set[str]] = {
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
# Initializations that change the base, so that jaxmix reads PEFT's file as another family.
_SPLIT_FROM_BASE = ("pissa", "olora")


def _without_shared_fields(update: Any) -> Any:
    """Returns the update without the fields that a file stores once for all sites."""
    shared_fields = {field.name for field in fields(update)} & _STORED_ONCE.keys()
    return replace(update, **{name: _STORED_ONCE[name] for name in shared_fields})


def _assert_matches(ours: Any, theirs: Any) -> None:
    """Asserts that two updates match: fixed values exactly, random values by their spread."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    pairs = zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True)
    for (path, leaf), other in pairs:
        actual, expected = np.asarray(leaf, np.float64), np.asarray(other, np.float64)
        assert actual.shape == expected.shape, path
        if path[0].name not in _RANDOM.get(ours.family, ()) or not expected.any():
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4, err_msg=str(path))
            continue
        assert not np.array_equal(actual, expected), path
        if actual.size > 20:
            _assert_same_spread(actual, expected, str(path))


def _assert_same_spread(actual: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Asserts equal means and deviations within five standard errors, and equal uniform bounds."""
    assert abs(actual.std() / expected.std() - 1) < 5 / actual.size**0.5, (
        name,
        actual.std(),
        expected.std(),
    )
    assert abs(actual.mean() - expected.mean()) < 7 * expected.std() / actual.size**0.5, name
    if np.abs(expected).max() < 1.8 * expected.std():
        bounds = np.abs(actual).max(), np.abs(expected).max()
        assert abs(bounds[0] / bounds[1] - 1) < 0.02 + 20 / actual.size, (name, bounds)


_KINDS = [row for row in ROWS if row.options.get("init_lora_weights") not in _SPLIT_FROM_BASE]


@pytest.mark.one_of(4)
@pytest.mark.parametrize("row", [row for row in _KINDS if row.kind != "osf"], ids=str)
def test_init_matches_peft(row: Row, tmp_path: Path) -> None:
    """Structure, shapes, fixed values, spreads and the number of trained values match PEFT's."""
    theirs, trained = read(row, tmp_path)
    ours = init(
        row.kind, PARAMS, jax.random.key(3), target_modules=list(row.targets), **row.options
    )
    assert set(ours.updates) == set(theirs.updates)
    for site, update in ours.updates.items():
        _assert_matches(
            _without_shared_fields(update), _without_shared_fields(theirs.updates[site])
        )
    values, _ = trainable(ours)
    assert sum(x.size for x in jax.tree.leaves(values)) == sum(p.numel() for p in trained)


# Large enough to determine a spread to a few hundredths.
_LARGE = (
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


@pytest.mark.parametrize("row", _LARGE, ids=str)
def test_spread_matches_peft(row: Row, tmp_path: Path) -> None:
    row = replace(row, targets=("big",))
    theirs, _ = read(row, tmp_path, BIG)
    ours = init(row.kind, BIG, jax.random.key(5), target_modules=["big"], **row.options)
    _assert_matches(
        _without_shared_fields(ours.updates["big"]), _without_shared_fields(theirs.updates["big"])
    )
