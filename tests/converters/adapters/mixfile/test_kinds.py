"""Values of fields are checked against their annotations."""

from typing import Any, Literal, Optional

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int

from jaxmix.converters.adapters.mixfile.kinds import misfit
from jaxmix.families import LoRA, Replace, Update

F, I, U = np.ones((2, 3)), np.ones(3, np.int32), Replace(np.ones(2))  # noqa: E741

FITS: list[tuple[Any, Any]] = [
    (F, Float[Array, "a b"]),
    (jnp.ones(3), Float[Array, " n"]),
    (F, Float[Array, "..."]),
    (F, Float[Array, "a *k"]),
    (F, Float[Array, "a b *k"]),
    (np.float32(1), Float[Array, ""]),
    (I, Int[Array, " n"]),
    (F, jax.Array),
    (1.0, Float[Array, ""] | float),
    (2, float),
    (None, Optional[int]),  # noqa: UP045
    (3, int | None),
    (True, bool),
    ("in", Literal["in", "out"]),
    ((), tuple[int, ...]),
    ((1, 2), tuple[int, ...]),
    ((F, I), tuple[jax.Array, Int[Array, " n"]]),
    ((U,), tuple[Update, ...]),
    (U, Update),
    ((1, (2.0, None)), tuple[int, tuple[float, int | None]]),
    ("anything", Any),
]
DO_NOT: list[tuple[Any, Any, str]] = [
    (F, Float[Array, " n"], "an array (2, 3) of float64, expected an array (n) of Float"),
    (F, Float[Array, "a b c *k"], "an array (2, 3) of float64, expected an array (a, b, c, *k)"),
    (I, Float[Array, " n"], "an array (3,) of int32, expected an array (n) of Float"),
    (F, Int[Array, "..."], "an array (2, 3) of float64, expected an array (...) of Int"),
    (F, Float[Array, ""] | float, "expected an array () of Float or a number"),
    ("x", jax.Array, "'x', expected an array"),
    (True, int, "True, expected an integer"),
    (True, float | None, "True, expected a number or nothing"),
    (1.0, int, "1.0, expected an integer"),
    (np.float64(1), float, "an array () of float64, expected a number"),
    (1, bool, "1, expected true or false"),
    (None, str, "None, expected a string"),
    ("up", Literal["in", "out"], "'up', expected 'in' or 'out'"),
    ([1], tuple[int, ...], "[1], expected a tuple of integers"),
    ((1, "x"), tuple[int, ...], "(1, 'x'), expected a tuple of integers"),
    ((1,), tuple[int, str], "(1,), expected a tuple (an integer, a string)"),
    ((F,), tuple[Update, ...], "expected a tuple of updates"),
    (U, LoRA, "an update Replace, expected LoRA"),
    ("x" * 100, int, f"'{'x' * 56}…, expected an integer"),
]


@pytest.mark.parametrize(("value", "kind"), FITS, ids=str)
def test_matching_value_passes(value: Any, kind: Any) -> None:
    assert misfit(value, kind) is None


@pytest.mark.parametrize(("value", "kind", "message"), DO_NOT, ids=str)
def test_mismatch_is_described(value: Any, kind: Any, message: str) -> None:
    problem = misfit(value, kind)
    assert problem is not None and message in problem
