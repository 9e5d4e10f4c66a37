"""Compares adapters and mixes bit for bit."""

from typing import Any

import jax
import numpy as np

from jaxmix import Adapter, Mix

__all__ = ["assert_same", "bits"]


def bits(leaf: Any) -> tuple[Any, ...]:
    """Returns a value by which `==` compares leaves bit for bit."""
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        array = np.asarray(leaf)
        return array.dtype.name, array.shape, np.ascontiguousarray(array).tobytes()
    return type(leaf).__name__, repr(leaf)


def assert_same(loaded: Adapter | Mix, expected: Adapter | Mix) -> None:
    """Asserts equal names, sources, order, structures, dtypes and bits."""
    assert type(loaded) is type(expected)
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    assert list(map(bits, jax.tree.leaves(loaded))) == list(map(bits, jax.tree.leaves(expected)))
    for part, expected_part in zip(loaded.parts, expected.parts, strict=True):
        assert (part.name, part.source) == (expected_part.name, expected_part.source)
        assert list(part.updates) == list(expected_part.updates)
        assert type(part.strength) is type(expected_part.strength)
