"""Whether two adapters or mixes are the same to the last bit."""

from typing import Any

import jax
import numpy as np

from jaxmix import Adapter, Mix

__all__ = ["assert_same", "bits"]


def bits(leaf: Any) -> tuple[Any, ...]:
    """A leaf as something that `==` compares to the last bit."""
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        array = np.asarray(leaf)
        return array.dtype.name, array.shape, np.ascontiguousarray(array).tobytes()
    return type(leaf).__name__, repr(leaf)


def assert_same(found: Adapter | Mix, expected: Adapter | Mix) -> None:
    """Names, sources, order, structures, dtypes and bits."""
    assert type(found) is type(expected)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert list(map(bits, jax.tree.leaves(found))) == list(map(bits, jax.tree.leaves(expected)))
    for one, other in zip(found.parts, expected.parts, strict=True):
        assert (one.name, one.source) == (other.name, other.source)
        assert list(one.updates) == list(other.updates)
        assert type(one.strength) is type(other.strength)
