"""Updates of every family, each at a separate site, so one program runs all of them."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxmix import Adapter
from jaxmix.families import Update

from .chains import ALL, STACKED
from .draws import Module, tree
from .truth import fold_tree

__all__ = [
    "LINEAR",
    "MODULES",
    "UPDATES",
    "base",
    "floats",
    "folds",
    "is_float",
    "leaves_off",
    "merged",
]

# Sizes divisible by eight devices.
_FLAT, _STACK = Module("linear", (8, 16), True), Module("conv", (8, 4, 6), True)

MODULES: dict[str, Module] = {}
UPDATES: dict[str, Update] = {}
for _kind, _make in ALL.items():
    for _seed in range(3):
        _site = f"{_kind}{_seed}"
        MODULES[_site] = _STACK if _kind in STACKED else _FLAT
        UPDATES[_site] = _make(np.random.default_rng([_seed, 7]), MODULES[_site])

# The updates at linear layers.
LINEAR = {site: update for site, update in UPDATES.items() if MODULES[site] is _FLAT}


def base(sites: Mapping[str, Any], dtype: Any = np.float64) -> dict[str, np.ndarray]:
    """The params of the modules at these sites."""
    return tree({site: MODULES[site] for site in sites}, 0, dtype)


def folds(params: Mapping[str, Any], updates: Mapping[str, Update], s: float) -> dict[str, Any]:
    """The naive fold's result at each site, computed from the given leaves."""
    names = {f"{site}.{part}" for site in updates for part in ("weight", "bias")}
    return fold_tree({n: params[n] for n in sorted(names)}, [Adapter(dict(updates), s)])


def leaves_off(
    leaves: Mapping[str, Any], truth: Mapping[str, Any], bound: float
) -> dict[str, float]:
    """The leaves whose error, relative to their largest number, exceeds a bound."""
    errors = {
        name: float(np.abs(np.asarray(leaves[name], np.float64) - leaf).max() / np.abs(leaf).max())
        for name, leaf in truth.items()
    }
    return {name: error for name, error in errors.items() if not error < bound}


def is_float(leaf: Any) -> bool:
    """Whether a leaf can be trained."""
    return np.asarray(leaf).dtype.kind == "f"


def floats(tree: Any) -> list[Any]:
    """A tree's leaves in float64, with None for leaves that are not floating-point."""
    return [np.asarray(x, float) if is_float(x) else None for x in jax.tree.leaves(tree)]


def merged(tree: Any, floats: list[Any]) -> Any:
    """The tree with its floating-point leaves replaced by those in a list made by `floats`."""
    leaves, treedef = jax.tree.flatten(tree)
    pairs = zip(leaves, floats, strict=True)
    return jax.tree.unflatten(treedef, [leaf if value is None else value for leaf, value in pairs])
