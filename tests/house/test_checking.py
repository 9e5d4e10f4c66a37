"""The tests' type checker is on, and leaves pytrees unchecked."""

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from jaxmix.affine import identity
from jaxmix.operators import LowRank

from ..messages import full_text


def test_shapes_are_checked() -> None:
    """The type checker reports a wrong number of axes in the packages that compute."""
    same = identity((4, 5))
    assert same(jnp.ones((4, 5))).shape == (4, 5)
    with pytest.raises(
        TypeCheckError,
        match=full_text(
            "Type-check error whilst checking the parameters of "
            "jaxmix.affine.AffineMap.__call__.\n"
            "The problem arose whilst typechecking parameter 'w'.\n"
            "Actual value: f32[4]\n"
            "Expected type: <class 'Float[jaxlib._jax.Array, 'out "
            "in']'>.\n"
            "----------------------\n"
            "Called with parameters: {'self': AffineMap(...), 'w': "
            "f32[4]}\n"
            "Parameter annotations: (self, w: Float[jaxlib._jax.Array, "
            "'out in']) -> Any.\n"
        ),
    ):
        same(jnp.ones(4))


def test_pytree_fields_are_unchecked() -> None:
    """JAX may rebuild operators with objects that are not arrays."""
    low_rank = LowRank(jnp.ones((3, 2)), jnp.ones((2, 4)))
    assert jax.tree.map(lambda x: x.shape, low_rank).a == (2, 4)
    assert jax.eval_shape(lambda x: x, low_rank).a.shape == (2, 4)
