"""The orientation in which a leaf is read as a site's weight."""

from typing import Any

import numpy as np
import pytest

from jaxmix.families import LoRA, Replace
from jaxmix.placement.layout import KERNEL, Layout
from jaxmix.placement.place import Place
from jaxmix.placement.reading import Reading, form_of, misfit, read_weight, transposed_chain
from jaxmix.placement.sites import Site
from jaxmix.placement.tree import Tree


def lora(rows: int, cols: int, transposed: bool | None = None) -> LoRA:
    return LoRA(np.ones((1, cols)), np.ones((rows, 1)), 1.0, transposed=transposed)


def read(
    shape: tuple[int, ...], update: Any, axes: str | None = None, conv1d: str | None = None
) -> Reading:
    """Reads the only weight of a tree, whose name may be that of a Conv1D."""
    leaf = "c_proj.kernel" if axes else "c_proj.weight"
    table = None if conv1d is None else Layout("mine", conv1d=conv1d)
    site = Site("c_proj", ((1.0, update),))
    return read_weight(Tree.of({leaf: np.ones(shape, np.float32)}), site, Place(leaf, axes), table)


@pytest.mark.parametrize(
    ("shape", "axes", "is_conv1d"),
    [((6, 4), None, False), ((4, 6), None, True), ((4, 6), KERNEL, True), ((6, 4), KERNEL, None)],
)
def test_factors_decide_the_orientation(
    shape: tuple[int, int], axes: str | None, is_conv1d: bool | None
) -> None:
    """Of a weight; a Flax kernel is (in, out), whatever PyTorch's weight is."""
    found = read(shape, lora(6, 4), axes)
    if is_conv1d is None:
        assert found.form is None and found.misfit is not None
        return
    assert found.misfit is None and found.form is not None and not found.is_unclear
    assert found.form.shape(shape) == (6, 4) and found.transposed is is_conv1d


def test_square_weight_without_a_flag_is_unclear() -> None:
    """A flag of the updates, or the layout, decides it."""
    assert read((4, 4), lora(4, 4)).is_unclear
    for flag in (False, True):
        found = read((4, 4), lora(4, 4, flag))
        assert not found.is_unclear and found.transposed is flag
    for pattern, transposed in (("c_proj", True), ("other", False)):
        found = read((4, 4), lora(4, 4), conv1d=pattern)
        assert not found.is_unclear and found.transposed is transposed


def test_layout_overrules_what_would_fit() -> None:
    """The misfit is that of the stated orientation."""
    found = read((4, 6), lora(6, 4), conv1d="other")
    assert found.form is None
    assert found.misfit == (
        "lora_A has shape (1, 4), expected (1, 6); lora_B has shape (6, 1), expected (4, 1) from "
        "weight (4, 6)"
    )


def test_misfit_is_that_of_the_likeliest_orientation() -> None:
    """Whichever is tried last, the message describes the first."""
    found = read((5, 4), lora(6, 4))
    assert found.misfit == "lora_B has shape (6, 1), expected (5, 1) from weight (5, 4)"
    assert misfit((), (5, 4)) is None


def test_saved_weights_are_transposed_with_the_chain() -> None:
    """Strengths stay; factors are those of the matrix in either case."""
    factors, saved = lora(6, 4), Replace(np.ones((4, 6)))
    (first, same), (second, turned) = transposed_chain(((0.5, factors), (2.0, saved)))
    assert (first, second) == (0.5, 2.0) and same is factors
    assert isinstance(turned, Replace) and turned.weight is not None
    assert turned.weight.shape == (6, 4)


def test_form_has_no_name_and_no_parts_of_axes() -> None:
    """So equal layers share it, whatever the leaf is called."""
    tree = Tree.of({"a.weight": np.ones((6, 4), np.float32)})
    form = form_of("weight", tree, Place("a.weight", index="1/3", scale=2.0))
    assert form.place == Place("", index="2:4") and form.scale == 2.0 and form.sharding is None
