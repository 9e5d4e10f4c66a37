"""The folders that jaxmix writes for each row of the families' contract, and their bases."""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

import jaxmix
from jaxmix import Adapter
from jaxmix.errors import UnsupportedError

from ....families.table import ROWS
from .folders import SITE

__all__ = ["base_of", "folders"]


@cache
def folders() -> dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """The tensors and the config of each row for which PEFT has a type."""
    paths = {}
    for name, row in ROWS.items():
        with tempfile.TemporaryDirectory() as root:
            update = jax.tree.map(
                lambda x: np.asarray(x, np.float32) if np.asarray(x).dtype.kind == "f" else x,
                row.update(row.factors(0)),
            )
            try:
                folder = jaxmix.export_peft(Adapter({SITE: update}), Path(root, "out"))
            except UnsupportedError:
                continue
            tensors = load_file(folder / "adapter_model.safetensors")
            paths[name] = (tensors, json.loads((folder / "adapter_config.json").read_text()))
    return paths


def base_of(name: str) -> dict[str, np.ndarray]:
    """A weight and a bias for a row."""
    row = ROWS[name]
    leaves = row.leaves(0)
    params = {f"{SITE}.weight": leaves.weight, f"{SITE}.bias": leaves.bias}
    return {name: leaf.astype(np.float32) for name, leaf in params.items()}
