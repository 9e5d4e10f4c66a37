"""The metadata of an adapter: what can be stored, and what several adapters share."""

import math
from typing import Any

import numpy as np
import pytest

from jaxmix import Adapter
from jaxmix.errors import AdapterError
from jaxmix.metadata import checked_metadata, shared_metadata


@pytest.mark.parametrize(
    "value", ["text", [1], {1: 2}, {"a": np.ones(2)}, {"a": math.inf}, {"a": (1,)}]
)
def test_metadata_that_json_can_not_hold(value: Any) -> None:
    with pytest.raises(AdapterError) as caught:
        Adapter({}, metadata=value)
    assert str(caught.value) == (
        f"an adapter's metadata are {value!r}, expected a dict of strings and other values that "
        "can be stored as JSON."
    )


def test_metadata_is_copied() -> None:
    """Later changes to the given dict have no effect."""
    given: dict[str, Any] = {"a": {"b": 1}}
    metadata = checked_metadata(given)
    given["a"]["b"] = 2
    assert metadata == {"a": {"b": 1}}
    assert shared_metadata([]) == {}


def test_adapters_share_values_on_which_all_that_have_them_agree() -> None:
    """A value that differs is dropped, also if most adapters agree on it; None is a value."""
    metadata = [{"a": 1, "b": [1], "c": None}, {"a": 1, "b": [2]}, {"a": 1, "b": [1], "c": 0}]
    assert shared_metadata(metadata) == {"a": 1}
    assert shared_metadata([{}, {"b": {"x": 1}}, {"b": {"x": 1}}]) == {"b": {"x": 1}}
