"""Runs tests without compiling anything, for those whose programs would run once.

`jax.disable_jit()` alone still compiles each operation for each shape, up to 1,600 in one test.

Within `uncompiled`, compiled functions get NumPy arrays as they are, without JAX's rounding to
float32. So tests whose arguments are float64 enable x64, and tests of jit do not run uncompiled.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from .by_numpy import OPERATIONS, by_numpy

__all__ = ["uncompiled"]


@contextmanager
def uncompiled(*, apply: bool = True) -> Iterator[None]:
    """Within the context, compiles neither functions nor operations that NumPy has."""
    if not apply:
        yield
        return
    with jax.disable_jit(), by_numpy(OPERATIONS):
        yield
