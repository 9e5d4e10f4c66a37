"""Files that other libraries wrote match the weights of these libraries' forward passes."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxmix
from jaxmix.families import Normed, Update

from ....goldens.archive import Archive

WRITERS = ("lycoris", "kohya", "diffusers", "mlx")
# The recorded truth is float32 for mlx, and for rotations by LyCORIS and sd-scripts.
TOLERANCE = {False: 1e-12, True: 1e-6}


@cache
def golden(writer: str) -> Archive:
    """Returns the files and outputs of a library."""
    return Archive(f"formats/{writer}")


CASES = [
    pytest.param(writer, name, is_float32, id=f"{writer}-{name}")
    for writer in WRITERS
    for name, is_float32 in golden(writer).json("cases.json").items()
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacks the files into one folder per library."""
    root = tmp_path_factory.mktemp("goldens")
    for writer in WRITERS:
        golden(writer).unpack(root / writer)
    return root


def with_float64_eps(update: Update) -> Update:
    """Replaces the float32 epsilon of LyCORIS's norm; the recorded run was in float64."""
    if isinstance(update, Normed):
        return replace(update, eps=float(np.finfo(np.float64).eps))
    return update


def composed(path: Path, base: dict[str, np.ndarray], **options: Any) -> dict[str, np.ndarray]:
    """Returns the base's weights with a file's adapter, in float64."""
    with jax.enable_x64(True):
        adapter = jaxmix.load(path, base=base, **options)
        updates = {site: with_float64_eps(update) for site, update in adapter.updates.items()}
        out = jaxmix.compose(base, [jaxmix.Adapter(updates)])
        return {name: np.asarray(leaf) for name, leaf in out.items()}


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.parametrize(("writer", "name", "is_float32"), CASES)
def test_weights_match_the_original_forward(
    writer: str, name: str, is_float32: bool, folder: Path
) -> None:
    """Every leaf matches the library's own, also those that the adapter leaves unchanged."""
    archive = golden(writer)
    base, expected = (archive.tensors(f"{x}.safetensors") for x in ("base", f"{name}.expected"))
    path = folder / writer / "adapters" / name
    output = composed(path if path.is_dir() else path.with_suffix(".safetensors"), base)
    wide = {key: x.astype(np.float64) for key, x in expected.items()}
    errors = {
        key: float(np.abs(output[key] - wide.get(key, base[key])).max() / np.abs(output[key]).max())
        for key in base
    }
    assert {k: e for k, e in errors.items() if not e < TOLERANCE[is_float32]} == {}
    assert sum(np.abs(output[key] - base[key]).max() > 1e-3 for key in expected) >= 2
