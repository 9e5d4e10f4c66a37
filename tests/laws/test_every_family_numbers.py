"""All families in narrow and wide dtypes: floats, integers, and constants of compiled programs."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.affine import Base
from jaxmix.families import C3A, FAMILIES, OFT, WaveFT, parts_of
from jaxmix.operators import Product, Sparse

from ..uncompiled import uncompiled
from .chains import ALL, FLAT
from .crowd import LINEAR, UPDATES, base, folds, is_float
from .draws import Module, ones
from .test_shape import rounded_once

# The last digit of a site's name chooses its dtype, so one program tests all dtypes.
DTYPES = {"0": jnp.bfloat16, "1": np.float16, "2": np.float32}
# The error allowed before the rounding; KaSA's singular vectors are the least precise.
NOISE = 5e-6


@pytest.mark.parametrize("step", [2, pytest.param(1, marks=pytest.mark.thorough)])
def test_16_bit_weights_are_rounded_once(step: int) -> None:
    """16-bit weights with float64 factors: computed in float32 and rounded once.

    Tests every step-th update: one or two of the three of a family, or all.
    """
    updates = {site: UPDATES[site] for site in list(UPDATES)[::step]}
    plain = base(updates)
    params = {n: x.astype(DTYPES[n.split(".")[0][-1]]) for n, x in plain.items()}
    out = jax.jit(jaxmix.compose)(params, Adapter(updates, 0.7))
    truth = folds(params, updates, 0.7)
    assert {n: x.dtype for n, x in out.items()} == {n: x.dtype for n, x in params.items()}
    assert [
        n for n, expected in truth.items() if not rounded_once(np.asarray(out[n]), expected, NOISE)
    ] == []


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.thorough)])
def test_16_bit_factors_are_widened(step: int) -> None:
    """16-bit factors are widened to float32 and never narrowed; tests every step-th kind."""
    dtype = jnp.bfloat16
    sites = [site for site in UPDATES if site.endswith("2")][::step]
    updates = jax.tree.map(
        lambda x: np.asarray(x).astype(dtype) if is_float(x) else x,
        {site: UPDATES[site] for site in sites},
    )
    params = base(updates, np.float32)
    with uncompiled():
        out = jaxmix.compose(params, Adapter(updates, 0.7))
    assert {n: x.dtype for n, x in out.items()} == {n: x.dtype for n, x in params.items()}
    wide = jax.tree.map(
        lambda x: np.asarray(x).astype(float) if np.asarray(x).dtype == dtype else x, updates
    )
    truth = folds(params, wide, 0.7)
    assert [
        n for n, expected in truth.items() if not rounded_once(np.asarray(out[n]), expected, NOISE)
    ] == []


def is_position(leaf: Any) -> bool:
    """Whether a leaf holds positions."""
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in "iu"


INDEXED = {
    site: update
    for site, update in LINEAR.items()
    if any(map(is_position, jax.tree.leaves(update))) and not site.endswith("2")
}


def test_families_with_positions() -> None:
    """The next test covers every family that has positions."""
    kinds = {part.family for update in INDEXED.values() for part in parts_of(update)}
    assert kinds == {
        *("AdaMSS", "BOFT", "FRoD", "FourierFT", "SHiRA", "SuperTuning", "Tokens", "UniLoRA"),
        *("VBLoRA", "WaveFT"),
    }


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_positions_of_every_width(dtype: Any) -> None:
    """Narrow and wide integers don't overflow, alone or mixed with positions of other widths."""
    params = base(INDEXED)
    cast = jax.tree.map(lambda x: x.astype(dtype) if is_position(x) else x, INDEXED)
    others = {site: UPDATES["SHiRA2"] for site in INDEXED}
    with jax.enable_x64(True), uncompiled():
        out = jaxmix.compose(params, [Adapter(cast, 0.7, "a"), Adapter(others, 0.5, "b")])
    truth = folds(params, INDEXED, 0.7)
    truth = folds(truth, others, 0.5)  # additive updates do not depend on earlier ones
    for name, expected in truth.items():
        np.testing.assert_allclose(out[name], expected, rtol=1e-12, atol=1e-12, err_msg=name)


def test_positions_beyond_a_narrow_width() -> None:
    """Columns within a row are counted in 32 bits, for any dtype of the rows."""
    params = {"a.weight": np.zeros((4, 300), np.float32)}
    rows, values = np.array([2], np.uint8), np.ones((1, 300), np.float32)
    tokens = jaxmix.families.Tokens(values, rows)
    out = jaxmix.compose(params, Adapter({"a": tokens}))["a.weight"]
    assert float(out.sum()) == 300.0 and float(out[2].sum()) == 300.0
    tuned = jaxmix.families.SuperTuning(np.ones(1, np.float32), np.array([200], np.uint8))
    out = jaxmix.compose(params, Adapter({"a": tuned}))["a.weight"]
    assert float(out[0, 200]) == 1.0 == float(out.sum())


# ---------------------------------------------------------------- memory


def constants(program: Any) -> Iterator[int]:
    """The sizes of all constants in a program and in the programs that it calls."""
    if hasattr(program, "consts"):
        yield from (np.size(x) for x in program.consts)
        program = program.jaxpr
    for equation in program.eqns:
        yield from (np.size(x.val) for x in equation.invars if hasattr(x, "val"))
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                    yield from constants(inner)


WIDE = Module("linear", (96, 160), True)


def wide(kind: str, seed: int) -> tuple[dict[str, Any], Adapter]:
    """A larger layer and its update."""
    params = {"a.weight": np.zeros((96, 160), np.float32), "a.bias": np.zeros(96, np.float32)}
    return params, Adapter({"a": ALL[kind](np.random.default_rng([seed, 7]), WIDE)})


@pytest.mark.parametrize("kind", FLAT)
def test_no_quadratic_constants(kind: str) -> None:
    """What depends only on sizes is computed by XLA and is not a constant of the program."""
    for seed in range(3):
        program = jax.make_jaxpr(jaxmix.compose)(*wide(kind, seed))
        assert max(constants(program), default=0) < 96 * 96 / 2


@pytest.mark.parametrize("update", [C3A(ones((1, 1, 96))), OFT(ones((1, 48 * 95)))])
def test_no_constants_as_large_as_the_weight(update: Any) -> None:
    """The positions of a circulant and of a triangular matrix are computed by the program."""
    params = {"a.weight": np.zeros((96, 96), np.float32)}
    program = jax.make_jaxpr(jaxmix.compose)(params, Adapter({"a": update}))
    assert max(constants(program), default=0) < 96 * 96 / 2


def test_constants_are_detected() -> None:
    """The check above can fail."""
    grid = np.ones((96, 96))
    assert max(constants(jax.make_jaxpr(jax.jit(lambda x: x + grid[0, 0] * grid[0]))(grid[0]))) > 90


def test_wavelets_need_no_more_memory_than_the_weight() -> None:
    """Few coefficients with a filter of eight numbers; this once took ten times the weight."""
    params, adapter = wide("WaveFT", 0)
    update: Any = adapter.updates["a"]
    assert update.wavelet == "sym4"
    memory: Any = jax.jit(jaxmix.compose).lower(params, adapter).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2 * params["a.weight"].nbytes


@pytest.mark.parametrize("name", ["haar", "db10", "coif3"])
def test_wavelets_of_few_and_of_many_coefficients(name: str) -> None:
    """Patches for few coefficients and products for many give the same Δ."""
    shape, rng = (38, 41), np.random.default_rng(0)
    flat = rng.permutation(shape[0] * shape[1]).astype(np.int32)
    positions = np.stack([flat // 41, flat % 41])
    few = WaveFT(rng.normal(size=3), positions[:, :3], 2.0, name)
    numbers = np.concatenate([few.spectrum, np.zeros(len(flat) - 3)])
    many = WaveFT(numbers, positions, 2.0, name)
    with jax.enable_x64(True), uncompiled():
        sparse, dense = (x.weight_map(Base(None, shape), jnp.ones(())).shift for x in (few, many))
        assert isinstance(sparse, Sparse) and isinstance(dense, Product)
        np.testing.assert_allclose(sparse.dense(), dense.dense(), rtol=1e-12, atol=1e-12)


def test_crowd_covers_all_families() -> None:
    """The updates of `crowd` include every family, so a new family needs a sample."""
    families = {part.family for update in UPDATES.values() for part in (update, *parts_of(update))}
    assert set(FAMILIES) <= families
