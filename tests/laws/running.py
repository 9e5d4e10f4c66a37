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
    """The result of compose in float64, by compiled passes."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, compose(params, adapters, **how))


def error(
    actual: Mapping[str, Any], expected: Mapping[str, Any], only: Iterable[str] = ()
) -> float:
    """The largest error of any leaf, relative to the largest number in that leaf."""
    names = list(only) or list(expected)
    assert set(names) <= set(actual)
    return max(
        float(
            np.abs(np.asarray(actual[n], np.float64) - expected[n]).max()
            / np.abs(expected[n]).max()
        )
        for n in names
    )
