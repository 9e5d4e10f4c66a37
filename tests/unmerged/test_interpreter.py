"""Programs that run with weights in the place of arrays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmix.affine import shift
from jaxmix.operators import LowRank
from jaxmix.unmerged.interpreter import run
from jaxmix.unmerged.uses import Use
from jaxmix.unmerged.weight import Weight

from ..uncompiled import uncompiled


def normal(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


LOW = LowRank(normal(4, 2), normal(2, 4))
WEIGHT = Weight(normal(4, 4), shift(LOW), (-2,), (-1,), None, "factored", "w")
X = normal(3, 4)


def both(fn: Callable[..., Any], *args: Any) -> tuple[list[Any], Any, list[Use]]:
    """Runs a function's program: its outputs, those with the dense array, and uses of it."""
    uses: list[Use] = []
    arrays = [arg.base if isinstance(arg, Weight) else arg for arg in args]
    program = jax.make_jaxpr(fn)(*arrays)
    with uncompiled():
        outs = run(program, args, uses.append)
        dense = [arg.dense() if isinstance(arg, Weight) else arg for arg in args]
        return outs, jax.tree.leaves(fn(*dense)), uses


def test_a_program_has_constants_literals_and_unused_values() -> None:
    """An output may be an input, a constant, or the same value twice."""
    constant = normal(3, 4)

    def fn(w: Any, x: Any) -> Any:
        jnp.sin(x)  # unused
        y = (x + constant) @ w
        return y, y, 2.0 * y, x, constant, 1.0

    outs, expected, uses = both(fn, WEIGHT, X)
    assert uses == [] and len(outs) == 6
    for out, other in zip(outs, expected, strict=True):
        np.testing.assert_allclose(out, other, rtol=1e-5, atol=1e-5)


def test_a_weight_that_is_passed_through_stays_a_weight() -> None:
    """Through inner programs, both branches of a condition, and the carry of a loop."""

    def through_jit(w: Any, x: Any) -> Any:
        return jax.jit(lambda w, x: (w, x @ w))(w, x)

    def through_cond(w: Any, x: Any) -> Any:
        return lax.cond(x[0, 0] > 9, lambda w, x: (w, -x), lambda w, x: (w, x @ w), w, x)

    def through_loop(w: Any, x: Any) -> Any:
        return lax.fori_loop(0, 2, lambda _, c: (c[0], c[1] @ c[0]), (w, x))

    for fn in (through_jit, through_cond, through_loop):
        (same, y), (_, expected), uses = both(fn, WEIGHT, X)
        assert isinstance(same, Weight) and same.base is WEIGHT.base and uses == []
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_a_weight_that_is_swapped_is_made_dense() -> None:
    """Branches that return other weights, and a loop that exchanges two, need arrays."""
    other = Weight(normal(4, 4) + 1, shift(LOW), (-2,), (-1,), None, "factored", "other")

    def branches(w: Any, v: Any, x: Any) -> Any:
        return lax.cond(x[0, 0] > 9, lambda w, v: w, lambda w, v: v, w, v)

    def loop(w: Any, v: Any, x: Any) -> Any:
        return lax.fori_loop(0, 3, lambda _, c: (c[1], c[0]), (w, v))

    # Uncompiled, only the branch that is taken runs.
    for fn, leaves in ((branches, {"other"}), (loop, {"w", "other"})):
        outs, expected, uses = both(fn, WEIGHT, other, X)
        assert {use.leaf for use in uses} == leaves
        for out, array in zip(outs, expected, strict=True):
            np.testing.assert_allclose(out, array, rtol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_runs_layer_by_layer_and_stacks_what_it_returns(reverse: bool) -> None:
    """The layers that a scan returns are a stack again."""
    low = LowRank(normal(5, 4, 2), normal(5, 2, 4))
    stack = Weight(normal(5, 4, 4), jax.vmap(shift)(low), (-2,), (-1,), -3, "factored", "w")

    def fn(w: Any, x: Any) -> Any:
        def body(x: Any, w: Any) -> Any:
            return jnp.tanh(x @ w.T), (w, x.sum())

        return lax.scan(body, x, w, reverse=reverse)

    (y, layers, sums), expected, uses = both(fn, stack, X)
    assert uses == [] and isinstance(layers, Weight) and layers.axes == ((1,), (2,), 0)
    for out, array in zip((y, layers.dense(), sums), expected, strict=True):
        np.testing.assert_allclose(out, array, rtol=1e-4, atol=1e-5)


def test_a_use_within_an_inner_program_is_reported_with_its_place() -> None:
    def fn(w: Any, x: Any) -> Any:
        return jax.checkpoint(lambda w: jnp.exp(w))(w) + x[:1]

    (out,), (expected,), (use,) = both(fn, WEIGHT, X)
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    assert (use.leaf, use.why) == ("w", "exp") and "test_interpreter.py" in use.place
