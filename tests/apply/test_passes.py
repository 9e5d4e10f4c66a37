"""The passes over a weight on a CPU: their order, their dtypes and their buffers."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.affine import AffineMap
from jaxmix.apply import passes, slabs
from jaxmix.operators import Dense, Diagonal, Identity, LowRank, Operator, Sparse, Sum, Zero
from jaxmix.placement.buffers import is_deleted
from jaxmix.placement.form import Form

ROWS, COLS = 4, 3
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return jnp.asarray(RNG.normal(size=shape), np.float32)


def shift(delta: Operator) -> AffineMap:
    return AffineMap(Identity(ROWS), Identity(COLS), delta)


def low() -> LowRank:
    return LowRank(normal(ROWS, 2), normal(2, COLS))


def spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, bool]]:
    """The passes that run: their names, the dtypes of results, and whether they are in place."""
    seen: list[tuple[str, str, bool]] = []

    def record(name: str, in_place: bool) -> Any:
        real = passes._PASSES[getattr(passes, name), in_place]

        def run(tensor: Any, operators: Any, form: Form, dtype: Any) -> Any:
            seen.append((name, np.dtype(dtype).name, in_place))
            return real(tensor, operators, form, dtype)

        return run

    table = {
        (getattr(passes, name), in_place): record(name, in_place)
        for name in ("multiply", "add", "_add_by_slabs")
        for in_place in (False, True)
    }
    monkeypatch.setattr(passes, "_PASSES", table)
    return seen


def test_no_steps_change_nothing() -> None:
    w = normal(ROWS, COLS)
    assert passes.run(w, [], Form(), w.dtype) is w
    assert passes.run(w, [shift(Zero(ROWS, COLS))], Form(), w.dtype) is w


def test_rotation_comes_before_the_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides in one pass. All but the first pass reuse the buffer of the one before."""
    seen = spied(monkeypatch)
    w, delta = normal(ROWS, COLS), low()
    step = AffineMap(Diagonal(normal(ROWS)), Dense(normal(COLS, COLS)), delta)
    out = passes.run(w, [step, shift(low())], Form(), w.dtype)
    assert [name for name, *_ in seen] == ["multiply", "add", "add"]
    assert [in_place for *_, in_place in seen] == [False, True, True]
    assert out.shape == w.shape and not is_deleted(w)
    seen.clear()
    expected = step.left.dense() @ w @ step.right.dense().T + delta.dense()
    np.testing.assert_allclose(passes.run(w, [step], Form(), w.dtype), expected, rtol=1e-5)
    passes.run(w, [step], Form(), w.dtype, donate=True)
    assert seen[2:] == [("multiply", "float32", True), ("add", "float32", True)]
    assert is_deleted(w)


def test_only_the_last_pass_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a narrow leaf is rounded once; its buffer does not fit the wide result."""
    seen = spied(monkeypatch)
    leaf = jnp.ones((ROWS, COLS), jnp.bfloat16)
    quarter = Dense(jnp.full((ROWS, COLS), 2.0**-9, jnp.float32))
    out = passes.run(leaf, [shift(quarter)] * 4, Form(), leaf.dtype, donate=True)
    assert [dtype for _, dtype, _ in seen] == ["float32"] * 3 + ["bfloat16"]
    assert [in_place for *_, in_place in seen] == [False, True, True, False]
    np.testing.assert_array_equal(np.asarray(out, np.float32), 1 + 2.0**-7)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_several_terms_with_slabs_are_one_pass(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a wide leaf. Terms without slabs, and one alone, are passes of their own."""
    seen = spied(monkeypatch)
    entry = Sparse(jnp.ones(1), jnp.array([[1], [2]]), ROWS, COLS)
    terms = (low(), entry, low())
    w = normal(ROWS, COLS).astype(dtype)
    out = passes.run(w, [shift(Sum(terms))], Form(), dtype)
    names = ["_add_by_slabs", "add"] if dtype == jnp.float32 else ["add"] * 3
    assert [name for name, *_ in seen] == names
    expected = np.asarray(w, np.float32) + sum(np.asarray(term.dense()) for term in terms)
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, rtol=2.0**-7, atol=1e-2)
    assert not slabs.has_slabs(entry)


def test_convolutions_and_biases_are_matrices_in_a_pass() -> None:
    """Axes after the first are merged, and the result has the leaf's shape."""
    kernel, bias = normal(ROWS, COLS, 2), normal(ROWS)
    delta = Dense(normal(ROWS, 2 * COLS))
    step = AffineMap(Identity(ROWS), Identity(2 * COLS), delta)
    out = passes.run(kernel, [step], Form(), kernel.dtype)
    np.testing.assert_allclose(out, kernel + delta.matrix.reshape(kernel.shape), rtol=1e-6)
    double = AffineMap(Diagonal(jnp.full(ROWS, 2.0)), Identity(1), Zero(ROWS, 1))
    out = passes.run(bias, [double], Form("bias"), bias.dtype)
    np.testing.assert_allclose(out, 2 * bias, rtol=1e-6)
