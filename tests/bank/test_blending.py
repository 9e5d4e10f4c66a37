"""Rows with a strength for each member, where one of the members has inf or NaN in a factor."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter, Bank
from jaxmix.bank.per_row import PerRow
from jaxmix.bank.slots import Selection
from jaxmix.operators import Diagonal

from ..laws.chains import chain
from ..laws.draws import Module, tree
from ..uncompiled import uncompiled

MODULE = Module("linear", (6, 8), True)
PARAMS = tree({"site": MODULE}, 1)
X = np.random.default_rng(2).normal(size=(3, 2, 8))
# The first member changes only the last row.
STRENGTHS = np.array([[0, 1.0], [0, 0.5], [0.7, 0]])


def layer(params: Any, x: Any) -> Any:
    w, b = params["site.weight"], params["site.bias"]
    return x @ jnp.asarray(w).T + jnp.asarray(b)[None, None]


def broken(adapter: Adapter, value: float) -> Iterator[Adapter]:
    """Yields the adapter with the value in one number of each array of floats."""
    leaves, structure = jax.tree.flatten(adapter)
    for i, leaf in enumerate(leaves):
        if np.ndim(leaf) and np.asarray(leaf).dtype.kind == "f":
            array = np.array(leaf)
            array.flat[min(1, array.size - 1)] = value
            yield jax.tree.unflatten(structure, [*leaves[:i], array, *leaves[i + 1 :]])


@pytest.mark.parametrize("kind", ["OFT", "DoRA", "IA3", "HRA", "Replace"])
def test_rows_of_strength_zero_are_those_without_the_member(kind: str) -> None:
    """Rotations, norms, scalings and whole leaves: ``0 · inf`` reaches no other row."""
    (first,), (second,) = chain((kind,), MODULE, 0), chain(("LoRA",), MODULE, 5)
    second = second.renamed("second")
    with jax.enable_x64(True), uncompiled():
        rows = [
            layer(jaxmix.compose(PARAMS, float(strength) * second), row[None])[0]
            for row, (_, strength) in zip(X, STRENGTHS, strict=True)
        ]
        for value in (np.inf, np.nan):
            for member in broken(first, value):
                bank = Bank({"first": member, "second": second}, PARAMS)
                got = np.asarray(bank(layer)(PARAMS, X, STRENGTHS))
                np.testing.assert_allclose(got[:2], np.stack(rows[:2]), atol=1e-12)
                assert not np.isfinite(got[2]).all()


def test_dense_operators_of_strength_zero_are_left_out() -> None:
    stack = Diagonal(jnp.array([[np.inf, np.nan], [4.0, 5.0]]))
    operator = PerRow((stack,), (Selection(strengths=jnp.array([0.0, 2.0])),), 2, 2, False)
    assert operator.dense().tolist() == [[8.0, 0.0], [0.0, 10.0]]
