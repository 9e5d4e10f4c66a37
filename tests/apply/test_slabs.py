"""Terms added slab by slab: the numbers, the derivatives and the compiled programs."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.apply import slabs
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


@pytest.mark.parametrize(
    ("dtype", "result"), [("float32", "bfloat16"), ("bfloat16", "bfloat16"), ("float16", "float32")]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_sum_is_rounded_once(shape: tuple[int, int], dtype: str, result: str) -> None:
    terms, weight = _terms(*shape), _weight(*shape, dtype)
    expected = np.asarray(weight, np.float64)
    for term in terms:
        expected = expected + np.asarray(term.dense(), np.float64)
    found = jax.jit(slabs.added, static_argnums=2)(weight, terms, np.dtype(result))
    assert found.dtype == result
    error = np.abs(np.asarray(found, np.float64) - expected)
    tolerance = float(jnp.finfo(result).eps) / 2 * np.abs(expected)
    assert (error <= tolerance + 1e-5).all()


def test_float64_is_kept() -> None:
    with jax.enable_x64(True):
        terms = jax.tree.map(lambda x: jnp.asarray(x, np.float64), _terms(997, 600))
        weight = _weight(997, 600, np.float64)
        expected = np.asarray(weight) + sum(np.asarray(term.dense()) for term in terms)
        found = slabs.added(weight, terms, np.dtype(np.float64))
        np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_derivatives_are_those_of_the_sum(dtype: str) -> None:
    weight, terms = _weight(997, 600, dtype), _terms(997, 600)
    at = weight.T.reshape(997, 600)

    def by_slabs(weight: Any, terms: Any) -> Any:
        return (at * slabs.added(weight, terms, weight.dtype)).astype(np.float32).sum()

    def whole(weight: Any, terms: Any) -> Any:
        total = Sum(terms).added_to(weight.astype(np.float32)).astype(weight.dtype)
        return (at * total).astype(np.float32).sum()

    found, expected = (jax.jit(jax.grad(f, (0, 1)))(weight, terms) for f in (by_slabs, whole))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradient_has_no_loop(dtype: str) -> None:
    weight, terms = _weight(1024, 512, dtype), _terms(1024, 512)
    gradient = jax.grad(lambda t: slabs.added(weight, t, weight.dtype).astype(np.float32).sum())
    assert "while" not in str(jax.jit(gradient).lower(terms).compile().as_text())


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1), (0, 1, 2), (0, 1, 2, 4)])
@pytest.mark.parametrize("donate", [True, False])
def test_loop_changes_the_leaf_in_place(which: tuple[int, ...], donate: bool) -> None:
    terms = tuple(_terms(4096, 512)[i] for i in which)
    run = jax.jit(slabs.added, static_argnums=2, donate_argnums=(0,) if donate else ())
    program = run.lower(_weight(4096, 512, np.float32), terms, np.dtype(np.float32)).compile()
    lines = str(program.as_text()).splitlines()
    assert any(" while(" in line for line in lines)
    copies = [line for line in lines if re.search(r"= f32\[4096,\S* copy\(", line)]
    # A leaf that is kept is copied once, into the result.
    assert len(copies) == (0 if donate else 1)
    memory = program.memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < 4096 * 512 * 4 / 2


def test_structures_with_slabs() -> None:
    assert all(map(slabs.has_slabs, _terms(6, 8)))
    assert not any(map(slabs.has_slabs, (Identity(2), Zero(2, 2), Diagonal(jnp.ones(2)))))
