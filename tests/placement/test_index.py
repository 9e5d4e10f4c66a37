"""Indices in rules: integers, slices, and equal parts of an axis."""

import numpy as np
import pytest

from jaxmix.errors import LayoutError
from jaxmix.placement.index import divided, literal_index, parsed_index

LEAF = np.arange(6 * 12 * 4).reshape(6, 12, 4)


@pytest.mark.parametrize(
    ("text", "literal", "expected"),
    [
        ("3", "3", LEAF[3]),
        ("-1", "-1", LEAF[-1]),
        (":, 3", ":, 3", LEAF[:, 3]),
        ("1:4, ::2", "1:4, ::2", LEAF[1:4, ::2]),
        (":, 0/3", ":, 0:4", LEAF[:, :4]),
        (":, 2/3", ":, 8:12", LEAF[:, 8:]),
        (":, -1/3", ":, 8:12", LEAF[:, 8:]),
        ("4, 1:/2", "4, 6:12", LEAF[4, 6:]),
        (":, :5/6, 1/2", ":, 0:10, 2:4", LEAF[:, :10, 2:]),
        ("1:3/3", "2:6", LEAF[2:]),
    ],
)
def test_index_is_parsed(text: str, literal: str, expected: np.ndarray) -> None:
    """Parts of an axis are replaced by ranges of entries, which select the same elements."""
    assert literal_index(text, LEAF.shape) == literal
    for index in (text, literal):
        np.testing.assert_array_equal(LEAF[parsed_index(index, LEAF.shape)], expected)


@pytest.mark.parametrize("text", ["", "a", "1:2:3:4", "0/0", "1:2:1/3", "1/3/2", "/3", "1.5"])
def test_invalid_index_is_refused(text: str) -> None:
    with pytest.raises(LayoutError) as caught:
        parsed_index(text, LEAF.shape)
    assert str(caught.value) == (
        f"the index {text!r} of a layout's rule is not a basic index, expected integers and "
        "slices separated by commas, such as ':, 3' or '0:64', or parts of an axis, such as "
        "'1/3' for the second of three."
    )


@pytest.mark.parametrize(
    ("text", "axis", "parts"), [("0/5", 0, 5), (":, :, 1/3", 2, 3), (":, :, :, 0/2", 3, 2)]
)
def test_indivisible_axis_is_reported(text: str, axis: int, parts: int) -> None:
    """An absent axis, or a length that is no multiple of the parts, is an error."""
    with pytest.raises(IndexError) as caught:
        parsed_index(text, LEAF.shape)
    assert str(caught.value) == f"axis {axis} can't be divided into {parts} equal parts"


def test_quotients_and_remainders_are_computed() -> None:
    """Only braces with // or % are replaced, and never a division by zero."""
    assert divided("block_{7%2}[{7//2}, {11%4}]") == "block_1[3, 3]"
    assert divided("block_{7}[{7//0}, {7/2}]") == "block_{7}[{7//0}, {7/2}]"
