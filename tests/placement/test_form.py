"""How leaves hold tensors: the matrix of each form, and the maps of what the leaf holds."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.affine import AffineMap
from jaxmix.operators import Dense, Identity
from jaxmix.placement.form import Form, arithmetic, as_matrix
from jaxmix.placement.place import Place

RNG = np.random.default_rng(0)
HEADS = Place("", "d n h -> (n h) d", "1, :, :2")


def normal(*shape: int) -> Any:
    return jnp.asarray(RNG.normal(size=shape), np.float32)


# A leaf's shape, its form, and NumPy's way from the leaf to the matrix (out, in).
FORMS: dict[str, tuple[tuple[int, ...], Form, Any]] = {
    "plain": ((3, 4), Form(), lambda x: x),
    "transposed": ((4, 3), Form(transposed=True), lambda x: x.T),
    "convolution": ((3, 4, 2), Form(), lambda x: x.reshape(3, 8)),
    "bias": ((3,), Form("bias"), lambda x: x[:, None]),
    "bias in heads": ((3, 2), Form("bias"), lambda x: x.reshape(6, 1)),
    "heads": ((2, 5, 3, 2), Form(place=HEADS), lambda x: x[1, :, :2].reshape(5, 4).T),
    "heads, transposed": (
        *((2, 5, 3, 2), Form(place=HEADS, transposed=True)),
        lambda x: x[1, :, :2].reshape(5, 4),
    ),
    "scaled": ((3, 4), Form(scale=4.0), lambda x: x / 4),
    "scaled and transposed": ((4, 3), Form(transposed=True, scale=0.5), lambda x: x.T * 2),
}


@pytest.mark.parametrize(("shape", "form", "expected"), FORMS.values(), ids=FORMS)
def test_matrix_is_that_of_pytorch(shape: tuple[int, ...], form: Form, expected: Any) -> None:
    """Its shape follows from the leaf's shape alone."""
    leaf = normal(*shape)
    matrix = form.matrix(leaf)
    np.testing.assert_array_equal(matrix, expected(np.asarray(leaf)))
    assert form.shape(shape) == matrix.shape


@pytest.mark.parametrize(("shape", "form", "expected"), FORMS.values(), ids=FORMS)
def test_map_of_the_tensor_is_the_map_of_the_matrix(
    shape: tuple[int, ...], form: Form, expected: Any
) -> None:
    """What the leaf holds may be scaled and transposed, so its map differs."""
    leaf = normal(*shape)
    rows, cols = form.shape(shape)
    own = AffineMap(Dense(normal(rows, rows)), Identity(cols), Dense(normal(rows, cols)))
    tensor = form.tensor(leaf)
    mapped = form.tensor_map(own)(as_matrix(tensor, form.part)).reshape(tensor.shape)
    new = form.updated_leaf(leaf, mapped)
    assert new.shape == leaf.shape
    np.testing.assert_allclose(form.matrix(new), own(form.matrix(leaf)), rtol=1e-4, atol=1e-5)
    if form.index:  # everything else in the leaf is unchanged
        assert (np.asarray(new)[0] == np.asarray(leaf)[0]).all()


def test_numbers_of_an_index_are_split_off() -> None:
    """So the layers of a stack share a form; ranges stay in it."""
    forms = [Form(place=Place("", index=f"{i}, 2:4, -1")) for i in (1, 3)]
    (first, at), (second, other) = (form.split_index() for form in forms)
    assert first == second and first.index == "0, 2:4,0"
    assert [int(i) for i in (*at, *other)] == [1, -1, 3, -1]
    leaf = normal(4, 5, 2)
    for form, numbers in zip(forms, (at, other), strict=True):
        np.testing.assert_array_equal(first.tensor(leaf, numbers), form.tensor(leaf))
    assert Form().split_index() == (Form(), ())


def test_bare_form_is_that_of_all_layers() -> None:
    """A plain form keeps its sharding; the others forget which part of a leaf they are."""
    mesh = jax.make_mesh((1,), ("x",), devices=jax.devices()[:1])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    plain = Form(transposed=True, sharding=sharding, scale=2.0)
    assert plain.bare == plain and plain.is_plain
    layers = [Form("bias", Place("", None, index), sharding=sharding) for index in "12"]
    assert layers[0].bare == layers[1].bare != plain.bare
    assert layers[0].bare.sharding is None and not layers[0].bare.is_plain
    assert replace(plain, scale=1.0).bare != plain.bare


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        ("bfloat16", "float32"),
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
    ],
)
def test_arithmetic_is_in_float32_or_wider(dtype: str, wide: str) -> None:
    assert arithmetic(jnp.dtype(dtype)) == np.dtype(wide)


def test_scaled_leaf_of_16_bits_is_divided_in_float32() -> None:
    """The quotient is not rounded to the leaf's 8 bits."""
    leaf = jnp.asarray([[1.0, 3.0]], jnp.bfloat16)
    matrix = Form(scale=3.0).matrix(leaf)
    assert matrix.dtype == jnp.float32
    np.testing.assert_allclose(matrix, [[1 / 3, 1]], rtol=1e-6)
    assert Form().matrix(leaf).dtype == jnp.bfloat16
