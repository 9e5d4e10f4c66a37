"""Every row of the table satisfies the same contract."""

from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.affine import Base
from jaxmix.families import FAMILIES, Update

from ..messages import full_text
from .formulas import Leaves
from .row import Row
from .table import ROWS

# (seed, strength): 0 is the identity, 1 the checkpoint's own map.
DRAWS = ((0, 0.0), (0, 1.0), (1, 0.3), (2, -0.5))
STEP = 1e-6

each = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Compiles without optimization: results are compared in float64, and compiling is slow."""
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.enable_x64(True):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def is_number(leaf: Any) -> bool:
    """Whether a leaf is a Python number: a scale."""
    return isinstance(leaf, float)


def applied(update: Update, leaves: Leaves, strength: Any) -> tuple[jax.Array, jax.Array]:
    """The new weight and bias. The leaves' weights are matrices."""
    weight, bias = jnp.asarray(leaves.weight), jnp.asarray(leaves.bias)
    matrix = jnp.asarray(leaves.base_weight)
    shape = (weight.shape[0], weight.shape[1])
    asks = Base(matrix if update.reads_base else None, shape)
    column = Base(asks.matrix, shape, jnp.asarray(leaves.base_bias)[:, None])
    return (
        update.weight_map(asks, strength)(weight),
        update.bias_map(column, strength)(bias[:, None])[:, 0],
    )


def as_matrices(row: Row, leaves: Leaves) -> Leaves:
    """The leaves with weights as (out, in)."""
    base = row.matrix(leaves.base_weight)
    return Leaves(row.matrix(leaves.weight), leaves.bias, base, leaves.base_bias)


def expected(row: Row, factors: Any, leaves: Leaves, s: float) -> tuple[np.ndarray, np.ndarray]:
    """The weight, as a matrix, and the bias that the formula gives."""
    weight, bias = row.formula(factors, row.config, leaves, s)
    return row.matrix(weight), bias


def stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)


def drawn(row: Row) -> tuple[Any, Any, Any]:
    """A row's updates, the directions in which they are moved, and leaves, stacked over draws."""
    updates, directions, leaves = [], [], []
    for seed, _ in DRAWS:
        factors, direction = row.factors(seed), row.factors(seed + 50)
        moved = {n: f + direction[n] if is_float(f) else f for n, f in factors.items()}
        unmoved, shifted = (row.build(f, row.config) for f in (factors, moved))
        updates.append(unmoved)
        # Only factors move: a scale is equal in both, so its direction is zero.
        directions.append(
            jax.tree.map(lambda a, b: np.asarray(b) - np.asarray(a), unmoved, shifted)
        )
        matrices = as_matrices(row, row.leaves(seed))
        leaves.append((matrices.weight, matrices.bias, matrices.base_weight, matrices.base_bias))
    return stack(updates), stack(directions), stack(leaves)


def run(
    update: Update, direction: Update, leaves: Any, strength: jax.Array
) -> dict[str, jax.Array]:
    """Returns the new leaves, and their derivatives by the strength and along the factors."""
    (numbers, treedef), directions = jax.tree.flatten(update), jax.tree.leaves(direction)
    floats = [i for i, leaf in enumerate(numbers) if is_float(leaf)]

    def moved(s: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        at = [n + t * directions[i] if i in floats else n for i, n in enumerate(numbers)]
        return applied(jax.tree.unflatten(treedef, at), Leaves(*leaves), s)

    def derivatives(*tangents: jax.Array) -> Any:
        return jax.jvp(moved, (strength, jnp.zeros_like(strength)), tangents)

    # Both directions in one trace: tracing takes longer than computing.
    (weight, bias), slopes = jax.vmap(derivatives, out_axes=(None, 0))(*np.eye(2))
    (d_weight, f_weight), (d_bias, f_bias) = slopes
    return dict(
        weight=weight,
        bias=bias,
        weight_by_strength=d_weight,
        bias_by_strength=d_bias,
        weight_by_factors=f_weight,
        bias_by_factors=f_bias,
    )


# One program runs this many rows, which compiles several times faster than a program per row.
TOGETHER = 24


@cache
def results_of(group: int) -> dict[str, dict[str, np.ndarray]]:
    """Results of `run` for the rows of a group, mapped over the draws."""
    rows = list(ROWS.items())[group * TOGETHER : (group + 1) * TOGETHER]
    strengths = np.array([s for _, s in DRAWS])
    mapped = jax.vmap(run)
    results = jax.jit(lambda rows: {n: mapped(u, w, x, strengths) for n, (u, w, x) in rows.items()})
    return jax.tree.map(np.asarray, results({name: drawn(row) for name, row in rows}))


def results(name: str) -> dict[str, np.ndarray]:
    """For each draw of a row, the new leaves and their derivatives."""
    return results_of(list(ROWS).index(name) // TOGETHER)[name]


@pytest.mark.parametrize("name", ROWS)
def test_matches_peft_formula(name: str) -> None:
    """Equal at every strength, also where the current weight and bias differ from the base's."""
    row, actual = ROWS[name], results(name)
    for i, (seed, s) in enumerate(DRAWS):
        weight, bias = expected(row, row.factors(seed), row.leaves(seed), s)
        np.testing.assert_allclose(actual["weight"][i], weight, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(actual["bias"][i], bias, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ROWS)
def test_strength_zero_is_the_identity(name: str) -> None:
    row, actual = ROWS[name], results(name)
    leaves = row.leaves(DRAWS[0][0])
    np.testing.assert_allclose(actual["weight"][0], row.matrix(leaves.weight), rtol=1e-14)
    np.testing.assert_allclose(actual["bias"][0], leaves.bias, rtol=1e-14)
    changed = np.abs(actual["weight"][1] - actual["weight"][0]).max()
    changed += np.abs(actual["bias"][1] - actual["bias"][0]).max()
    assert changed > 1e-3 or name in ("oft 1 terms", "oft blocks of one", "oft coft all")


@pytest.mark.parametrize("name", ROWS)
def test_derivatives_match_finite_differences(name: str) -> None:
    """Derivatives by the strength and along the factors equal differences of the formula."""
    row, actual = ROWS[name], results(name)
    for i, (seed, s) in enumerate(DRAWS):
        factors, direction, leaves = row.factors(seed), row.factors(seed + 50), row.leaves(seed)

        def moved(t: float, factors: Any = factors, direction: Any = direction) -> Any:
            return {n: f + t * direction[n] if is_float(f) else f for n, f in factors.items()}

        by_strength = [expected(row, factors, leaves, s + t) for t in (STEP, -STEP)]
        along = [expected(row, moved(t), leaves, s) for t in (STEP, -STEP)]
        for by, (above, below) in (("strength", by_strength), ("factors", along)):
            for k, leaf in enumerate(("weight", "bias")):
                slope = (above[k] - below[k]) / (2 * STEP)
                atol = 1e-6 * max(1.0, float(np.abs(slope).max()))
                exact = actual[f"{leaf}_by_{by}"][i]
                np.testing.assert_allclose(exact, slope, rtol=1e-6, atol=atol)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.additive])
def test_additive_families_are_linear_in_strength(name: str) -> None:
    """The map is ``W + s·Δ``: Δ is equal for all strengths, and L and R are the identity."""
    row, leaves = ROWS[name], as_matrices(ROWS[name], ROWS[name].leaves(0))
    actual = results(name)
    np.testing.assert_allclose(
        actual["weight_by_strength"][0], actual["weight_by_strength"][1], rtol=1e-12, atol=1e-13
    )
    delta = actual["weight"][1] - leaves.weight
    np.testing.assert_allclose(actual["weight_by_strength"][0], delta, rtol=1e-9, atol=1e-12)
    base = Base(jnp.asarray(leaves.base_weight), row.shape)
    update = row.update(row.factors(0))
    weight_map = jax.eval_shape(lambda update, s: update.weight_map(base, s), update, 1.0)
    assert weight_map.is_shift


def test_new_numbers_do_not_retrace() -> None:
    """Factors and scales of the same shapes use the same program."""
    traces = []

    @jax.jit
    def run(updates: dict[str, Update], strength: jax.Array) -> jax.Array:
        traces.append(jax.tree.structure(updates))
        return (
            strength  # the traced function does not matter: the cache key is the updates' structure
        )

    for seed, s in DRAWS:
        updates = {name: row.update(row.factors(seed)) for name, row in ROWS.items()}
        numbers = jax.tree.map(lambda x, k=seed: x * (k + 1.5) if is_number(x) else x, updates)
        run(numbers, jnp.asarray(s))
    assert len(traces) == 1


@each
def test_is_a_frozen_pytree(row: Row) -> None:
    update = row.update(row.factors(0))
    leaves, treedef = jax.tree.flatten(update)
    rebuilt = jax.tree.unflatten(treedef, leaves)
    assert all(a is b for a, b in zip(jax.tree.leaves(rebuilt), leaves, strict=True))
    assert hash(treedef) == hash(jax.tree.structure(rebuilt))
    assert {f.name for f in fields(update)} == {f.name for f in fields(rebuilt)}  # pyright: ignore
    statics = [f.name for f in fields(update) if f.metadata.get("static")]  # pyright: ignore
    assert all(hash(getattr(update, name)) is not None for name in statics)
    assert all(getattr(update, name) == getattr(rebuilt, name) for name in statics)
    with pytest.raises(FrozenInstanceError):
        setattr(update, fields(update)[0].name, None)  # pyright: ignore[reportArgumentType]
    assert update == update and update != rebuilt
    assert FAMILIES[update.family] is type(update)


@each
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.thorough), "bfloat16"])
def test_dtypes_are_kept(row: Row, dtype: str) -> None:
    """Factors in the arithmetic's dtype give a map in that dtype, under strict promotion."""
    update, matrices = row.build(row.factors(0), row.config), as_matrices(row, row.leaves(0))

    def cast(x: Any) -> Any:
        return np.asarray(x, jnp.dtype(dtype)) if is_float(x) else x

    def run(update: Update, leaves: Any, strength: Any) -> Any:
        return applied(update, Leaves(*leaves), strength)

    leaves = (matrices.weight, matrices.bias, matrices.base_weight, matrices.base_bias)
    factors_alone = jax.tree.map(lambda x: x if is_number(x) else cast(x), update)
    for cast_update in (factors_alone, jax.tree.map(cast, update)):
        for strength in (np.asarray(0.5, jnp.dtype(dtype)), 0.5):
            outputs = jax.eval_shape(run, cast_update, jax.tree.map(cast, leaves), strength)
            assert [str(x.dtype) for x in outputs] == [dtype, dtype]
            assert outputs[0].shape == row.shape


@each
def test_numpy_factors_are_accepted(row: Row) -> None:
    """NumPy factors, as file readers return them, fit and pass through jit."""
    update, matrices = row.build(row.factors(0), row.config), as_matrices(row, row.leaves(0))
    outputs = jax.eval_shape(lambda update, s: applied(update, matrices, s), update, 1.0)
    assert [x.shape for x in outputs] == [row.shape, row.shape[:1]]
    assert update.misfit(row.shape) is None


@each
def test_properties_match_the_row(row: Row) -> None:
    update = row.update(row.factors(0))
    assert update.size() == row.size
    assert update.transposed == row.transposed
    assert update.misfit(row.shape) is None
    names = set(row.shapes)
    stated = {
        "reads_base": bool(names & {"lora_magnitude_vector", "base_weight"}),
        "has_bias": bool(names & {"bias", "lora_B.bias"}),
        "has_weight": bool(names - {"bias"}),
        **{
            name: expected
            for name, expected in row.properties.items()
            if name in ("reads_base", "has_bias", "has_weight")
        },
    }
    assert {name: getattr(update, name) for name in stated} == stated


@each
def test_misfit_describes_other_sizes(row: Row) -> None:
    """A weight with one more output or input gets a message of one line, unless it fits too."""
    update = row.update(row.factors(0))
    (rows, cols), names = row.shape, set(row.shapes)
    fits_out = row.properties.get("fits_out", names <= {"oft_R", "oft_embedding_R", "shira_weight"})
    fits_in = row.properties.get("fits_in", names in ({"bias"}, {"shira_weight"}))
    for shape, fits in (((rows + 1, cols), fits_out), ((rows, cols + 1), fits_in)):
        message = update.misfit(shape)
        if fits:
            assert message is None
        else:
            assert message is not None and "\n" not in message and "expected" in message


@pytest.mark.parametrize("name", ROWS)
def test_reads_only_the_declared_leaves_of_the_base(name: str) -> None:
    """Without the base's leaves, an update makes its maps or raises an error about the leaf."""
    row = ROWS[name]
    update, without_matrix = row.build(row.factors(0), row.config), Base(None, row.shape)

    def shape_of_map(leaf: str) -> tuple[int, ...]:
        def run(update: Any, strength: Any) -> Any:
            leaf_map = getattr(update, f"{leaf}_map")(without_matrix, strength)
            return jnp.zeros(leaf_map.shape)  # the map's own arrays do not matter here

        return jax.eval_shape(run, update, jnp.ones(())).shape

    if update.reads_base and not row.properties.get("reads_bias_alone"):
        message = full_text(
            f"a map of a weight {row.shape} reads the base's matrix, found None. Pass Base.matrix "
            "to updates whose reads_base is true."
        )
        with pytest.raises(ValueError, match=message):
            shape_of_map("weight")
        return
    assert shape_of_map("weight") == row.shape
    if not update.reads_base:
        assert shape_of_map("bias") == (row.shape[0], 1)
