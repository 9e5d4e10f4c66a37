"""Terms added slab by slab: the numbers, the derivatives and the compiled programs."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.affine import AffineMap
from jaxmix.apply import passes, slabs
from jaxmix.operators import (
    Dense,
    Diagonal,
    Hadamard,
    Identity,
    Kronecker,
    LowRank,
    Operator,
    Sum,
    Zero,
)
from jaxmix.placement.form import Form

# One slab, several, several and a rest; a wide matrix with the fewest rows in a slab.
SHAPES = [(6, 8), (1024, 512), (997, 600), (40, 20_000)]


def _terms(rows: int, cols: int) -> tuple[Operator, ...]:
    """One term of each structure, and two Kronecker products of different sizes."""
    rng = np.random.default_rng(rows)

    def draw(*shape: int) -> Any:
        return jnp.asarray(rng.standard_normal(shape), np.float32)

    left, right = (LowRank(draw(rows, r), draw(r, cols)) for r in (3, 2))
    return (
        left,
        Hadamard(right, left),
        Kronecker(draw(1, 4), draw(rows, cols // 4)),
        Kronecker(draw(rows, cols // 2), draw(1, 2)),
        Dense(draw(rows, cols)),
    )


def _weight(rows: int, cols: int, dtype: Any) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (rows, cols)).astype(dtype)


@pytest.mark.one_of(2)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [*SHAPES, (0, 8), (6, 0)])
def test_sum_of_all_terms(shape: tuple[int, int], dtype: Any) -> None:
    """Every structure, against NumPy in float64."""
    with jax.enable_x64(True):
        terms = jax.tree.map(lambda x: jnp.asarray(x, dtype), _terms(*shape))
        weight = _weight(*shape, dtype)
        expected = np.asarray(weight, np.float64)
        for term in terms:
            expected = expected + np.asarray(term.dense(), np.float64)
        total = jax.jit(slabs.added)(weight, terms)
    assert total.dtype == dtype
    tolerance = 30 * np.finfo(dtype).eps
    np.testing.assert_allclose(np.asarray(total), expected, rtol=tolerance, atol=tolerance)


def test_derivatives_are_those_of_the_sum() -> None:
    """By the matrix and by all factors."""
    weight, terms = _weight(997, 600, np.float32), _terms(997, 600)
    cotangent = weight.T.reshape(997, 600)

    def by_slabs(weight: Any, terms: Any) -> Any:
        return (cotangent * slabs.added(weight, terms)).sum()

    def in_one_expression(weight: Any, terms: Any) -> Any:
        return (cotangent * Sum(terms).added_to(weight)).sum()

    slopes, expected = (
        jax.jit(jax.grad(f, (0, 1)))(weight, terms) for f in (by_slabs, in_one_expression)
    )
    for a, b in zip(jax.tree.leaves(slopes), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_gradient_has_no_loop() -> None:
    """A loop's own derivative copies the matrix for each slab."""
    weight, terms = _weight(1024, 512, np.float32), _terms(1024, 512)
    gradient = jax.grad(lambda t: slabs.added(weight, t).sum())
    assert "while" not in str(jax.jit(gradient).lower(terms).compile().as_text())


@pytest.mark.one_of(2)
@pytest.mark.parametrize("which", [(0,), (1,), (0, 1), (0, 1, 2), (0, 1, 2, 4)])
@pytest.mark.parametrize("donate", [True, False])
def test_loop_changes_the_leaf_in_place(which: tuple[int, ...], donate: bool) -> None:
    """The compiled program copies the leaf only if it is kept, and has no temporary of its size."""
    terms = tuple(_terms(4096, 512)[i] for i in which)
    run = jax.jit(slabs.added, donate_argnums=(0,) if donate else ())
    program = run.lower(_weight(4096, 512, np.float32), terms).compile()
    lines = str(program.as_text()).splitlines()
    assert any(" while(" in line for line in lines)
    copies = [line for line in lines if re.search(r"= f32\[4096,\S* copy\(", line)]
    # A leaf that is kept is copied once, into the result.
    assert len(copies) == (0 if donate else 1)
    memory = program.memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < 4096 * 512 * 4 / 2


def test_structures_with_slabs() -> None:
    """Structures of which a run of rows costs its share of the whole."""
    assert all(map(slabs.has_slabs, _terms(6, 8)))
    assert not any(map(slabs.has_slabs, (Identity(2), Zero(2, 2), Diagonal(jnp.ones(2)))))


@pytest.mark.parametrize(
    ("dtype", "count", "has_loop"),
    [("float32", 3, True), ("float32", 1, False), ("bfloat16", 3, False)],
)
def test_slabs_are_for_several_terms_of_wide_leaves(dtype: str, count: int, has_loop: bool) -> None:
    """One term, and narrow leaves, are faster without slabs."""
    weight, terms = _weight(1024, 512, dtype), _terms(1024, 512)[:count]
    step = AffineMap(Identity(1024), Identity(512), Sum(terms))
    jaxpr = jax.make_jaxpr(lambda w: passes.run(w, [step], Form(), w.dtype))(weight)
    assert (" scan[" in str(jaxpr) or " while[" in str(jaxpr)) is has_loop
