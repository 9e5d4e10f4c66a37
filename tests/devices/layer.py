"""A layer on eight devices, updates of every family for it, and the result of one device."""

from functools import cache
from typing import Any

import jax
import numpy as np

import jaxmix
from jaxmix import Adapter
from jaxmix.families import BOFT, OFT, RoAd
from jaxmix.families.boft import butterfly

from ..laws.chains import ALL, STACKED
from ..laws.draws import Module, normal, tree
from .spying import flat, grid, placed

__all__ = [
    "EXACT",
    "MODULE",
    "PART",
    "RNG",
    "SIZE",
    "SPECS",
    "TURNS",
    "UPDATES",
    "alone",
    "params",
    "small",
]

MODULE = Module("linear", (64, 96), True)
SIZE = 64 * 96
PART = SIZE // 8
RNG = np.random.default_rng(3)


def small(update: Any) -> Any:
    """Casts floats to float32, as files store them."""
    return jax.tree.map(lambda x: np.asarray(x, np.float32) if _is_float(x) else x, update)


def _is_float(x: Any) -> bool:
    return np.asarray(x).dtype.kind == "f"


EXACT = {
    kind: make(np.random.default_rng(1), MODULE)
    for kind, make in ALL.items()
    if kind not in STACKED
}
UPDATES = {kind: small(update) for kind, update in EXACT.items()}
# Rotations whose blocks end at the parts' borders, and others.
TURNS: dict[str, Any] = {
    "OFT, blocks of 12": OFT(normal(RNG, 8, 66, std=0.1)),
    "OFT, blocks of 48": OFT(normal(RNG, 2, 48 * 47 // 2, std=0.1)),
    "OFT, one block for all": OFT(normal(RNG, 1, 28, std=0.1)),
    "BOFT of inputs": BOFT(normal(RNG, 2, 12, 8, 8, std=0.1), normal(RNG, 64), butterfly(2, 12, 8)),
    "BOFT of outputs": BOFT(
        normal(RNG, 2, 8, 8, 8, std=0.1), None, butterfly(2, 8, 8), on_output=True
    ),
    "RoAd, pairs apart": RoAd(normal(RNG, 32), normal(RNG, 32), 1, 64),
}

SPECS = {
    "rows": (flat, ("x", None)),
    "columns": (flat, (None, "x")),
    "both": (grid, ("x", "y")),
    "both on one": (grid, (None, ("y", "x"))),
}


def params(mesh: jax.sharding.Mesh, spec: Any, dtype: Any = np.float32) -> dict[str, jax.Array]:
    """Returns a layer on the mesh."""
    base = tree({"a": MODULE}, 0, dtype)
    return {
        "a.weight": placed(base["a.weight"], mesh, *spec),
        "a.bias": placed(base["a.bias"], mesh, spec[0]),
    }


@cache
def alone(kinds: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Returns the layer that one device computes in float64, for each kind alone."""
    updates = {**EXACT, **TURNS}
    layer = tree({"a": MODULE}, 0)
    base = {f"{kind}{name[1:]}": leaf for kind in kinds for name, leaf in layer.items()}
    adapter = Adapter({kind: updates[kind] for kind in kinds}, 0.7)
    return jax.tree.map(np.asarray, jax.jit(jaxmix.compose)(base, adapter))
