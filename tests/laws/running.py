"""Functions that run a mix and compare results."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxmix import compose

from ..uncompiled import uncompiled

__all__ = ["composed", "eagerly", "error"]


def composed(params: Any, adapters: Any, **how: Any) -> Any:
    """The result of compose in float64, uncompiled, because compiling many chains is slow."""
    with jax.enable_x64(True), uncompiled():
        return jax.tree.map(np.asarray, compose(params, adapters, **how))


def eagerly(params: Any, adapters: Any, **how: Any) -> Any:
    """The same by compiled passes."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, compose(params, adapters, **how))


def error(ours: Mapping[str, Any], truth: Mapping[str, Any], only: Iterable[str] = ()) -> float:
    """The largest error of any leaf, relative to the largest number in that leaf."""
    names = list(only) or list(truth)
    assert set(names) <= set(ours)
    return max(
        float(np.abs(np.asarray(ours[n], np.float64) - truth[n]).max() / np.abs(truth[n]).max())
        for n in names
    )
