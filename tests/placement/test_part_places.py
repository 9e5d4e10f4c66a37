"""Weights that are parts of leaves, or that leaves hold with axes or rows in another order."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.errors import LayoutError
from jaxmix.placement.assembly import assembled, assembled_shape
from jaxmix.placement.canonical import Holding, Modules, Target
from jaxmix.placement.name_map import NameMap
from jaxmix.placement.part_places import UnmappedError, memory_shape, part_place
from jaxmix.placement.regions import WHOLE, Piece, Region
from jaxmix.placement.transforms import Transform

LEAF = np.arange(24 * 3, dtype=np.float32).reshape(24, 3)
STACK = LEAF.reshape(2, 12, 3)
HALVES = LEAF.reshape(3, 4, 2, 3).swapaxes(1, 2).reshape(24, 3)  # of three heads


@pytest.mark.parametrize(
    ("leaf", "at", "options", "expected"),
    [
        (LEAF, Region(part=1, parts=3), {}, LEAF[8:16]),
        (LEAF, Region(part=1, parts=2, alternates=True), {}, LEAF[1::2]),
        (LEAF, Region(part=2, parts=3, sizes=(4, 4, 16)), {}, LEAF[8:]),
        (STACK, Region(part=1, parts=2, axis=1), {}, STACK[:, 6:]),
        (STACK, Region(1, 0, 2), {}, STACK[1, :6]),
        (LEAF, WHOLE, {"is_transposed": True}, LEAF.T),
        (LEAF, WHOLE, {"heads": 3}, HALVES),
        (HALVES, WHOLE, {"heads": -3}, LEAF),
        (LEAF[:, 0], WHOLE, {"heads": 3}, HALVES[:, 0]),
        (
            np.stack([LEAF, LEAF + 100]),
            Region(part=1, parts=1),
            {"heads": 3},
            np.stack([HALVES, HALVES + 100]),
        ),
        (
            np.concatenate([HALVES, LEAF]),
            Region(part=1, parts=2),
            {"heads": 3},
            HALVES,
        ),
    ],
)
def test_places(
    leaf: np.ndarray, at: Region, options: dict[str, int], expected: np.ndarray
) -> None:
    """A place reads the weight from the leaf, and writes it back to the same elements."""
    place = part_place("w", leaf.shape, at, **options)
    assert np.array_equal(np.asarray(place.get(jnp.asarray(leaf))), expected)
    written = np.asarray(place.put(jnp.zeros_like(leaf), jnp.asarray(expected)))
    assert np.array_equal(np.asarray(place.get(jnp.asarray(written))), expected)
    assert np.array_equal(written[written != 0], leaf[written != 0])


@pytest.mark.parametrize(
    ("at", "options", "message"),
    [
        (Region(part=1, parts=5), {}, "w (24, 3) can't be split into 5 equal parts"),
        (Region(parts=2, sizes=(4, 4)), {}, "w (24, 3) can't be split into parts of 4, 4 rows"),
        (
            Region(parts=2, sizes=(0, 0)),
            {},
            "w (24, 3) can't be split into 2 parts without their sizes, which the model's "
            "config.json states: pass it as names=",
        ),
        (
            WHOLE,
            {"heads": 5},
            "w has 24 rows, which can't be divided into 5 heads with two halves",
        ),
        (
            WHOLE,
            {"heads": 3, "is_transposed": True},
            "w is transposed and its rows are reordered: unsupported",
        ),
    ],
)
def test_leaves_without_the_part_are_refused(
    at: Region, options: dict[str, int], message: str
) -> None:
    """The error says why the leaf has no such part."""
    with pytest.raises(UnmappedError) as caught:
        part_place("w", (24, 3), at, **options)
    assert str(caught.value) == message


def test_memory_shape() -> None:
    """A transposed piece has its last two axes swapped in memory."""
    assert memory_shape(Piece("w", is_transposed=True), (4, 2, 3)) == (4, 3, 2)
    assert memory_shape(Piece("w"), (2, 3)) == (2, 3)


LEAVES = {"a": LEAF, "b": LEAF + 100, "experts": STACK, "conv": LEAF.reshape(24, 1, 3)}
ASSEMBLED: tuple[tuple[dict[str, Piece], np.ndarray], ...] = (
    ({"a": Piece("w", heads=3)}, HALVES),
    ({"a": Piece("w", disk=Region(part=1, parts=2, alternates=True))}, LEAF[1::2]),
    (
        {
            "a": Piece("w", memory=Region(part=0, parts=2)),
            "b": Piece("w", memory=Region(part=1, parts=2)),
        },
        np.concatenate([LEAF, LEAF + 100]),
    ),
    (
        {
            "conv": Piece("w", memory=Region(part=0, parts=1)),
        },
        LEAF.reshape(24, 1, 3),
    ),
    (
        {
            "experts": Piece("w", memory=Region(part=0, parts=2, axis=1)),
            "more": Piece("w", memory=Region(part=1, parts=2, axis=1)),
        },
        np.concatenate([STACK, STACK], 1),
    ),
    (
        {"a": Piece("w", memory=Region(0)), "b": Piece("w", memory=Region(1))},
        np.stack([LEAF, LEAF + 100]),
    ),
    ({"a": Piece("w", is_transposed=True)}, LEAF.T),
)


@pytest.mark.parametrize(("pieces", "expected"), ASSEMBLED)
def test_assembled(pieces: dict[str, Piece], expected: np.ndarray) -> None:
    """Leaves with each kind of region are assembled to the tensor in memory."""
    leaves = {**LEAVES, "more": STACK}
    holdings = [Holding(leaf, piece) for leaf, piece in pieces.items()]
    assert np.array_equal(assembled(holdings, leaves.__getitem__), expected)
    shapes = {name: leaf.shape for name, leaf in leaves.items()}
    assert assembled_shape(holdings, shapes) == expected.shape


def test_leaf_that_cannot_be_assembled() -> None:
    """The error names the tensor."""
    holding = Holding("a", Piece("w", disk=Region(part=1, parts=5)))
    with pytest.raises(LayoutError, match=r"^w: a \(24, 3\) can't be split into 5 equal parts\.$"):
        assembled([holding], LEAVES.__getitem__)


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
