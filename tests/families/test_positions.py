"""Checks of index arrays: messages for invalid numbers, and none for traced or empty arrays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.families.positions import as_int32, index_misfit, order_misfit, position_misfit


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([[0, 5], [8, 1]], None),
        (
            [[0, 6], [1, 1]],
            "at reach row 6 and column 1, expected rows below 6 and columns below 9",
        ),
        (
            [[0, 5], [9, 1]],
            "at reach row 5 and column 9, expected rows below 6 and columns below 9",
        ),
        ([[0, 5], [-1, 9]], "at include -1, expected 0 or more"),
    ],
)
def test_positions_outside_a_weight_are_described(indices: Any, message: str | None) -> None:
    assert position_misfit("at", np.array(indices), (6, 9)) == message


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 5], None),
        ([[3], [6]], "at go from 3 to 6, expected from 0 to 5"),
        ([-1, 5], "at go from -1 to 5, expected from 0 to 5"),
    ],
)
def test_indices_outside_an_axis_are_described(indices: Any, message: str | None) -> None:
    assert index_misfit("at", np.array(indices), 6) == message


@pytest.mark.parametrize(
    ("orders", "is_valid"),
    [
        ([2, 0, 1], True),
        ([[0, 1, 2], [2, 1, 0]], True),
        ([[0, 1, 2], [0, 1, 1]], False),
        ([0, 1, 3], False),
        ([-1, 0, 1], False),
    ],
)
def test_every_order_must_be_a_permutation(orders: Any, is_valid: bool) -> None:
    message = "at repeat an index or exceed 2, expected each index from 0 to 2 once"
    assert order_misfit("at", np.array(orders)) == (None if is_valid else message)


CHECKS: dict[str, Callable[[Any], str | None]] = {
    "positions": lambda x: position_misfit("at", x, (1, 1)),
    "indices": lambda x: index_misfit("at", x, 1),
    "orders": lambda x: order_misfit("at", x),
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_traced_and_empty_arrays_are_not_checked(check: Callable[[Any], str | None]) -> None:
    """The same numbers are refused where they are known."""
    invalid = np.full((2, 2), 7)
    assert check(invalid) is not None
    messages = []
    jax.eval_shape(lambda x: messages.append(check(x)), invalid)
    assert messages == [None]
    assert check(np.zeros((2, 0), int)) is None


def test_narrow_integers_do_not_overflow() -> None:
    """Arithmetic on uint8 would wrap around at 256."""
    indices = as_int32(jnp.array([255], jnp.uint8))
    assert indices.dtype == jnp.int32 and (indices + 1).tolist() == [256]
    assert as_int32(np.array([7], np.int64)).dtype == jnp.int32  # pyright: ignore
