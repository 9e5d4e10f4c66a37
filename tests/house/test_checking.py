"""The type checker of the test run is on, and lets a pytree be a pytree."""

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from jaxmix.affine import identity
from jaxmix.operators import LowRank


def test_shapes_are_checked() -> None:
    """The type checker is on in the rooms that compute: a wrong number of axes is seen."""
    same = identity((4, 5))
    assert same(jnp.ones((4, 5))).shape == (4, 5)
    with pytest.raises(TypeCheckError, match="parameter 'w'"):
        same(jnp.ones(4))


def test_a_pytree_holds_anything() -> None:
    """JAX rebuilds operators with what is no array; that is not checked."""
    low_rank = LowRank(jnp.ones((3, 2)), jnp.ones((2, 4)))
    assert jax.tree.map(lambda x: x.shape, low_rank).a == (2, 4)
    assert jax.eval_shape(lambda x: x, low_rank).a.shape == (2, 4)
