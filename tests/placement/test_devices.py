"""The sharding that a computation has to keep: none for most leaves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmix.placement.devices import is_explicit, sharding_of


def placed(kind: Any, count: int = 2) -> jax.Array:
    """An array over a mesh with axes of a kind."""
    mesh = jax.make_mesh((count,), ("x",), axis_types=(kind,), devices=jax.devices()[:count])
    return jax.device_put(np.ones((4, 2), np.float32), NamedSharding(mesh, P("x")))


def test_sharding_over_automatic_axes_is_kept() -> None:
    leaf = placed(AxisType.Auto)
    assert sharding_of(leaf) == leaf.sharding and not is_explicit(leaf)


def test_explicit_axes_are_in_the_type() -> None:
    """So they are kept without being stated."""
    leaf = placed(AxisType.Explicit)
    assert is_explicit(leaf) and sharding_of(leaf) is None


def test_other_leaves_have_no_sharding_to_keep() -> None:
    """NumPy's arrays, arrays on one device with or without a mesh, and strings."""
    for leaf in (np.ones(2), jnp.ones(2), placed(AxisType.Auto, 1), "text", None):
        assert sharding_of(leaf) is None
    assert not is_explicit(jnp.ones(2))


def test_traced_leaf_has_no_sharding_to_keep() -> None:
    """The caller's jit chooses it."""

    def check(leaf: jax.Array) -> jax.Array:
        assert sharding_of(leaf) is None and not is_explicit(leaf)
        return leaf

    jax.eval_shape(check, placed(AxisType.Auto))
