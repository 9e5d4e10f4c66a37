"""Adapters under a tree's names: which names are tried, and in which order."""

from typing import Any

import numpy as np
import pytest

from jaxmix import Adapter
from jaxmix.errors import LayoutError
from jaxmix.families import LoRA
from jaxmix.placement import inferring, naming
from jaxmix.placement.canonical import Modules
from jaxmix.placement.name_map import NameMap
from jaxmix.placement.naming import OnTree, listing_tried_names, map_named, on_tree
from jaxmix.placement.sites import UnplacedError
from jaxmix.placement.transforms import Transform

from ..messages import full_text


def renames(name: str, old: str, new: str) -> NameMap:
    """A map by which a module is renamed when it is loaded."""
    return NameMap(name, (Transform("rename", (rf"\b{old}\b",), (new,)),))


MAPS = [renames("first", "old", "new"), renames("second", "old", "newer")]
LORA = LoRA(np.ones((1, 3)), np.ones((2, 1)), 1.0)


@pytest.fixture(autouse=True)
def maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only these two name maps exist."""

    def find(config: Any) -> NameMap | None:
        return next((m for m in MAPS if m.name == config.get("model_type")), None)

    for module in (naming, inferring):
        monkeypatch.setattr(module, "NAME_MAPS", [(find, lambda: [*MAPS, MAPS[0]])])


def adapter(*sites: str) -> Adapter:
    return Adapter(dict.fromkeys(sites, LORA), name="a")


def tree(*names: str) -> dict[str, np.ndarray]:
    return {f"{name}.weight": np.ones((2, 3), np.float32) for name in names}


def placed(params: Any, names: Any, *sites: str) -> list[list[str]]:
    """The sites with which the work is called, until the tree has a weight for all of them."""
    calls: list[list[str]] = []

    def work(found: OnTree[Adapter]) -> None:
        (part,) = found.parts
        calls.append(list(part.updates))
        if missing := [site for site in part.updates if f"{site}.weight" not in params]:
            raise UnplacedError(lambda: "no leaf.", missing)

    on_tree(work, [adapter(*sites)], params, None, names)
    return calls


def test_own_names_come_first() -> None:
    """Other names are looked up only if the tree lacks the adapters' own."""
    assert placed(tree("h.0.old"), None, "h.0.old") == [["h.0.old"]]
    assert placed(tree("h.0.old"), None, "h.0.new") == [["h.0.new"], ["h.0.old"]]


def test_given_map_is_the_only_one_tried() -> None:
    """By a model type or a config. Without a map, the adapters' own names must do."""
    for names in ("second", {"model_type": "second"}):
        assert placed(tree("h.0.old"), names, "h.0.newer") == [["h.0.old"]]
    with pytest.raises(UnplacedError, match=full_text("no leaf.")):
        placed(tree("h.0.old"), "", "h.0.new")


def test_names_of_no_map_are_an_error() -> None:
    with pytest.raises(
        UnplacedError,
        match=full_text("no leaf. No name map matches all of them to leaves."),
    ):
        placed(tree("h.0.old"), None, "h.0.new", "h.0.other")


def test_missing_bias_is_not_looked_up_by_other_names() -> None:
    """Its module has a weight under its own name."""
    error = UnplacedError(lambda: "no bias.", ["h.0.new"], lacks_only_biases=True)
    calls: list[OnTree[Adapter]] = []

    def work(found: OnTree[Adapter]) -> None:
        calls.append(found)
        raise error

    with pytest.raises(UnplacedError) as caught:
        on_tree(work, [adapter("h.0.new")], tree("h.0.old"), None, None)
    assert caught.value is error and len(calls) == 1


def test_unknown_map_is_refused() -> None:
    """The message shows the model type that was looked up."""
    for names in ("third", {"model_type": "third"}):
        with pytest.raises(
            LayoutError,
            match=full_text(
                "there is no name map 'third', expected the model_type of one of transformers' "
                "models, such as 'mixtral', '' for no map, or nothing to find it."
            ),
        ):
            map_named(names)
    assert map_named({"model_type": "first"}) is MAPS[0]


def test_error_lists_the_names_that_were_tried() -> None:
    """If there are any, each site has a line."""
    modules = Modules(MAPS[0], {"h.old.weight": (2, 3)})
    for sites, lines in (
        (("h.old", "x"), ":\n  h.old: h.new\nFor another model, pass its type: names='…'."),
        (("x",), "; for another model, pass its type: names='…'."),
    ):
        with pytest.raises(
            UnplacedError,
            match=full_text(f"no leaf.\nNames were also compared by the name map of first{lines}"),
        ):
            with listing_tried_names(modules):
                raise UnplacedError(lambda: "no leaf.", sites)
