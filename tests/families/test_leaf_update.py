"""Updates that hold arrays of the shapes of a site's leaves."""

import numpy as np
import pytest

from jaxmix.families import Delta, Replace

KINDS = (Replace, Delta)
LABELS = {"Replace": ("saved weight", "saved bias"), "Delta": ("diff", "diff_b")}


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_must_have_the_sizes_of_the_leaves(kind: type[Replace | Delta]) -> None:
    """A convolution's weight may have all of its axes; a bias has one entry per row."""
    ones = np.ones
    for weight in (ones((4, 6)), ones((4, 3, 2)), None):
        assert kind(weight, ones(4)).misfit((4, 6)) is None
    assert kind().misfit((4, 6)) is None
    weight, bias = LABELS[kind.__name__]
    for update, message in (
        (kind(ones((6, 4))), f"{weight} has shape (6, 4), expected (4, 6)"),
        (kind(ones((4, 5))), f"{weight} has shape (4, 5), expected (4, 6)"),
        (kind(ones(24)), f"{weight} has shape (24,), expected (4, 6)"),
        (kind(bias=ones(6)), f"{bias} has shape (6,), expected (4,)"),
        (kind(bias=ones(())), f"{bias} has shape (), expected (4,)"),
        (kind(ones((4, 6)), ones(1)), f"{bias} has shape (1,), expected (4,)"),
        (kind(ones((5, 6)), ones(1)), f"{weight} has shape (5, 6), expected (4, 6)"),
    ):
        assert update.misfit((4, 6)) == message


@pytest.mark.parametrize("kind", KINDS)
def test_only_matrices_are_transposed(kind: type[Replace | Delta]) -> None:
    """A bias, and a convolution's weight, are the same in either orientation."""
    weight, bias = np.arange(6.0).reshape(2, 3), np.ones(3)
    turned = kind(weight, bias).with_transposed_weight()
    assert type(turned) is kind and turned.bias is bias
    np.testing.assert_array_equal(np.asarray(turned.weight), weight.T)
    for update in (kind(bias=bias), kind(np.ones((2, 3, 1)), bias), kind(np.ones(3))):
        assert update.with_transposed_weight() is update


@pytest.mark.parametrize("kind", KINDS)
def test_flags_and_size_name_the_leaves(kind: type[Replace | Delta]) -> None:
    for weight, bias, size in (
        (np.ones((1, 1)), np.ones(1), "weight and bias"),
        (np.ones((1, 1)), None, "weight"),
        (None, np.ones(1), "bias"),
    ):
        update = kind(weight, bias)
        assert (update.has_weight, update.has_bias) == (weight is not None, bias is not None)
        assert update.size() == size
