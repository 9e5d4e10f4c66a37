"""The axes of a leaf that are rows, columns and layers, and maps in terms of them."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.affine import AffineMap
from jaxmix.operators import Dense, Diagonal
from jaxmix.placement.form import Form
from jaxmix.placement.place import Place
from jaxmix.unmerged.axes import Sides, axes_of, in_leaf, layer_of

from ..uncompiled import uncompiled


def form(axes: str | None = None, index: str | None = None, transposed: bool = False) -> Form:
    return Form("weight", Place("", axes, index), transposed)


@pytest.mark.parametrize(
    ("held", "n", "sides"),
    [
        (form(), 2, ((-2,), (-1,), None)),
        (form(), 4, ((-4,), (-3, -2, -1), None)),
        (form(transposed=True), 2, ((-1,), (-2,), None)),
        (form("h w i o -> o i h w"), 4, ((-1,), (-2, -4, -3), None)),
        (form("d n h -> (n h) d"), 3, ((-2, -1), (-3,), None)),
        (form("i o -> o i", "3"), 3, ((-1,), (-2,), -3)),
        (form("i o -> o i", ":, -1"), 3, ((-1,), (-3,), -2)),
        (form(None, "2:4"), 2, ((-2,), (-1,), None)),
    ],
)
def test_axes_count_from_the_end(held: Form, n: int, sides: Sides) -> None:
    """So they stay valid when a scan takes the first axis."""
    assert axes_of(held, n) == sides


@pytest.mark.parametrize(
    ("held", "n"), [(form("(o i) k -> o (i k)"), 2), (form(None, "1, 2"), 4)], ids=["split", "two"]
)
def test_leaves_without_such_axes_have_none(held: Form, n: int) -> None:
    assert axes_of(held, n) is None


@pytest.mark.parametrize("is_diagonal", [False, True])
@pytest.mark.parametrize(
    ("axes", "leaf_shape"),
    [
        ("d n (h two) -> (n two h) d", (3, 2, 6)),
        ("d (n two) -> (two n) d", (3, 8)),
        ("(d two) n -> n (two d)", (6, 8)),
        ("o i -> o i", (8, 3)),
    ],
)
def test_the_leafs_map_gives_the_leaf_of_the_mapped_matrix(
    axes: str, leaf_shape: tuple[int, ...], is_diagonal: bool
) -> None:
    """Rows and columns of the leaf may be in another order than PyTorch's, and scaled."""
    sizes = (("two", 2),) if "two" in axes else ()
    held = Form("weight", Place("", axes, None, sizes), False, None, 0.5)
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jnp.ndarray:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    with uncompiled():
        leaf = normal(*leaf_shape)
        rows, cols = held.shape(leaf_shape)
        left, right = normal(rows, rows), normal(cols, cols)
        sides = (
            (Diagonal(left[0]), Diagonal(right[0])) if is_diagonal else (Dense(left), Dense(right))
        )
        matrix_map = AffineMap(*sides, Dense(normal(rows, cols)))
        own = in_leaf(matrix_map, held, leaf_shape)
        assert isinstance(own.left, Diagonal) or not is_diagonal
        row_axes, col_axes, _ = axes_of(held, leaf.ndim) or ((), (), None)
        order = [k + leaf.ndim for k in (*row_axes, *col_axes)]
        moved = leaf.transpose(order)
        mapped = own(moved.reshape(rows, cols)).reshape(moved.shape)
        expected = held.place.put(leaf, 0.5 * matrix_map(held.matrix(leaf)))
    np.testing.assert_allclose(mapped.transpose(np.argsort(order)), expected, rtol=1e-4, atol=1e-5)


def test_a_layer_counts_from_the_start() -> None:
    assert layer_of(form(None, ":, -1"), -2, (5, 4, 6)) == 3
    assert layer_of(form(None, "1"), -3, (5, 4, 6)) == 1
