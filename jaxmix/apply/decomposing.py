"""Computes decompositions of the base's weight on the host of an accelerator.

For one weight (1024, 4096), the TPU's compiler takes minutes for an LU or an SVD; NumPy computes it
in seconds. Inside an outer trace the weight is unknown, so the program computes it.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxmix.families.base import Chain

__all__ = ["decomposed", "is_on_cpu"]


def is_on_cpu(leaf: jax.Array) -> bool:
    """Whether all of a leaf's devices are CPUs."""
    return all(device.platform == "cpu" for device in leaf.devices())


def decomposed(chain: Chain, weight: Any, matrix: Callable[[], jax.Array]) -> Chain:
    """Returns a chain whose updates have what they need of the base's decomposition.

    Args:
        chain: Strengths and updates of one site, in order of application.
        weight: The leaf of the site's weight; None if absent.
        matrix: Returns the base's weight (out, in) in the dtype of the arithmetic.

    Returns:
        The chain itself if nothing decomposes the weight, the weight is traced, on a CPU or partly
        on other hosts, or an update changes what later updates read.
    """
    if weight is None or not any(update.decomposes for _, update in chain):
        return chain
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((weight, chain))):
        return chain
    if is_on_cpu(weight) or not weight.is_fully_addressable:
        return chain
    if any(update.is_base_side for _, update in chain):
        return chain
    found = np.asarray(matrix())
    return tuple((strength, update.decomposed(found)) for strength, update in chain)
