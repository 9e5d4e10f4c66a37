"""NumPy runs the small programs of JAX's own functions with XLA's results, and no others."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from .compiling import COMPILED, timed_events
from .jax_internals import CAN_RUN_PROGRAMS

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
RUN_BY_NUMPY: dict[str, Callable[[Any], Any]] = {
    "a product": lambda x: x * x,
    "a product with a number": lambda x: 2.5 * x,
    "a choice": lambda x: jnp.where(x > 0, x, 0.0),
    "a stack": lambda x: jnp.stack([x, x]),
    "rows": lambda x: list(x),
    "a clipped array": lambda x: jnp.clip(x, -0.5, 0.5),
}
COMPILED_BY_XLA: dict[str, Callable[[Any], Any]] = {
    "a function of ours": jax.jit(lambda x: x * x),
    "an operation that rounds more than once": jnp.tanh,
    "what NumPy does not do": lambda x: jax.lax.pad(x, x[0, 0], ((-1, 2, 1), (0, 3, 0))),
    "an array on a chosen device": lambda x: jax.device_put(x, jax.devices()[1]) * 2,
    "a result of weak type": lambda x: jnp.add(1.5, 2.5) + x,
}


def compilations(fn: Callable[[Any], Any], x: Any) -> int:
    """How many programs are compiled when a function is called."""
    jax.clear_caches()
    with timed_events() as events:
        jax.block_until_ready(fn(x))
    return events[COMPILED]


@pytest.mark.skipif(not CAN_RUN_PROGRAMS, reason="this version of JAX compiles them")
@pytest.mark.parametrize("name", RUN_BY_NUMPY)
def test_nothing_is_compiled_and_results_are_equal(name: str) -> None:
    fn, x = RUN_BY_NUMPY[name], jnp.asarray(X)
    assert compilations(fn, x) == 0
    for actual, expected in zip(
        jax.tree.leaves(fn(x)), jax.tree.leaves(jax.jit(lambda x: fn(x))(x)), strict=True
    ):
        assert isinstance(actual, jax.Array) and not actual.committed
        assert (actual.dtype, actual.weak_type) == (expected.dtype, expected.weak_type)
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", COMPILED_BY_XLA)
def test_others_are_compiled(name: str) -> None:
    assert compilations(COMPILED_BY_XLA[name], jnp.asarray(X)) > 0
