"""Maps of adjacent ranges of rows, joined into one."""

import jax.numpy as jnp
import numpy as np

from jaxmix.affine import AffineMap, shift
from jaxmix.operators import Dense, Diagonal, Identity, LowRank, Zero
from jaxmix.unmerged.parts import joined

from ..uncompiled import uncompiled


def normal(*shape: int) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


SCALED = AffineMap(Diagonal(normal(2)), Identity(5), Dense(normal(2, 5)))
ADDED = shift(LowRank(normal(3, 2), normal(2, 5)))


def test_each_part_has_its_own_map_and_other_rows_none() -> None:
    """In any order of the parts, with rows between and after them."""
    with uncompiled():
        w = normal(9, 5)
        both = joined([SCALED, ADDED], [range(5, 7), range(1, 4)], (9, 5))
        assert both is not None
        expected = jnp.concatenate([w[:1], ADDED(w[1:4]), w[4:5], SCALED(w[5:7]), w[7:]])
        np.testing.assert_allclose(both(w), expected, rtol=1e-5)


def test_low_ranks_stay_one_without_scales() -> None:
    """No diagonal of ones is multiplied where no part has a scale."""
    with uncompiled():
        one = joined([ADDED], [range(0, 3)], (9, 5))
    assert one is not None and one.is_shift and isinstance(one.shift, LowRank)


def test_maps_that_mix_shared_axes_are_not_joined() -> None:
    """All parts share the inputs, and the rows of a part may only be scaled."""
    of_inputs = AffineMap(Identity(2), Diagonal(normal(5)), Zero(2, 5))
    of_rows = AffineMap(Dense(normal(2, 2)), Identity(5), Zero(2, 5))
    for step in (of_inputs, of_rows):
        assert joined([ADDED, step], [range(0, 3), range(3, 5)], (9, 5)) is None
