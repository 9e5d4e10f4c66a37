"""Files that LyCORIS wrote, against the weights of LyCORIS's own forward."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxmix
from jaxmix.families import Normed, Update

from ...goldens.archive import Archive

GOLDEN = Archive("formats/lycoris")
CASES: dict[str, bool] = GOLDEN.json("cases.json")
# LyCORIS computes rotations in float32 and hands them over as such.
TOLERANCE = {False: 1e-12, True: 1e-6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files."""
    return GOLDEN.unpack(tmp_path_factory.mktemp("lycoris"))


def with_float64_eps(update: Update) -> Update:
    """LyCORIS adds float32's smallest step to DoRA's norm, but ran in float64 here."""
    if isinstance(update, Normed):
        return replace(update, eps=float(np.finfo(np.float64).eps))
    return update


def composed(path: Path, base: dict[str, np.ndarray], **options: Any) -> dict[str, np.ndarray]:
    """The base's weights with a file's adapter, in float64."""
    with jax.enable_x64(True):
        adapter = jaxmix.load(path, base=list_of_modules(base), **options)
        updates = {site: with_float64_eps(update) for site, update in adapter.updates.items()}
        out = jaxmix.compose(base, [jaxmix.Adapter(updates)])
        return {name: np.asarray(leaf) for name, leaf in out.items()}


def list_of_modules(base: dict[str, np.ndarray]) -> list[str]:
    """The names of the base's modules."""
    return sorted({name.rpartition(".")[0] for name in base})


@pytest.mark.parametrize("name", CASES)
def test_the_weights_are_those_of_its_own_forward(name: str, folder: Path) -> None:
    """Every leaf of every layer, those that the adapter leaves alone too."""
    base, expected = (GOLDEN.tensors(f"{x}.safetensors") for x in ("base", f"{name}.expected"))
    found = composed(folder / f"{name}.safetensors", base)
    wide = {key: x.astype(np.float64) for key, x in expected.items()}
    errors = {
        key: float(np.abs(found[key] - wide.get(key, base[key])).max() / np.abs(found[key]).max())
        for key in base
    }
    assert {k: e for k, e in errors.items() if not e < TOLERANCE[CASES[name]]} == {}
    moved = [key for key in expected if np.abs(found[key] - base[key]).max() > 1e-3]
    assert len(moved) >= 2
