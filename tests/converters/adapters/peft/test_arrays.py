"""Arrays that PEFT stores once for all sites."""

from typing import Any

import numpy as np
import pytest

from jaxmix.converters.adapters.peft.arrays import same_array
from jaxmix.errors import UnsupportedError

from ....messages import full_text


def z(*shape: int) -> Any:
    """An array of this shape."""
    return np.zeros(shape)


def n(*shape: int, seed: int = 0) -> Any:
    """Returns random numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_equal_arrays_are_saved_once() -> None:
    """Compared by content if they are two objects; their dtypes must agree."""
    first = z(2)
    assert same_array({"a": first, "b": z(2)}, "bank", lambda array: array) is first
    with pytest.raises(
        UnsupportedError,
        match=full_text(
            "PEFT stores one bank for all sites, and that of these sites "
            "differs from a:\n"
            "  b\n"
            "Export them as separate adapters."
        ),
    ):
        same_array({"a": first, "b": np.zeros(2, np.float32)}, "bank", lambda array: array)


def test_shared_arrays() -> None:
    """They are the same object, or equal."""
    updates = {"a": n(2), "b": n(2), "c": n(2, seed=1), "d": n(2).astype(np.float64)}
    with pytest.raises(UnsupportedError) as caught:
        same_array(updates, "vera_A", lambda update: update)
    assert str(caught.value) == (
        "PEFT stores one vera_A for all sites, and that of these sites differs from "
        "a:\n  c\n  d\nExport them as separate adapters."
    )
