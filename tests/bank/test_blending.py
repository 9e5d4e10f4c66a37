"""Rows with a strength for each member, where one of the members has inf or NaN, or makes it."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter, Bank
from jaxmix.families import LoRA, Normed

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


@pytest.mark.parametrize("axis", ["out", "in"])
def test_rows_of_strength_zero_are_those_without_a_map_that_is_not_finite(axis: Any) -> None:
    """DoRA over zeros divides zero by zero, though its factors are finite."""
    (second,) = chain(("LoRA",), MODULE, 5)
    params = dict(PARAMS)
    weight = np.array(params["site.weight"])
    weight[(1,) if axis == "out" else (slice(None), 1)] = 0
    params["site.weight"] = weight
    out, into = weight.shape
    nothing = LoRA(np.zeros((1, into)), np.zeros((out, 1)), 1.0)
    magnitude = np.ones(weight.shape[axis == "in"])
    member = Adapter({"site": Normed(nothing, magnitude, axis=axis)}, name="first")
    with jax.enable_x64(True), uncompiled():
        alone = jaxmix.compose(params, member)["site.weight"]
        assert not np.isfinite(alone).all()
        rows = [
            layer(jaxmix.compose(params, float(strength) * second), row[None])[0]
            for row, (_, strength) in zip(X, STRENGTHS, strict=True)
        ]
        bank = Bank({"first": member, "second": second}, params)
        got = np.asarray(bank(layer)(params, X, STRENGTHS))
        np.testing.assert_allclose(got[:2], np.stack(rows[:2]), atol=1e-12)
        assert not np.isfinite(got[2]).all()
        # Members by number: the row of the second, and the base's.
        got = np.asarray(bank(layer)(params, X, np.array([1, -1, 0])))
        plain = layer(jaxmix.compose(params, second), X[:1]), layer(params, X[1:2])
        np.testing.assert_allclose(got[:2], np.concatenate(plain), atol=1e-12)
        assert not np.isfinite(got[2]).all()


def test_a_bias_whose_map_is_not_finite() -> None:
    """DoRA's map of the bias divides by the norms of the weight."""
    params = dict(PARAMS)
    params["site.weight"] = np.array(params["site.weight"])
    params["site.weight"][1] = 0
    out, into = params["site.weight"].shape
    nothing = np.zeros((1, into)), np.zeros((out, 1))
    member = Adapter({"site": LoRA(*nothing, 1.0, np.ones(out), np.ones(out))}, name="first")
    (second,) = chain(("LoRA",), MODULE, 5)

    def bias(params: Any, x: Any) -> Any:
        return x + jnp.asarray(params["site.bias"])[None, None]

    with jax.enable_x64(True), uncompiled():
        bank = Bank({"first": member, "second": second}, params)
        x = np.zeros((3, 1, 1))
        got = np.asarray(bank(bias)(params, x, STRENGTHS))
        np.testing.assert_allclose(got[:2], bias(params, x[:2]), atol=1e-12)
        assert not np.isfinite(got[2]).all()
