"""The name map of a model, found from names alone."""

from collections.abc import Iterator

import pytest

from jaxmix.errors import LayoutError
from jaxmix.placement import inferring
from jaxmix.placement.inferring import candidates, inferred
from jaxmix.placement.name_map import NameMap
from jaxmix.placement.transforms import Transform

from ..messages import full_text


def renaming(name: str, old: str, new: str) -> NameMap:
    return NameMap(name, (Transform("rename", (old,), (new,)),))


INNER = renaming("inner", "^blocks", "model.layers")
OUTER = renaming("outer", "^trunk", "model.layers")


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[NameMap]]:
    """The maps that are registered, which the test may change."""
    maps: list[NameMap] = [INNER, OUTER]
    entries = [(lambda config: None, lambda: maps)]
    monkeypatch.setattr(inferring, "NAME_MAPS", entries)
    inferring._inferred.cache_clear()
    yield maps
    inferring._inferred.cache_clear()


SHAPES = {"blocks.0.up.weight": (6, 4), "blocks.1.up.weight": (6, 4)}


def test_map_that_brings_each_site_to_a_leaf(registered: list[NameMap]) -> None:
    assert inferred(["model.layers.0.up", "model.layers.1.up"], SHAPES) is INNER
    assert inferred(["model.layers.0.up"], {"trunk.0.up.weight": (6, 4)}) is OUTER


def test_one_site_without_a_leaf_rejects_a_map(registered: list[NameMap]) -> None:
    assert inferred(["model.layers.0.up", "model.layers.0.gate"], SHAPES) is None


def test_layers_of_other_numbers_need_not_be_in_the_tree(registered: list[NameMap]) -> None:
    """One layer of each kind is enough to find the map."""
    assert inferred(["model.layers.7.up", "norm"], {**SHAPES, "norm.weight": (4,)}) is INNER


def test_maps_that_differ_only_by_name_are_one(registered: list[NameMap]) -> None:
    registered.append(NameMap("twin", INNER.transforms))
    assert list(candidates([(lambda config: None, lambda: registered)])) == [INNER, OUTER]
    assert inferred(["model.layers.1.up"], SHAPES) is INNER


def test_maps_that_answer_differently_are_an_error(registered: list[NameMap]) -> None:
    shapes = {**SHAPES, "blocks.0.down.weight": (4, 6)}
    registered.append(renaming("last", r"^blocks\.(\d+)\.down", r"model.layers.\1.up"))
    message = (
        "the sites of the adapters match the leaves by several models' names, which differ: those "
        "of inner, last. Say which: names='inner'."
    )
    with pytest.raises(LayoutError, match=full_text(message)):
        inferred(["model.layers.0.up"], shapes)


def test_same_names_are_searched_once(
    registered: list[NameMap], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search takes seconds in a large tree; another registered map starts a new one."""
    assert inferred(["model.layers.0.up"], SHAPES) is INNER
    registered.clear()
    assert inferred(["model.layers.0.up"], SHAPES) is INNER
    monkeypatch.setattr(inferring, "NAME_MAPS", [(lambda config: None, lambda: registered)])
    assert inferred(["model.layers.0.up"], SHAPES) is None
