"""Where one tensor is in a leaf: reading, writing and comparing places."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.errors import LayoutError
from jaxmix.placement.place import Place, are_sizes, atoms, is_scale, spelled

from ..messages import full_text

ROTARY = "d n (h two) -> (n two h) d"


def test_equivalent_patterns_are_one_place() -> None:
    """The letters of a pattern are only names."""
    shape = (6, 4, 2)
    place = Place("w", "d n h -> (n h) d", "0:3")
    assert place.same(Place("w", "a b c -> (b c) a", ":3"), shape)
    assert not place.same(Place("w", "a b c -> (c b) a", ":3"), shape)
    assert not place.same(Place("w", "d n h -> (n h) d"), shape)
    assert not place.same(Place("w", "d n h -> (n h) d", "0:3", scale=2.0), shape)
    assert Place("w", "... i o -> o i ...").same(Place("w", "i o -> o i"), (6, 4))
    assert Place("w").same(Place("w", "a ... -> a ..."), shape)
    assert not Place("w").same(Place("v"), shape)
    halves, thirds = (Place("w", ROTARY, None, (("two", n),)) for n in (2, 3))
    assert not halves.same(thirds, (2, 2, 6)) and halves.same(halves, (2, 2, 6))


PLACES: dict[str, tuple[Place, tuple[int, ...]]] = {
    "the leaf": (Place("w"), (4, 6)),
    "transposed": (Place("w", "i o -> o i"), (4, 6)),
    "a layer": (Place("w", "d n h -> (n h) d", ":, -1"), (5, 3, 2, 4)),
    "a third": (Place("w", index=":, 1/3"), (4, 6)),
    "rotary": (Place("w", ROTARY, None, (("two", 2),), (("h", 1.0),)), (5, 3, 8)),
    "scaled": (Place("w", scale=0.25), (4, 6)),
}


@pytest.mark.parametrize(("place", "shape"), PLACES.values(), ids=PLACES)
def test_what_is_put_is_got(place: Place, shape: tuple[int, ...]) -> None:
    """Putting back what was there changes nothing; a new tensor changes nothing else."""
    leaf = jnp.arange(1.0, 1.0 + float(np.prod(shape))).reshape(shape)
    tensor = place.get(leaf)
    assert tensor.shape == place.shape(shape)
    np.testing.assert_array_equal(place.put(leaf, tensor), leaf)
    new = place.put(leaf, -tensor)
    np.testing.assert_array_equal(place.get(new), -tensor)
    assert int((np.asarray(new) != np.asarray(leaf)).sum()) == tensor.size
    selected = np.prod([len(r) for r in place.ranges(shape)])
    assert selected == tensor.size == np.prod(place.part_shape(shape))


def test_given_numbers_replace_those_of_the_index() -> None:
    """In order, and ranges stay: one program reads every layer."""
    leaf = jnp.arange(24.0).reshape(2, 3, 4)
    place = Place("w", index="0, 1:3, 0")
    np.testing.assert_array_equal(place.get(leaf, (1, 2)), leaf[1, 1:3, 2])
    np.testing.assert_array_equal(place.get(leaf, (1,)), leaf[1, 1:3, 0])
    new = place.put(leaf, jnp.zeros(2), (1, 2))
    np.testing.assert_array_equal(new, leaf.at[1, 1:3, 2].set(0))


def test_put_rounds_to_the_leafs_dtype() -> None:
    leaf = jnp.ones((2, 3), jnp.bfloat16)
    new = Place("w", index="1").put(leaf, jnp.full(3, 1 + 2.0**-9))
    assert new.dtype == jnp.bfloat16 and bool((new == 1).all())


def test_literal_place_has_ranges_for_parts() -> None:
    """The same place for this shape only."""
    place = Place("w", "i o -> o i", ":, 2/3")
    literal = place.literal((4, 6))
    assert literal.index == ":, 4:6" and literal.same(place, (4, 6))
    assert not literal.same(place, (4, 9))
    assert literal.literal((4, 9)) is literal and Place("w").literal((4, 6)) == Place("w")


def test_negative_index_is_a_range_of_one() -> None:
    assert Place("w", index="-1, -2").ranges((3, 4, 2)) == (range(2, 3), range(2, 3), range(2))
    assert Place("w").ranges((3,)) == (range(3),)
    assert Place("w", index="-1").same(Place("w", index="2"), (3, 4))


def test_sides_of_patterns_are_split() -> None:
    """An ellipsis stands for any number of axes, also for none."""
    assert atoms(" (a b) 1 ... c ") == [["a", "b"], [], ["..."], ["c"]]
    assert spelled("... i o", 2) == [["i"], ["o"]]
    assert spelled("a ... (b c)", 4) == [["a"], ["…0"], ["…1"], ["b", "c"]]
    assert Place("w", ROTARY, sizes=(("two", 2),)).axis_sizes((5, 3, 8)) == {
        **{"d": 5, "n": 3},
        **{"h": 4, "two": 2},
    }


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (
            Place("w", index="4"),
            "w[4] of shape (4, 6) does not have the index of the layout's rule (index 4 is out of "
            "bounds for axis 0 with size 4). Fix the rule.",
        ),
        (
            Place("w", "i o -> o i", scale=(("h", 1.0),)),
            "w of shape (4, 6) does not have the axis 'h' of the scale (('h', 1.0),) of the "
            "layout's rule (the pattern does not name it). Fix the rule.",
        ),
    ],
)
def test_place_that_the_leaf_lacks_is_refused(place: Place, text: str) -> None:
    """JAX itself would clamp an index that is out of range."""
    with pytest.raises(LayoutError, match=full_text(text)):
        place.shape((4, 6))


def test_sizes_and_scales_are_told_from_other_values() -> None:
    """Empty ones are valid; a bool is no number."""
    assert are_sizes(()) and are_sizes((("a", 1), ("b", 2)))
    assert is_scale(2) and is_scale(()) and is_scale((("a", -1), ("b", 0.5)))
    for value in (None, "a", ("a", 2), (("a", 0),), (("a",),), (("a", True),), [("a", 2)]):
        assert not are_sizes(value), value
    for value in (None, True, -1, float("inf"), float("nan"), (("a", "b"),), ((1, 2),)):
        assert not is_scale(value), value
