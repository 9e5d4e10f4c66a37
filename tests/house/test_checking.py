"""The tests' type checker is on, and leaves pytrees unchecked."""

import re

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from jaxmix.affine import identity
from jaxmix.operators import LowRank


def test_shapes_are_checked() -> None:
    """The type checker reports a wrong number of axes in the packages that compute."""
    same = identity((4, 5))
    assert same(jnp.ones((4, 5))).shape == (4, 5)
    message = re.escape(
        "Type-check error whilst checking the parameters of jaxmix.affine.AffineMap.__call__.\n"
        "The problem arose whilst typechecking parameter 'w'.\nActual value: f32[4]\n"
    )
    with pytest.raises(TypeCheckError, match=rf"\A{message}Expected type: .*Array, 'out in'"):
        same(jnp.ones(4))


def test_pytree_fields_are_unchecked() -> None:
    """JAX may rebuild operators with objects that are not arrays."""
    low_rank = LowRank(jnp.ones((3, 2)), jnp.ones((2, 4)))
    assert jax.tree.map(lambda x: x.shape, low_rank).a == (2, 4)
    assert jax.eval_shape(lambda x: x, low_rank).a.shape == (2, 4)
