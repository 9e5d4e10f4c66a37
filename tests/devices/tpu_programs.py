"""Compiles programs with the TPU's own compiler, on a host that has none."""

import os
import re
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

__all__ = ["TOPOLOGIES", "compiled", "cycles", "needs_compiler", "shapes"]

TOPOLOGIES = ("v5e:2x2", "v6e:2x2")

needs_compiler = pytest.mark.skipif(
    find_spec("libtpu") is None,
    reason="the TPU's compiler is missing: pip install 'jax[tpu]' (the extra tpu-compiler)",
)


@cache
def _device(topology: str) -> Any:
    """One device of a topology; no chip is looked for."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_LOG_DIR", "disabled")
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]


def shapes(tree: Any, topology: str) -> Any:
    """The shapes of a tree's arrays, on one device of a topology."""
    place = SingleDeviceSharding(_device(topology))

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        dtype = x.dtype if hasattr(x, "dtype") else np.dtype(np.float32)
        return jax.ShapeDtypeStruct(np.shape(x), dtype, sharding=place)

    return jax.tree.map(shape, tree)


def compiled(run: Callable[..., Any], *args: Any, topology: str) -> str:
    """The compiled program of a function, as text.

    Args:
        run: The function.
        *args: Its arguments, arrays or their shapes.
        topology: The devices to compile it for.
    """
    lowered = jax.jit(run).lower(*(shapes(arg, topology) for arg in args))
    return lowered.compile().as_text() or ""


def cycles(text: str) -> int:
    """The cycles that the compiler estimates, without those of branches and loops."""
    entry = text[text.index("\nENTRY ") :]
    return sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', entry)))
