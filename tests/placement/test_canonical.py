"""The modules of a tree, found by the names that they have in memory."""

import pytest

from jaxmix.placement.canonical import Modules, Target, UnmappedError
from jaxmix.placement.name_map import NameMap
from jaxmix.placement.regions import Region
from jaxmix.placement.transforms import Transform


def test_renamed_fused_leaf_is_not_cut() -> None:
    """An update of a fused leaf with a new name is not cut, so every family works."""
    settings = (("Chunk", (("dim", 0),)),)
    names = NameMap(
        "any",
        (
            Transform("rename", ("^old",), ("net",)),
            Transform("convert", ("qkv",), ("q", "k", "v"), operations=settings),
        ),
        "net",
    )
    modules = Modules(names, {"net.0.qkv.weight": (6, 2), "net.0.qkv.bias": (6,)})
    for site in ("old.0.qkv", "0.qkv"):
        assert modules.targets(site) == (Target("net.0.qkv"),)
    assert [target.site for target in modules.targets("net.0.k")] == ["net.0.qkv[2:4]"]


def test_experts_are_assigned_to_one_of_two_stacks() -> None:
    """ERNIE divides experts between text and vision, by the sizes of the stacks in memory."""
    fuse = (("ErnieFuseAndSplitTextVisionExperts", ()),)
    transform = Transform("convert", ("experts.*.w",), ("text.w", "vision.w"), operations=fuse)
    names = NameMap("any", (transform,))
    modules = Modules(names, {"0.text.w": (3, 4, 2), "0.vision.w": (2, 4, 2)})
    for expert, leaf, index in ((0, "0.text.w", "0"), (2, "0.text.w", "2"), (3, "0.vision.w", "0")):
        (target,) = modules.targets(f"0.experts.{expert}.w")
        assert target.places and target.places["weight"].leaf == leaf
        assert target.places["weight"].index == index
    assert not modules.targets("0.experts.6.w")
    separate = Modules(names, {f"0.experts.{i}.w": (4, 2) for i in range(5)})
    assert [t.site for t in separate.targets("0.vision.w")] == ["0.experts.3.w", "0.experts.4.w"]


def split(*parts: str) -> NameMap:
    """A map by which qkv is split into q, k and v in memory, or into these."""
    settings = (("Chunk", (("dim", 0),)),)
    parts = parts or ("q", "k", "v")
    return NameMap("any", (Transform("convert", ("qkv",), parts, operations=settings),), "net")


JOIN = NameMap(
    "any",
    (Transform("convert", ("w1", "w3"), ("up",), operations=(("Concatenate", (("dim", 0),)),)),),
)


def test_renamed_modules_are_found_with_and_without_the_prefix() -> None:
    """A module that is split has no single name in memory."""
    names = NameMap("any", (Transform("rename", ("^old",), ("net",)),), "net")
    modules = Modules(names, {"old.0.q.weight": (2, 3), "old.0.q.bias": (2,)})
    for site in ("net.0.q", "0.q"):
        assert modules.in_memory(site) == ("old.0.q",)
    assert modules.in_memory("net.0.q.weight") == ("old.0.q",)
    assert modules.in_memory("net.0.q.bias") == ("old.0.q.bias",)
    assert modules.in_memory("old.0.q") == modules.in_memory("net.1.q") == ()
    assert Modules(split(), {"net.qkv.weight": (6, 2)}).in_memory("net.q") == ()
    assert modules.stored == {"old.0.q", "old.0.q.weight", "old.0.q.bias"}


def test_joined_weight_has_a_target_for_each_part() -> None:
    """Each with its rows, whose numbers may differ."""
    modules = Modules(JOIN, {"0.w1.weight": (4, 3), "0.w3.weight": (6, 3)})
    first, second = modules.targets("0.up")
    assert (first.site, second.site) == ("0.w1", "0.w3")
    assert first.siblings == second.siblings == (4, 6)
    assert (first.cut.part, second.cut.part, first.cut.parts) == (0, 1, 2)
    assert [holding.leaf for holding in modules.pieces("0.up.weight")] == [
        "0.w1.weight",
        "0.w3.weight",
    ]


def test_absent_part_of_a_joined_weight_is_an_error() -> None:
    """An update of the whole can't be applied to one part."""
    with pytest.raises(UnmappedError) as caught:
        Modules(JOIN, {"0.w3.weight": (6, 3)}).targets("0.up")
    assert str(caught.value) == "only 1 of the 2 weights of 0.up.weight are present"


def test_part_of_a_leaf_is_a_place() -> None:
    """Its bias is the same part of the leaf's bias; an unknown name has no target."""
    modules = Modules(split(), {"net.qkv.weight": (6, 2), "net.qkv.bias": (6,)})
    (target,) = modules.targets("net.v")
    assert target.site == "net.qkv[4:6]" and target.region == Region(part=2, parts=3)
    assert target.places is not None
    assert {part: (place.leaf, place.index) for part, place in target.places.items()} == {
        "weight": ("net.qkv.weight", "4:6"),
        "bias": ("net.qkv.bias", "4:6"),
    }
    assert modules.targets("net.w") == ()
    with pytest.raises(UnmappedError) as caught:
        Modules(split(), {"net.qkv.weight": (7, 2)}).targets("net.v")
    assert str(caught.value) == "net.qkv.weight (7, 2) can't be split into 3 equal parts"


def test_tried_names_are_those_other_than_the_site() -> None:
    """For messages: with the prefix, and in memory."""
    names = NameMap("any", (Transform("rename", ("^old",), ("net",)),), "net")
    modules = Modules(names, {"net.q.weight": (2, 3)})
    assert list(modules.tried("old.q")) == ["net.old.q", "net.q"]
    assert list(modules.tried("net.q")) == ["net.net.q", "q"]
