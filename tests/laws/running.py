"""Ways to run a mix, and how to compare what comes out."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxmix import compose

__all__ = ["composed", "eagerly", "error"]


def composed(params: Any, adapters: Any, **how: Any) -> Any:
    """What compose makes of it in float64, uncompiled: words are many and compiling is slow."""
    with jax.enable_x64(True), jax.disable_jit():
        return jax.tree.map(np.asarray, compose(params, adapters, **how))


def eagerly(params: Any, adapters: Any, **how: Any) -> Any:
    """The same by compiled passes."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, compose(params, adapters, **how))


def error(ours: Mapping[str, Any], truth: Mapping[str, Any], only: Iterable[str] = ()) -> float:
    """The largest difference of any leaf, over the largest number in that leaf."""
    names = list(only) or list(truth)
    assert set(names) <= set(ours)
    return max(
        float(np.abs(np.asarray(ours[n], np.float64) - truth[n]).max() / np.abs(truth[n]).max())
        for n in names
    )
